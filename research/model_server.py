"""JSON over HTTP, to a model server and others, with time-outs and retries with back-off."""

import asyncio
import json
import os
import random
from typing import Any

import aiohttp

RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
MOST_PAUSE_S = 10.0
MESSAGE_CHARS = 300


class ServerError(Exception):
    """The server refused the request, or no attempt succeeded in time; the message is one line."""


class _TryAgain(Exception):
    pass


class JsonServer:
    """A server of JSON. `timeout` bounds an attempt, `deadline` a call with all its attempts, both in
    seconds; `key` is sent as its bearer token.
    """

    def __init__(self, url: str, timeout: float, deadline: float, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout, self._deadline = timeout, deadline
        self._session: aiohttp.ClientSession | None = None

    async def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON answer of GET, or with a `body` of POST. Raises ServerError."""
        loop = asyncio.get_running_loop()
        end, pause, attempts = loop.time() + self._deadline, 0.25, 0
        while True:
            attempts += 1
            try:
                return await self._attempt(path, body)
            except (_TryAgain, aiohttp.ClientError, TimeoutError, OSError) as error:
                wait = pause * random.uniform(0.5, 1.0)
                pause = min(2 * pause, MOST_PAUSE_S)
                if loop.time() + wait >= end:
                    reason = str(error) or type(error).__name__
                    raise ServerError(f"{self.url}{path}: {reason} ({attempts} attempts)") from error
                await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _attempt(self, path: str, body: dict[str, Any] | None) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                headers=self._headers,
            )
        method = "GET" if body is None else "POST"
        async with self._session.request(method, self.url + path, json=body) as reply:
            text = await reply.text()
            if reply.status in RETRIED_STATUS:
                raise _TryAgain(f"HTTP {reply.status}")
            if reply.status != 200:
                words = " ".join(text.split())[:MESSAGE_CHARS]
                raise ServerError(f"{self.url}{path}: HTTP {reply.status}: {words}")
        try:
            return json.loads(text)
        except ValueError as error:
            raise _TryAgain(f"not JSON: {text[:80]!r}") from error


class ModelServer(JsonServer):
    """An OpenAI-compatible server; `key_variable` names the environment variable with its API key, if it
    needs one.
    """

    def __init__(self, url: str, key_variable: str, timeout: float, deadline: float) -> None:
        base = url.rstrip("/").removesuffix("/v1") + "/v1"
        super().__init__(base, timeout, deadline, os.environ.get(key_variable))
