"""What the scripts here share: a server process of their own, its memory, and a small HTTP request."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUERY_CHARS = 80


def start(index: Path, *options: str, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """A server on `index`, ready, and its port."""
    words = ["serve", str(index), "--port", str(port), "--die-with-parent", *options]
    return start_module("retriever_server", *words)


def start_module(module: str, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """A server that a module is the command of, ready, and its port."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready: "):
        raise SystemExit("the server did not start")
    return process, int(line.split()[1].rsplit(":", 1)[1])


@contextmanager
def server(index: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that is ended on leaving."""
    process, port = start(index, *options)
    try:
        yield process, port
    finally:
        process.terminate()
        process.wait(timeout=60)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def answer(port: int, body: dict[str, Any], route: str = "/search", timeout_s: float = 60) -> Any:
    """The parsed answer to one request."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{route}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=timeout_s) as reply:
        return json.load(reply)


def questions_of(index: Path, port: int, count: int) -> list[tuple[str, str]]:
    """At most `count` pairs (query, id it must find first): beginnings of passages, those by which a server
    without other load finds them.
    """
    with (index / "corpus.jsonl").open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(2 * count), strict=False)]
    queries = [row["contents"][:QUERY_CHARS] for row in rows]
    best: list[list[dict[str, str]]] = []
    for start in range(0, len(queries), 64):
        best += answer(port, {"query": queries[start : start + 64], "top_n": 1}, "/batch_search")
    known = zip(queries, rows, best, strict=True)
    return [(query, row["id"]) for query, row, [hit] in known if hit["id"] == row["id"]][:count]
