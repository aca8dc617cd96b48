"""Bench: load on any server of the known wire formats; requests/s, latencies and errors by kind.

    python -m retriever_server bench --url http://127.0.0.1:8000 --queries my.questions.jsonl
    python -m retriever_server bench --ceiling --queries my.questions.jsonl

A closed loop: each of C clients sends its next request when its last one was answered, so a slow server is
asked less, and its latencies are those of C patient clients. A latency goes from sending to the last byte. No
request is cut off by the end of the time: those under way are waited for and counted.

The client is one process on one core. `--ceiling` shows the most it can do, against a server that answers at
once. A server measured near that figure may be faster than it looks; start the command twice, side by side,
and add up. Where client and server share cores, what the client takes is missing to the server, whichever it
is.
"""

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

from retriever_server.bench.connection import Connection
from retriever_server.errors import RetrieverError

ERROR_PAUSE_S = 0.05  # a client whose request failed at once must not ask in a hot loop
SHAPE_ERRORS = (KeyError, TypeError, ValueError, AttributeError, RecursionError)


class Wire(NamedTuple):
    """How to ask: the path, the body for some queries, and how to find each query's documents in the answer
    (one of SHAPE_ERRORS where the answer is not of this format).
    """

    path: str
    body: Callable[[list[str], int], dict[str, Any]]
    documents: Callable[[Any], list[list[dict[str, Any]]]]


@dataclass(frozen=True)
class Load:
    """What to send. A level lasts `seconds`, or `requests` requests if given, after `warm_up_s` seconds that
    are not counted; `timeout_s` bounds one request.
    """

    url: str
    wire: str = "research"
    top_k: int = 5
    batch: int = 1
    seconds: float = 10.0
    requests: int | None = None
    warm_up_s: float = 1.0
    timeout_s: float = 60.0


class Figures(NamedTuple):
    """One level. `requests` were answered rightly in `seconds`; percentiles are theirs, in milliseconds, None
    if there was none; `errors` counts the others by kind.
    """

    concurrency: int
    requests: int
    seconds: float
    requests_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    errors: dict[str, int]


@dataclass
class Samples:
    """What a level has measured so far: latencies of right answers in seconds, and the errors by kind."""

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.perf_counter)

    def figures(self, concurrency: int) -> Figures:
        """The figures, as if the level ended now."""
        seconds = time.perf_counter() - self.began
        ordered = sorted(self.latencies)
        p50, p95, p99 = (_milliseconds(ordered, percent) for percent in (50, 95, 99))
        rate = round(len(ordered) / seconds, 2)
        errors = dict(self.errors.most_common())
        return Figures(concurrency, len(ordered), round(seconds, 3), rate, p50, p95, p99, errors)


class Supply:
    """The queries, handed out one after the other; from the first again, with one warning, when they end."""

    def __init__(self, queries: list[str]) -> None:
        self._queries = queries
        self._taken = 0

    def take(self, count: int) -> list[str]:
        """The next `count` queries."""
        numbers = range(self._taken, self._taken + count)
        self._taken += count
        if numbers.start <= len(self._queries) < numbers.stop:
            warning = f"WARNING: all {len(self._queries):,} queries were asked, they repeat from here on: "
            click.echo(warning + "a server with a cache looks faster than it is", err=True)
        return [self._queries[number % len(self._queries)] for number in numbers]


def read_queries(path: Path) -> list[str]:
    """The distinct queries of a file in order: one a line, or JSON Lines with "question" or "query".

    Raises RetrieverError for a file without queries, and with its line number for a row that is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise RetrieverError(f"{path}: not UTF-8 text: {error.reason}") from error
    rows = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise RetrieverError(f"{path}: no queries in it")
    if not rows[0][1].startswith("{"):
        return list(dict.fromkeys(line for _, line in rows))
    return list(dict.fromkeys(_query_of(line, f"{path}:{number}") for number, line in rows))


def _query_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
        query = row.get("question") or row.get("query")
    except SHAPE_ERRORS as error:
        raise RetrieverError(f"{where}: not a JSON object: {error}") from error
    if not isinstance(query, str):
        raise RetrieverError(f'{where}: neither "question" nor "query" holds a text')
    return query


Report = Callable[[Figures], None]


async def measure(load: Load, levels: list[int], queries: list[str], report: Report) -> None:
    """Put the load on the server, one level (number of clients) after the other; `report` gets the figures of
    each when it ends, and when it is cancelled those of the part that was measured.
    """
    supply = Supply(queries)
    for concurrency in levels:
        clients = _Clients(load, supply)
        await clients.run(concurrency, Samples(), load.warm_up_s, None)
        samples = Samples()
        try:
            await clients.run(concurrency, samples, load.seconds, load.requests)
        finally:
            report(samples.figures(concurrency))


async def check_server(load: Load) -> None:
    """Ask once. Raises RetrieverError when there is no answer, or one that every request would get."""
    wire = wire_format(load.wire, load.batch)
    url = load.url.rstrip("/") + wire.path
    connection = Connection(url)
    try:
        async with asyncio.timeout(load.timeout_s):
            reply = await connection.post(json.dumps(wire.body(["?"] * load.batch, load.top_k)).encode())
    except OSError as error:  # a time-out, too
        raise RetrieverError(f"{url}: no answer: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()
    if 400 <= reply.status < 500:
        advice = f"does it speak the wire format {load.wire}?"
        text = reply.content[:200].decode(errors="replace")
        raise RetrieverError(f"{url}: HTTP {reply.status}, {advice} It says: {text}")


class _Clients:
    """The clients of one level and their connections."""

    def __init__(self, load: Load, supply: Supply) -> None:
        self._load, self._supply = load, supply
        self._wire = wire_format(load.wire, load.batch)
        self._url = load.url.rstrip("/") + self._wire.path

    async def run(self, concurrency: int, samples: Samples, seconds: float, requests: int | None) -> None:
        """Ask with `concurrency` clients for `seconds` or `requests` requests, and wait for all answers."""
        end = math.inf if requests else time.perf_counter() + seconds
        left = requests or math.inf

        async def client() -> None:
            nonlocal left
            connection = Connection(self._url)
            try:
                while left > 0 and time.perf_counter() < end:
                    left -= 1
                    await self._ask(connection, samples)
            finally:
                connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(client())

    async def _ask(self, connection: Connection, samples: Samples) -> None:
        queries = self._supply.take(self._load.batch)
        body = json.dumps(self._wire.body(queries, self._load.top_k)).encode()
        sent = time.perf_counter()
        try:
            async with asyncio.timeout(self._load.timeout_s):
                status, content = await connection.post(body)
            error = self._error(status, content)
        except TimeoutError:
            error = "time-out"
        except OSError:
            error = "connection"
        if error is None:
            samples.latencies.append(time.perf_counter() - sent)
        else:
            samples.errors[error] += 1
            await asyncio.sleep(ERROR_PAUSE_S)

    def _error(self, status: int, content: bytes) -> str | None:
        if status != 200:
            return f"HTTP {status}"
        try:
            found = self._wire.documents(json.loads(content))
            right = len(found) == self._load.batch and all(map(self._is_ranking, found))
        except SHAPE_ERRORS:
            right = False
        return None if right else "wrong answer"

    def _is_ranking(self, documents: list[dict[str, Any]]) -> bool:
        texts = [document["contents"] for document in documents]
        return 1 <= len(texts) <= self._load.top_k and all(isinstance(text, str) for text in texts)


# -------------------------------------------------------------------------------- figures as text

HEADER = f"{'clients':>7}  {'requests/s':>10}  {'p50 ms':>9}  {'p95 ms':>9}  {'p99 ms':>9}  errors"


def table_row(figures: Figures) -> str:
    """One line under HEADER."""
    latencies = (f"{'-' if ms is None else f'{ms:.1f}':>9}" for ms in figures[4:7])
    errors = ", ".join(f"{count} {kind}" for kind, count in figures.errors.items()) or "none"
    return "  ".join([f"{figures.concurrency:>7}", f"{figures.requests_per_s:>10.1f}", *latencies, errors])


def percentile(ordered: list[float], percent: int) -> float:
    """The least of the sorted, non-empty values that at least `percent` (1 to 100) of them do not exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


def _milliseconds(ordered: list[float], percent: int) -> float | None:
    return round(1000 * percentile(ordered, percent), 3) if ordered else None


# ----------------------------------------------------------------------------------- wire formats


def wire_format(name: str, batch: int) -> Wire:
    """The format for `batch` queries a request; RetrieverError where it takes one query only."""
    if batch > 1 and name not in BATCH_WIRES:
        raise RetrieverError(f"the wire format {name} takes one query a request, not {batch}")
    return BATCH_WIRES[name] if batch > 1 else WIRES[name]


def _search_documents(answer: Any) -> list[list[dict[str, Any]]]:
    documents, scores = answer
    return [[document for document, _ in zip(documents, scores, strict=True)]]


def _batch_search_documents(answer: Any) -> list[list[dict[str, Any]]]:
    return [_search_documents(found)[0] for found in zip(*answer, strict=True)]


def _retrieve_documents(answer: Any) -> list[list[dict[str, Any]]]:
    return [[entry["document"] for entry in found] for found in answer["result"]]


WIRES = {
    "research": Wire(
        "/search",
        lambda queries, top_k: {"query": queries[0], "top_n": top_k, "return_score": True},
        _search_documents,
    ),
    "search_r1": Wire(
        "/retrieve",
        lambda queries, top_k: {"queries": queries, "topk": top_k, "return_scores": True},
        _retrieve_documents,
    ),
    "skyrl": Wire(
        "/retrieve",
        lambda queries, top_k: {"query": queries[0], "topk": top_k, "return_scores": True},
        _retrieve_documents,
    ),
}
BATCH_WIRES = {
    "research": Wire(
        "/batch_search",
        lambda queries, top_k: {"query": queries, "top_n": top_k, "return_score": True},
        _batch_search_documents,
    ),
    "search_r1": WIRES["search_r1"],
}
