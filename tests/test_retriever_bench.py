"""The bench: on our own server in each wire format, on servers that fail, and its arithmetic."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from retriever_process import CONTENTS, DEADLINE_S, ROOT, ROWS, start, wait_until_ready

from benchmarks.load import (
    BATCH_WIRES,
    WIRES,
    LevelResult,
    LoadProfile,
    QuerySupply,
    Samples,
    measure,
    percentile,
    read_queries,
    table_row,
)
from retriever_server.__main__ import main
from retriever_server.building.build import BuildOptions, create_index
from retriever_server.errors import RetrieverError
from retriever_server.models.encoder import set_threads

QUERIES = [contents.splitlines()[1] for contents in CONTENTS.values()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our own server over a small index: its address."""
    folder = tmp_path_factory.mktemp("bench")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    set_threads(1)
    create_index(BuildOptions(corpus=corpus, target=folder / "index", encoder="minilm"))
    process, url = start(folder / "index", "--threads", "1")
    with process:
        try:
            wait_until_ready(process)
            yield url
        finally:
            process.kill()


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """A file with a query a line."""
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(QUERIES))
    return path


def run_bench(*arguments: str) -> Result:
    options = ["--concurrency", "1,4", "--requests", "12", "--warm-up", "0.1", "--json", *arguments]
    return CliRunner().invoke(main, ["bench", *options])


def levels(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("wire", "batch"), [(wire, 1) for wire in WIRES] + [(wire, 3) for wire in BATCH_WIRES]
)
def test_our_server_is_measured_in_every_wire_format(
    server: str, queries: Path, wire: str, batch: int
) -> None:
    result = run_bench("--url", server, "--wire", wire, "--batch", str(batch), "--queries", str(queries))
    for level, concurrency in zip(levels(result), (1, 4), strict=True):
        assert (level["concurrency"], level["requests"], level["errors"]) == (concurrency, 12, {})
        assert 0 < level["p50_ms"] <= level["p95_ms"] <= level["p99_ms"]
        rounded = 0.001 + 0.005 * level["seconds"] / level["requests_per_s"]  # to milliseconds, to hundredths
        assert level["seconds"] == pytest.approx(12 / level["requests_per_s"], abs=rounded)


def test_the_ceiling_answers_in_every_wire_format(queries: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.ceiling"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            for wire in WIRES:
                for level in levels(run_bench("--url", url, "--wire", wire, "--queries", str(queries))):
                    assert (level["requests"], level["errors"]) == (12, {})
        finally:
            process.kill()


# -------------------------------------------------------------------------------- servers that fail


@contextmanager
def answering(answers: list[tuple[int, bytes]], seen: Event | None = None) -> Iterator[str]:
    """A server that gives these answers, status and body, in turn; status 0 hangs up. Each sets `seen`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        asked = 0

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                status, body = answers[Handler.asked % len(answers)]
                Handler.asked += 1
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            if seen is not None:
                seen.set()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        httpd.server_close()


def result_of(load: LoadProfile, concurrency: int) -> LevelResult:
    found: list[LevelResult] = []
    asyncio.run(measure(load, [concurrency], QUERIES, found.append))
    return found[0]


RIGHT = json.dumps([[{"id": "1", "contents": "text"}], [0.5]]).encode()
WRONG_ANSWERS = [
    b"no JSON",
    b"[]",
    b"{}",
    b"[[], []]",
    b"null",
    b'[[{"id": "1"}], [0.5]]',
    b'[[{"id": "1", "contents": 7}], [0.5]]',
    b'[[{"id": "1", "contents": "text"}], []]',
    b'[{"id": "1", "contents": "text"}]',
    json.dumps([[{"id": "1", "contents": "text"}] * 6, [0.5] * 6]).encode(),
]


def test_errors_are_counted_by_kind_and_not_as_requests() -> None:
    answers = [(200, RIGHT), (500, b"{}"), (200, RIGHT), (200, b"{}"), (0, b""), (503, b"{}")]
    with answering(answers) as url:
        load = LoadProfile(url, requests=60, warm_up_s=0)
        result = result_of(load, concurrency=1)
    assert result.requests == 20
    assert result.errors == {"HTTP 500": 10, "wrong answer": 10, "connection": 10, "HTTP 503": 10}
    assert "10 HTTP 500, 10 wrong answer" in table_row(result)


@pytest.mark.parametrize("body", WRONG_ANSWERS)
def test_an_answer_of_the_wrong_shape_is_an_error(body: bytes) -> None:
    with answering([(200, body)]) as url:
        result = result_of(LoadProfile(url, requests=2, warm_up_s=0), concurrency=2)
    assert (result.requests, result.errors) == (0, {"wrong answer": 2})
    assert (result.p50_ms, result.requests_per_s) == (None, 0)


def test_a_server_that_does_not_answer_in_time_is_an_error() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def ask() -> list[LevelResult]:
        found: list[LevelResult] = []
        async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            load = LoadProfile(f"http://127.0.0.1:{port}", requests=3, warm_up_s=0, timeout_s=0.2)
            await measure(load, [3], QUERIES, found.append)
        return found

    [result] = asyncio.run(ask())
    assert (result.requests, result.errors) == (0, {"time-out": 3})


def test_mistakes_are_told_in_one_line(server: str, queries: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    mistakes = [
        (
            ["--url", "http://127.0.0.1:1", "--queries", str(queries)],
            "http://127.0.0.1:1/search: no answer: ",
        ),
        (["--url", "127.0.0.1", "--queries", str(queries)], "no answer: "),
        (["--url", f"{server}/nowhere", "--queries", str(queries)], "/nowhere/search: HTTP 404, "),
        (["--url", server, "--queries", str(empty)], "empty.txt: no queries in it"),
        (
            ["--url", server, "--queries", str(queries), "--wire", "skyrl", "--batch", "2"],
            "one query per request",
        ),
    ]
    for arguments, message in mistakes:
        result = run_bench(*arguments)
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith("Error: ") and message in result.stderr
        assert result.stderr.count("\n") == 1


def test_interrupted_it_shows_what_it_measured(queries: Path) -> None:
    seen = Event()
    with answering([(200, RIGHT)], seen) as url:
        options = ["--url", url, "--queries", str(queries), "--warm-up", "0.1", "--seconds", "600", "--json"]
        command = [sys.executable, "-m", "retriever_server", "bench", *options]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stderr is not None
            process.stderr.readline()  # the queries repeat: so the warm-up is nearly over
            time.sleep(1)
            for _ in range(3):  # the first began before this line, the second was counted before the third
                seen.clear()
                assert seen.wait(DEADLINE_S)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=120)
    [level] = [json.loads(line) for line in out.splitlines()]
    assert process.returncode != 0 and level["concurrency"] == 1 and level["requests"] > 0


# ---------------------------------------------------------------------------- queries and result


def test_queries_are_read_in_each_form(tmp_path: Path) -> None:
    path = tmp_path / "queries"
    path.write_text(" one \n\ntwo\none\n")
    assert read_queries(path) == ["one", "two"]
    path.write_text('{"question": "one\u2028line"}\n\n{"query": "two", "id": 1}\n')
    assert read_queries(path) == ["one\u2028line", "two"]


@pytest.mark.parametrize("row", ['{"text": "x"}', '{"query": 7}', "[]", "{", '{"question": ""}'])
def test_a_row_that_is_no_query_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(f'{{"question": "one"}}\n{row}\n')
    with pytest.raises(RetrieverError, match="queries.jsonl:2: "):
        read_queries(path)


def test_queries_repeat_only_when_all_were_asked_and_then_with_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    supply = QuerySupply(["a", "b", "c"])
    assert supply.take(1) + supply.take(2) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    assert supply.take(2) + supply.take(4) == ["a", "b", "c", "a", "b", "c"]
    assert capsys.readouterr().err.count("WARNING: all 3 queries were sent") == 1


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in ordered
    assert 100 * sum(value <= found for value in ordered) >= percent * len(ordered)
    assert 100 * sum(value < found for value in ordered) < percent * len(ordered)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_percentiles_do_not_fall(latencies: list[float]) -> None:
    result = Samples(latencies=latencies).result(1)
    assert result.p50_ms is not None and result.p95_ms is not None and result.p99_ms is not None
    assert result.p50_ms <= result.p95_ms <= result.p99_ms <= round(1000 * max(latencies), 3)
