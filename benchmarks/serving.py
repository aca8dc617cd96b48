"""What the scripts here share: a server process of their own, its memory, and a small HTTP request."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START_DEADLINE_S = 300


def start(index: Path, *options: str, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """A server on `index`, ready, and its port."""
    serve = [sys.executable, "-m", "retriever_server", "serve", str(index), "--port", str(port), *options]
    process = subprocess.Popen([*serve, "--die-with-parent"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
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


def questions_of(index: Path, count: int) -> list[tuple[str, str]]:
    """(query, id it must find first): passages of the corpus, which find themselves; as many as have
    contents of their own, at most `count`.
    """
    found: dict[str, str] = {}
    twice: set[str] = set()
    with (index / "corpus.jsonl").open() as lines:
        for line in lines:
            row = json.loads(line)
            query = row["contents"][:300]
            if query in found:
                twice.add(query)
            found[query] = row["id"]
            if len(found) >= count + len(twice):
                break
    return [(query, name) for query, name in found.items() if query not in twice]


def wait_until(condition: Any, what: str, deadline_s: float = START_DEADLINE_S) -> None:
    """Poll; ends the script when `condition()` is not true in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"not in {deadline_s} s: {what}")
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether a connection is accepted."""
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
