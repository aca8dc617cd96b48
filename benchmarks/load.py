"""Load on any server of the known wire formats: requests/s, latencies and errors by kind.

    python -m benchmarks.load --url http://127.0.0.1:8000 --queries my.questions.jsonl
    python -m retriever_server bench --url ...        # the same

A closed loop: each of C clients sends its next request when its last one was answered, so a slow server gets
fewer requests, and its latencies are those of C patient clients. A latency goes from sending to the last
byte. The end of the time cuts off no request: those in progress are awaited and counted.

The client is one process on one core. `python -m benchmarks.ceiling` shows the most it can do, against a
server that answers at once. A server measured near that may be faster than it looks; start the command twice,
side by side, and add up. Where client and server share cores, the server lacks what the client takes,
whichever server it is.
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

from benchmarks.connection import HttpConnection
from retriever_server.errors import RetrieverError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
AT_LEAST_1 = click.IntRange(min=1)
SECONDS = click.FloatRange(min=0.1)
ERROR_PAUSE_S = 0.05  # a client whose request failed at once must not retry in a hot loop
SHAPE_ERRORS = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
Documents = list[list[dict[str, Any]]]
"""The documents of each query."""


class Wire(NamedTuple):
    """A wire format: the path, the body for some queries, and how to get the documents from the answer.

    `documents` raises one of SHAPE_ERRORS if the answer does not have this format.
    """

    path: str
    body: Callable[[list[str], int], dict[str, Any]]
    documents: Callable[[Any], Documents]


def _search_documents(answer: Any) -> Documents:
    documents, scores = answer
    return [[document for document, _ in zip(documents, scores, strict=True)]]


def _batch_search_documents(answer: Any) -> Documents:
    return [_search_documents(of_query)[0] for of_query in zip(*answer, strict=True)]


def _retrieve_documents(answer: Any) -> Documents:
    return [[entry["document"] for entry in entries] for entries in answer["result"]]


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


def wire_format(name: str, batch: int) -> Wire:
    """The format for `batch` queries per request; RetrieverError if it takes only one."""
    if batch > 1 and name not in BATCH_WIRES:
        raise RetrieverError(f"the wire format {name} takes one query per request, not {batch}")
    return BATCH_WIRES[name] if batch > 1 else WIRES[name]


@dataclass(frozen=True)
class LoadProfile:
    """What to send.

    A level lasts `seconds`, or `requests` requests if given, after `warm_up_s` seconds that are not counted;
    `timeout_s` bounds one request.
    """

    url: str
    wire: str = "research"
    top_k: int = 5
    batch: int = 1
    seconds: float = 10.0
    requests: int | None = None
    warm_up_s: float = 1.0
    timeout_s: float = 60.0

    @property
    def format(self) -> Wire:
        """The wire format; RetrieverError if it does not take `batch` queries."""
        return wire_format(self.wire, self.batch)

    @property
    def endpoint(self) -> str:
        """The URL that requests go to."""
        return self.url.rstrip("/") + self.format.path


class LevelResult(NamedTuple):
    """One level: `requests` were answered correctly in `seconds`, `errors` counts the others by kind.

    Percentiles are of the correct answers, in milliseconds, None if there was none.
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
    """What a level has measured so far: latencies of correct answers in seconds, and errors by kind."""

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.perf_counter)

    def result(self, concurrency: int) -> LevelResult:
        """The result, as if the level ended now."""
        seconds = time.perf_counter() - self.began
        ordered = sorted(self.latencies)
        p50, p95, p99 = (
            round(1000 * percentile(ordered, percent), 3) if ordered else None for percent in (50, 95, 99)
        )
        rate, errors = round(len(ordered) / seconds, 2), dict(self.errors.most_common())
        return LevelResult(concurrency, len(ordered), round(seconds, 3), rate, p50, p95, p99, errors)


def percentile(ordered: list[float], percent: int) -> float:
    """The least of the sorted, non-empty values that at least `percent` (1 to 100) of them do not exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


class QuerySupply:
    """The queries, one after the other; when they run out, from the first again, with one warning."""

    def __init__(self, queries: list[str]) -> None:
        self._queries = queries
        self._taken = 0

    def take(self, count: int) -> list[str]:
        """The next `count` queries."""
        numbers = range(self._taken, self._taken + count)
        self._taken += count
        if numbers.start <= len(self._queries) < numbers.stop:
            warning = f"WARNING: all {len(self._queries):,} queries were sent, they repeat from here on: "
            click.echo(warning + "a server with a cache looks faster than it is", err=True)
        return [self._queries[number % len(self._queries)] for number in numbers]


def read_queries(path: Path) -> list[str]:
    """The distinct queries of a file in order: one per line, or JSON Lines with "question" or "query".

    Raises RetrieverError for a file without queries, and with the line number for a row without one.
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


async def check_server(load: LoadProfile) -> None:
    """Send one request; RetrieverError when there is no answer, or an error that every request would get."""
    connection = HttpConnection(load.endpoint)
    body = load.format.body(["?"] * load.batch, load.top_k)
    try:
        async with asyncio.timeout(load.timeout_s):
            reply = await connection.post(json.dumps(body).encode())
    except OSError as error:  # includes a time-out
        raise RetrieverError(f"{load.endpoint}: no answer: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()
    if 400 <= reply.status < 500:
        advice = f"does it use the wire format {load.wire}?"
        text = reply.content[:200].decode(errors="replace")
        raise RetrieverError(f"{load.endpoint}: HTTP {reply.status}, {advice} Its answer: {text}")


async def measure(
    load: LoadProfile, levels: list[int], queries: list[str], report: Callable[[LevelResult], None]
) -> None:
    """Put the load on the server, one level (number of clients) after the other.

    `report` gets the result of each when it ends, and on cancellation that of the part measured so far.
    """
    supply = QuerySupply(queries)
    for concurrency in levels:
        await _run_clients(load, supply, concurrency, Samples(), load.warm_up_s, None)
        samples = Samples()
        try:
            await _run_clients(load, supply, concurrency, samples, load.seconds, load.requests)
        finally:
            report(samples.result(concurrency))


async def _run_clients(
    load: LoadProfile,
    supply: QuerySupply,
    concurrency: int,
    samples: Samples,
    seconds: float,
    requests: int | None,
) -> None:
    """Send requests from `concurrency` clients for `seconds` or `requests` requests; wait for all answers."""
    end = math.inf if requests else time.perf_counter() + seconds
    left = requests or math.inf
    endpoint = load.endpoint

    async def client() -> None:
        nonlocal left
        connection = HttpConnection(endpoint)
        try:
            while left > 0 and time.perf_counter() < end:
                left -= 1
                await _request(load, connection, supply.take(load.batch), samples)
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(client())


async def _request(
    load: LoadProfile, connection: HttpConnection, queries: list[str], samples: Samples
) -> None:
    body = json.dumps(load.format.body(queries, load.top_k)).encode()
    sent = time.perf_counter()
    try:
        async with asyncio.timeout(load.timeout_s):
            status, content = await connection.post(body)
        error = _error(load, status, content)
    except TimeoutError:
        error = "time-out"
    except OSError:
        error = "connection"
    if error is None:
        samples.latencies.append(time.perf_counter() - sent)
    else:
        samples.errors[error] += 1
        await asyncio.sleep(ERROR_PAUSE_S)


def _error(load: LoadProfile, status: int, content: bytes) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if status != 200:
        return f"HTTP {status}"
    try:
        results = load.format.documents(json.loads(content))
        correct = len(results) == load.batch and all(
            _is_ranking(documents, load.top_k) for documents in results
        )
    except SHAPE_ERRORS:
        correct = False
    return None if correct else "wrong answer"


def _is_ranking(documents: list[dict[str, Any]], top_k: int) -> bool:
    texts = [document["contents"] for document in documents]
    return 1 <= len(texts) <= top_k and all(isinstance(text, str) for text in texts)


HEADER = f"{'clients':>7}  {'requests/s':>10}  {'p50 ms':>9}  {'p95 ms':>9}  {'p99 ms':>9}  errors"


def table_row(result: LevelResult) -> str:
    """One line under HEADER."""
    latencies = (f"{'-' if ms is None else f'{ms:.1f}':>9}" for ms in result[4:7])
    errors = ", ".join(f"{count} {kind}" for kind, count in result.errors.items()) or "none"
    return "  ".join([f"{result.concurrency:>7}", f"{result.requests_per_s:>10.1f}", *latencies, errors])


def _levels(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    levels = [int(number) if number.strip().isdecimal() else 0 for number in value.split(",")]
    if min(levels) < 1:
        raise click.BadParameter("give numbers of clients separated by commas, such as 1,8,64")
    return levels


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
)
@click.option("--url", required=True, help="The server to measure, for example http://127.0.0.1:8000.")
@click.option("--queries", "queries_file", type=FILE, required=True, help="Queries to send.")
@click.option("--wire", type=click.Choice(list(WIRES)), default="research", help="Wire format.")
@click.option("--concurrency", callback=_levels, default="1,8,64,256", help="Clients.")
@click.option("--top-k", type=AT_LEAST_1, default=5, help="Passages per query.")
@click.option("--batch", type=AT_LEAST_1, default=1, help="Queries per request.")
@click.option("--seconds", type=SECONDS, default=10, help="Seconds per concurrency.")
@click.option("--requests", type=AT_LEAST_1, help="Requests per concurrency, instead of --seconds.")
@click.option("--warm-up", "warm_up_s", type=SECONDS, default=1, help="Seconds before.")
@click.option("--timeout", "timeout_s", type=SECONDS, default=60, help="Seconds; an error.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per concurrency instead of the table.")
def main(queries_file: Path, concurrency: list[int], as_json: bool, **options: Any) -> None:
    """Measure a server under load: requests/s, latencies, errors, for each number of clients at once.

    The server may be any that speaks ReSearch's /search (research), Search-R1's and veRL's /retrieve
    (search_r1) or SkyRL's (skyrl). The file of queries has one per line, or is JSON Lines with "question" or
    "query"; none is sent twice as long as there are enough. Ctrl-C prints what was measured so far.

    \b
    Examples:
      python -m retriever_server bench --url http://127.0.0.1:8000 --queries my.questions.jsonl
      python -m retriever_server bench --url http://10.0.0.7:8000 --wire search_r1 --queries queries.txt \\
          --concurrency 64 --seconds 30 --json
    """

    def report(result: LevelResult) -> None:
        click.echo(json.dumps(result._asdict()) if as_json else table_row(result))

    try:
        queries = read_queries(queries_file)
        load = LoadProfile(**options)
        asyncio.run(check_server(load))
        if not as_json:
            click.echo(HEADER)
        asyncio.run(measure(load, concurrency, queries, report))
    except (RetrieverError, OSError) as error:
        raise click.ClickException(" ".join(str(error).split())) from error


if __name__ == "__main__":
    main()
