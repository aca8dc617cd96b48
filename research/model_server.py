"""JSON over HTTP for all clients: time-outs, retries with back-off, and one clear line for a useless answer.

Not done with tenacity: the deadline leaves out the wait for a connection, and a dead server gets less time.
"""

import asyncio
import json
import os
import random
import re
import sys
from typing import Any, NoReturn

import aiohttp

from research.episode.trajectory import well_formed

RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
FIRST_PAUSE_S, MOST_PAUSE_S, MOST_RETRY_AFTER_S = 0.2, 5.0, 10.0
UNREACHABLE_S = 45.0  # with nobody listening, after which a server counts as gone
CONNECT_S = 10.0
MESSAGE_CHARS = 300
MOST_BYTES = 64 * 2**20  # of an answer
UNLIMITED = sys.maxsize
_NOBODY = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class ServerError(Exception):
    """The server refused the request, or no attempt succeeded in time; the message is one line.

    `status` is that of the last HTTP answer, None without one. `lasting`: every other request would fail too,
    because nothing listens there, or because the server is of another kind or requires another key.
    """

    def __init__(self, message: str, status: int | None = None, lasting: bool = False) -> None:
        super().__init__(_line(message))
        self.status, self.lasting = status, lasting


class _TryAgain(Exception):
    """The server is busy; `after` is its Retry-After in seconds, if it gave one."""

    def __init__(self, status: int, after: str | None) -> None:
        super().__init__(f"HTTP {status}")
        digits = after is not None and after.isascii() and after.isdigit()
        self.status = status
        self.after = min(float(after or 0), MOST_RETRY_AFTER_S) if digits else None


class JsonServer:
    """A server of JSON over HTTP, with retries.

    `timeout` bounds an attempt, `deadline` a call with all its attempts, `patience` (None: UNREACHABLE_S) the
    part of it in which nobody listens; all in seconds, without the wait for one of the `connections`. The
    environment variable `key_variable` holds the bearer token, if the server needs one. The first call that
    fails twice is reported on stderr.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        deadline: float,
        key_variable: str | None = None,
        connections: int = UNLIMITED,
        patience: float | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._key_variable = key_variable
        self._timeout, self._deadline = timeout, deadline
        self._patience = UNREACHABLE_S if patience is None else patience
        self._turns = asyncio.Semaphore(connections)
        self._session: aiohttp.ClientSession | None = None
        self._answered = self._warned = False

    async def call(self, path: str, body: dict[str, Any] | None = None, deadline: float | None = None) -> Any:
        """The JSON answer of GET, or with a `body` of POST. Raises ServerError."""
        clock, end = asyncio.get_running_loop().time, self._deadline if deadline is None else deadline
        spent = unheard = 0.0
        pause, attempts = FIRST_PAUSE_S, 0
        while True:
            attempts += 1
            async with self._turns:  # not during the pause: others may have more luck
                began = clock()
                try:
                    return await self._attempt(path, body)
                except (_TryAgain, aiohttp.ClientError, TimeoutError, OSError) as error:
                    cause: Exception = error
                took = clock() - began
            wait = getattr(cause, "after", None) or pause * random.uniform(0.5, 1.0)
            pause = min(2 * pause, MOST_PAUSE_S)
            spent += took + wait
            unheard = unheard + took + wait if isinstance(cause, _NOBODY) else 0.0
            reason = _line(str(cause)) or f"no answer in {self._timeout} s"
            if spent >= end or unheard >= self._patience:
                message = f"{self.url}{path}: {reason} ({attempts} attempt{'s' * (attempts > 1)})"
                raise ServerError(message, getattr(cause, "status", None), lasting=unheard > 0) from cause
            if attempts > 1:
                bound = min(end, self._patience) if unheard else end
                self._warn_once(f"{self.url}{path}: {reason}; trying again for up to {bound:.0f} s")
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _attempt(self, path: str, body: dict[str, Any] | None) -> Any:
        method, data = ("GET", None) if body is None else ("POST", _encoded(body))
        request = self._opened().request
        try:
            async with request(method, self.url + path, data=data, allow_redirects=False) as reply:
                raw = await self._body(reply, path)
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL, aiohttp.ClientSSLError, ValueError) as error:
            # A port that speaks no HTTP or no TLS, or an address or a key that cannot be sent.
            reason = f"no HTTP: {error.message}" if isinstance(error, aiohttp.ClientResponseError) else error
            self._refuse(path, str(reason), None, error)
        if reply.status in RETRIED_STATUS:
            raise _TryAgain(reply.status, reply.headers.get("Retry-After"))
        if not 200 <= reply.status < 300:
            self._refuse(path, self._refusal(reply, raw), reply.status)
        try:
            answer = _parsed(raw)
        except (ValueError, RecursionError) as error:
            what = "an HTML page" if raw.lstrip().startswith(b"<") else "an answer"
            start = raw[:MESSAGE_CHARS].decode(errors="replace")
            self._refuse(path, f"{what} that is not JSON: {start}", reply.status, error)
        self._answered = True
        return answer

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            key = os.environ.get(self._key_variable) if self._key_variable else None
            headers = {"Content-Type": "application/json"}
            headers |= {"Authorization": f"Bearer {key}"} if key else {}
            timeout = aiohttp.ClientTimeout(self._timeout, sock_connect=min(CONNECT_S, self._timeout))
            connector = aiohttp.TCPConnector(limit=0)  # self._turns limits them
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)
        return self._session

    async def _body(self, reply: aiohttp.ClientResponse, path: str) -> bytes:
        body = bytearray()
        async for chunk in reply.content.iter_any():
            body += chunk
            if len(body) > MOST_BYTES:
                self._refuse(path, f"an answer of more than {MOST_BYTES >> 20} MiB", reply.status)
        return bytes(body)

    def _refusal(self, reply: aiohttp.ClientResponse, raw: bytes) -> str:
        reason = f"HTTP {reply.status}"
        if 300 <= reply.status < 400:
            return f"{reason}, redirected to {reply.headers.get('Location')}: give the server's own address"
        if reply.status in (401, 403) and self._key_variable:
            state = "is it right?" if os.environ.get(self._key_variable) else "it is not set"
            reason += f" (the key is taken from {self._key_variable}: {state})"
        return f"{reason}: {_line(raw[: 4 * MESSAGE_CHARS].decode(errors='replace'))}"

    def _refuse(
        self, path: str, reason: str, status: int | None, cause: BaseException | None = None
    ) -> NoReturn:
        # 400, 413 and 422 concern this request; if the server has answered before, so may other refusals.
        lasting = not self._answered and status not in (400, 413, 422)
        raise ServerError(f"{self.url}{path}: {reason}", status, lasting) from cause

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"WARNING: {message}", file=sys.stderr, flush=True)


class ModelServer(JsonServer):
    """An OpenAI-compatible server; the environment variable `key_variable` holds its API key, if any."""

    def __init__(
        self,
        url: str,
        key_variable: str | None,
        timeout: float,
        deadline: float,
        patience: float | None = None,
    ) -> None:
        url = url.rstrip("/").removesuffix("/v1") + "/v1"
        super().__init__(url, timeout, deadline, key_variable, patience=patience)


def _encoded(body: dict[str, Any]) -> bytes:
    return well_formed(json.dumps(body, ensure_ascii=False)).encode()


def _parsed(raw: bytes) -> Any:
    answer = json.loads(raw)
    if _HALF_SURROGATE.search(raw):  # or a whole pair, which comes out as it went in
        answer = json.loads(_encoded(answer))
    return answer


def _line(text: str) -> str:
    return " ".join(text.split())[: 2 * MESSAGE_CHARS]
