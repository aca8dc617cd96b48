"""Asynchronous client of a retrieval server: wire formats, de-duplication, cache.

Time-outs and retries come from research.model_server. It speaks two of the field's wire formats, ``research``
(ReSearch: POST /search) and ``search_r1`` (Search-R1, veRL 0.7: POST /retrieve), so any server of either kind
will do. The environment variable ``RETRIEVER_TOKEN`` holds the server's token, if it needs one.
"""

import asyncio
import math
import reprlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

from research.episode.tools import SearchError, Tool, search_tool
from research.episode.trajectory import Passage
from research.model_server import JsonServer, ServerError

TOKEN_VARIABLE = "RETRIEVER_TOKEN"
IDENTITY = ("index", "encoder", "dimension", "count", "fingerprint")
"""What GET /health of our server says of its index, on which the results depend"""


class _Request(NamedTuple):
    """What an answer depends on; equal requests share it."""

    query: str
    top_k: int
    exclude_ids: frozenset[str]


@dataclass(frozen=True)
class RetrieverConfig:
    """How to reach a retriever; the keys of ``research.retriever`` in research/config/common.yaml.

    ``timeout`` bounds one attempt and ``deadline`` one search with all its attempts, both in seconds from
    when one of the ``connections`` is free: waiting for a turn is not the server's fault. Without
    ``contents`` the server is asked for ids and scores only.
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
        self._server = JsonServer(
            config.url, config.timeout, config.deadline, TOKEN_VARIABLE, config.connections, config.deadline
        )
        self._cache: OrderedDict[_Request, list[Passage]] = OrderedDict()
        self._in_flight: dict[_Request, asyncio.Task[list[Passage]]] = {}

    async def __call__(
        self, query: str, top_k: int | None = None, exclude_ids: frozenset[str] = frozenset()
    ) -> list[Passage]:
        """At most ``top_k`` passages (None: the configuration's), best first, none of ``exclude_ids``.

        Raises:
            SearchError: the server refused the request, ignored ``exclude_ids``, gave an answer of another
                format, or no attempt succeeded before the deadline.
        """
        request = _Request(query, top_k or self.config.top_k, exclude_ids)
        if request in self._cache:
            self._cache.move_to_end(request)
            return self._cache[request]
        task = self._in_flight.get(request)
        if task is None:
            task = self._in_flight[request] = asyncio.ensure_future(self._search(request))
            task.add_done_callback(lambda _: self._in_flight.pop(request, None))
        # One impatient caller must not cancel the request that others wait for.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def _search(self, request: _Request) -> list[Passage]:
        body = self._body(request) | ({} if self.config.contents else {"return_contents": False})
        where = self._server.url + self._path
        try:
            answer = await self._server.call(self._path, body)
            passages = self._parse(answer, self.config.contents)[: request.top_k]
        except ServerError as error:
            raise SearchError(str(error), error.lasting) from error
        except ValueError as error:
            raise SearchError(
                f"{where}: not an answer of wire format {self.config.wire!r}: {error}"
            ) from error
        # A server that does not know the key ignores it, and every figure would be wrong.
        if any(passage.id in request.exclude_ids for passage in passages):
            raise SearchError(f"{where}: the server answered with passages that were excluded (exclude_ids)")
        self._remember(request, passages)
        return passages

    def _remember(self, request: _Request, passages: list[Passage]) -> None:
        self._cache[request] = passages
        if len(self._cache) > self.config.cache_size:
            self._cache.popitem(last=False)


def tool(retriever: RetrieverConfig) -> Tool:
    """The built-in tool ``search``."""
    return search_tool(RetrieverClient(retriever))


# ---------------------------------------------------------------------------------- wire formats


def _research_body(request: _Request) -> dict[str, Any]:
    body = {"query": request.query, "top_n": request.top_k, "return_score": True}
    return body | ({"exclude_ids": sorted(request.exclude_ids)} if request.exclude_ids else {})


def research_passages(answer: Any, contents: bool) -> list[Passage]:
    """The passages of ``[[passage, ...], [score, ...]]``. Raises ValueError with what is wrong."""
    rows, scores = _list(answer, "the answer", length=2)
    of_rows = _list(scores, "the list of scores", length=len(_list(rows, "the list of passages")))
    return [_passage(row, score, contents) for row, score in zip(rows, of_rows, strict=True)]


def _search_r1_body(request: _Request) -> dict[str, Any]:
    body = {"queries": [request.query], "topk": request.top_k, "return_scores": True}
    return body | ({"exclude_ids": [sorted(request.exclude_ids)]} if request.exclude_ids else {})


def _search_r1_passages(answer: Any, contents: bool) -> list[Passage]:
    [rows] = _list(_field(answer, "result", "the answer"), '"result"', length=1)
    pairs = [(_field(row, "document", "a result"), row.get("score")) for row in _list(rows, "a result list")]
    return [_passage(document, score, contents, scored=score is not None) for document, score in pairs]


def _passage(document: Any, score: Any, contents: bool, scored: bool = True) -> Passage:
    name = _field(document, "id", "a passage")
    if type(name) not in (str, int):
        raise ValueError(f'"id" of a passage must be a text or a whole number, not {reprlib.repr(name)}')
    text = _field(document, "contents", "a passage") if contents else ""
    if not isinstance(text, str):
        raise ValueError(f'"contents" of passage {name!r} must be a text, not {reprlib.repr(text)}')
    if scored and not _is_finite(score):
        raise ValueError(f"the score of passage {name!r} must be a number, not {reprlib.repr(score)}")
    return Passage(str(name), text, float(score) if scored else None)


def _list(value: Any, what: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, not {reprlib.repr(value)}")
    if length is not None and len(value) != length:
        raise ValueError(f"{what} must be a list of {length}, not of {len(value)}")
    return value


def _field(value: Any, name: str, what: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise ValueError(f'{what} must be an object with "{name}", not {reprlib.repr(value)}')
    return value[name]


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond floats
        return False


WIRES = {
    "research": ("/search", _research_body, research_passages),
    "search_r1": ("/retrieve", _search_r1_body, _search_r1_passages),
}
"""name -> (path, request body, passages of an answer)"""
