"""Asynchronous client of a retrieval server: connection pool, time-outs, retries with back-off,
de-duplication, cache.

Speaks two of the field's wire formats: ``research`` (ReSearch: POST /search) and ``search_r1`` (Search-R1,
veRL 0.7: POST /retrieve), so any server of either kind can stand behind it.
"""

import asyncio
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp

from research.search_loop import SearchError
from research.trajectory import Passage

RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


class _Request(NamedTuple):
    """What makes an answer; equal ones share it."""

    query: str
    top_k: int
    exclude_ids: frozenset[str]


@dataclass(frozen=True)
class RetrieverConfig:
    """How to reach a retriever; the keys of ``research.retriever`` in recipes/config/common.yaml.

    ``timeout`` bounds one attempt and ``deadline`` one search with all its attempts, both in seconds. They
    begin when one of the ``connections`` is free: to wait for the own turn is no fault of the server's.
    Without ``contents`` the server is asked for ids and scores alone.
    """

    url: str
    wire: str = "research"
    top_k: int = 5
    timeout: float = 10.0
    deadline: float = 60.0
    connections: int = 64
    cache_size: int = 100_000
    contents: bool = True

    def __post_init__(self) -> None:
        if self.wire not in WIRES:
            raise ValueError(f"retriever.wire is {self.wire!r}; there are: {', '.join(sorted(WIRES))}")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"retriever.url must start with http:// or https://, not {self.url!r}")


class RetrieverClient:
    """Call it with a query: ``await client("who wrote Hamlet") -> [Passage, ...]``, best first.

    Equal requests in flight share one request, and answers are kept in a bounded cache. Open sessions belong
    to the event loop of the first call.
    """

    def __init__(self, config: RetrieverConfig) -> None:
        self.config = config
        self._path, self._body, self._parse = WIRES[config.wire]
        self._session: aiohttp.ClientSession | None = None
        self._turns = asyncio.Semaphore(config.connections)
        self._cache: OrderedDict[_Request, list[Passage]] = OrderedDict()
        self._in_flight: dict[_Request, asyncio.Task[list[Passage]]] = {}

    async def __call__(
        self, query: str, top_k: int | None = None, exclude_ids: frozenset[str] = frozenset()
    ) -> list[Passage]:
        """Passages for the query, best first: ``top_k`` at most (None: the configuration's), and none of
        ``exclude_ids``.

        Raises:
            SearchError: the server refused the request, knows no ``exclude_ids``, or no attempt succeeded
            before the deadline.
        """
        request = _Request(query, top_k or self.config.top_k, exclude_ids)
        if request in self._cache:
            self._cache.move_to_end(request)
            return self._cache[request]
        task = self._in_flight.get(request)
        if task is None:
            task = self._in_flight[request] = asyncio.ensure_future(self._search_in_turn(request))
            task.add_done_callback(lambda _: self._in_flight.pop(request, None))
        # One impatient caller must not cancel the request that others wait for.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _search_in_turn(self, request: _Request) -> list[Passage]:
        async with self._turns:
            return await self._search(request)

    async def _search(self, request: _Request) -> list[Passage]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.config.deadline
        delay, attempts = 0.1, 0
        while True:
            attempts += 1
            try:
                passages = await self._attempt(request)
            except (_Retry, aiohttp.ClientError, TimeoutError, OSError) as error:
                delay = min(2 * delay, 5.0)
                pause = getattr(error, "after", None) or delay * random.uniform(0.5, 1.0)
                if loop.time() + pause >= end:
                    reason = str(error) or type(error).__name__
                    raise SearchError(f"{self.config.url}: {reason} ({attempts} attempts)") from error
                await asyncio.sleep(pause)
            else:
                self._remember(request, passages)
                return passages

    async def _attempt(self, request: _Request) -> list[Passage]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self.config.connections),
                timeout=aiohttp.ClientTimeout(total=self.config.timeout),
            )
        url = self.config.url.rstrip("/") + self._path
        body = self._body(request) | ({} if self.config.contents else {"return_contents": False})
        async with self._session.post(url, json=body) as response:
            if response.status in RETRIED_STATUS:
                raise _Retry(f"HTTP {response.status}", response.headers.get("Retry-After"))
            if response.status != 200:
                raise SearchError(f"{url}: HTTP {response.status}: {(await response.text())[:200]}")
            try:
                passages = self._parse(await response.json(), self.config.contents)[: request.top_k]
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise SearchError(
                    f"{url}: not an answer of wire format {self.config.wire!r}: {error!r}"
                ) from error
        # A server that does not know the key passes over it, and every figure would be wrong.
        if any(passage.id in request.exclude_ids for passage in passages):
            raise SearchError(f"{url}: the server answered with passages that were excluded (exclude_ids)")
        return passages

    def _remember(self, request: _Request, passages: list[Passage]) -> None:
        self._cache[request] = passages
        if len(self._cache) > self.config.cache_size:
            self._cache.popitem(last=False)


class _Retry(Exception):
    """The server asked for patience; ``after`` is its Retry-After in seconds, if it gave one."""

    def __init__(self, reason: str, after: str | None) -> None:
        super().__init__(reason)
        self.after = min(float(after), 10.0) if after and after.isdigit() else None


# ---------------------------------------------------------------------------------- wire formats


def _research_body(request: _Request) -> dict[str, Any]:
    body = {"query": request.query, "top_n": request.top_k, "return_score": True}
    return body | ({"exclude_ids": sorted(request.exclude_ids)} if request.exclude_ids else {})


def _research_passages(answer: Any, contents: bool) -> list[Passage]:
    rows, scores = answer
    return [_passage(row, float(score), contents) for row, score in zip(rows, scores, strict=True)]


def _search_r1_body(request: _Request) -> dict[str, Any]:
    body = {"queries": [request.query], "topk": request.top_k, "return_scores": True}
    return body | ({"exclude_ids": [sorted(request.exclude_ids)]} if request.exclude_ids else {})


def _search_r1_passages(answer: Any, contents: bool) -> list[Passage]:
    return [_passage(row["document"], row.get("score"), contents) for row in answer["result"][0]]


def _passage(document: dict[str, Any], score: Any, contents: bool) -> Passage:
    return Passage(str(document["id"]), document["contents"] if contents else "", score)


WIRES = {
    "research": ("/search", _research_body, _research_passages),
    "search_r1": ("/retrieve", _search_r1_body, _search_r1_passages),
}
"""name -> (path, request body, passages of an answer)"""
