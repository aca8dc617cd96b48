"""Hostile: malformed requests of many kinds; each must be refused with a 4xx, and searches still answered.

    python benchmarks/hostile.py INDEX_DIR --requests 20000 --seed 1

Starts a server of its own. A request that never becomes complete may also be cut off without an answer.
Prints a count by kind and status; exits 1 when anything else came back, when a 4xx to a malformed body names
no field, or when a search that is sent in between fails or takes over `--search-deadline` seconds.
"""

import contextlib
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
from serving import answer, server

from retriever_server.http.wire import MAX_QUERY_CHARS

ROUTES = {"/search": "query", "/batch_search": "query", "/retrieve": "queries"}
SOCKET_S = 30
CLOSED = 0  # in place of a status: the connection was closed without an answer
WORKERS = 16


class Hostile(NamedTuple):
    """What to send; whether it is complete, so that an answer is due; whether it is a body, so that the
    answer must name a field.
    """

    kind: str
    data: bytes
    complete: bool = True
    is_body: bool = False


def post(route: str, body: bytes, *headers: bytes) -> bytes:
    """A whole request."""
    lines = [f"POST {route} HTTP/1.1".encode(), b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


# ------------------------------------------------------------------------------------------------ bodies


def wrong_value(rng: random.Random) -> Any:
    """Nothing that any field takes."""
    number = rng.choice([-1, 0, 10**6, -(10**30), 1.5, True, "5", [], {}, [[1]], {"a": 1}])
    return rng.choice([number, [number], {"x": number}])


def wrong_field(rng: random.Random) -> bytes:
    route, name = rng.choice(list(ROUTES.items()))
    good: dict[str, Any] = {name: "x" if route == "/search" else ["x"]}
    limit, flag = ("topk", "return_scores") if route == "/retrieve" else ("top_n", "return_score")
    wrong = rng.choice([name, limit, flag, "exclude_ids"])
    bad = {
        name: lambda: rng.choice(
            [wrong_value(rng), "", " ", "x" * (MAX_QUERY_CHARS + 1), ["x"] * 1025, ["x", None]]
        ),
        limit: lambda: rng.choice([wrong_value(rng), 1001, 10**400, 2.0001, "1"]),
        flag: lambda: rng.choice([1, 0, "true", [], {}, 1e9]),
        "exclude_ids": lambda: rng.choice(
            [1, "x", {}, [True], [1.5], [[[]]], ["x" * 1025], [1] * 10_001, [{}]]
        ),
    }[wrong]()
    if name == wrong and route == "/search" and bad == "5":
        bad = 5
    if name == wrong and route != "/search" and bad in ([], ["5"]):
        bad = [5]
    return post(route, json.dumps(good | {wrong: bad}).encode())


def broken_json(rng: random.Random) -> bytes:
    whole = json.dumps({"query": "who wrote Hamlet?", "top_n": 3}).encode()
    pieces = [
        whole[: rng.randrange(len(whole))],
        whole + b"}",
        whole.replace(b'"', b"'"),
        b"\xef\xbb\xbf" + whole,
        whole.replace(
            b"who", rng.choice([b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\0"])
        ),
        whole.replace(b"who", rng.choice([b"\\x00", b"\\u12"])),
        rng.choice([b"[", b'{"a":', b'{"query":[']) * rng.choice([10, 1000, 100_000]),
        b'{"query":"x","top_n":%b}' % (b"9" * rng.choice([400, 5000])),
        b'{"query":"x","top_n":%b}' % rng.choice([b"NaN", b"Infinity", b"1e999", b"-0.0", b"0x10", b"01"]),
        rng.randbytes(rng.randrange(1, 300)),
        json.dumps(rng.choice([[], "x", 1, None, True, [{"query": "x"}]])).encode(),
    ]
    return post(rng.choice(["/search", "/batch_search"]), rng.choice(pieces))


def too_large(rng: random.Random) -> bytes:
    return post(rng.choice(list(ROUTES)), b" " * (8 * 2**20 + rng.randrange(1, 99)))


# -------------------------------------------------------------------------------------------------- HTTP


def wrong_route(rng: random.Random) -> bytes:
    path = rng.choice(
        ["/nowhere", "/search/", "/%ff%fe", "/..%2f..%2fetc/passwd", "//search", "/" + "a" * 3000]
    )
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "BREW"])
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def wrong_method(rng: random.Random) -> bytes:
    method, path = rng.choice(
        [("GET", "/search"), ("PUT", "/retrieve"), ("DELETE", "/health"), ("POST", "/")]
    )
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def chunked(rng: random.Random) -> bytes:
    body = rng.choice([b"", b'{"query":', b"[1]"])
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    return (
        b"POST /search HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + chunks
    )


def bad_framing(rng: random.Random) -> bytes:
    header = rng.choice(
        [
            b"Content-Length: -5",
            b"Content-Length: abc",
            b"Content-Length: 5, 6",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: 99999999999999999999",
            b"Content-Length: +2",
            b"Content-Length: 0x2",
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: chunked, identity",
            b"Transfer-Encoding: chunked\r\nContent-Length: 2",
            b"Transfer-Encoding: chunked\r\nX: y\r\n\r\nZZ\r\n{}",
            b"Transfer-Encoding: chunked\r\nX: y\r\n\r\n-1\r\n{}",
            b"Transfer-Encoding: chunked\r\nX: y\r\n\r\nffffffffffffffffff\r\n{}",
        ]
    )
    return b"POST /search HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n\r\n{}" % header


def bad_head(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"GET\r\n\r\n",
            b"GET /search\r\n\r\n",
            b"GET /search HTTP/9.9\r\nHost: x\r\n\r\n",
            b"GET /\0search HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"GET /search HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /search HTTP/1.1\r\nX: \0\r\n\r\n",
            b"GET /search HTTP/1.1\r\nX y: z\r\n\r\n",
            b"GET /search HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
            b"GET /search HTTP/1.1\r\nX: " + b"y" * 600_000 + b"\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
            rng.randbytes(400).replace(b"\n", b"") + b"\r\n\r\n",
        ]
    )


def cut_off(rng: random.Random) -> bytes:
    whole = post("/search", json.dumps({"query": "x" * 200}).encode())
    return whole[: rng.randrange(1, len(whole))]


KINDS: list[tuple[int, Callable[[random.Random], bytes], bool, bool]] = [
    # weight, maker, complete, is_body
    (40, wrong_field, True, True),
    (25, broken_json, True, True),
    (1, too_large, True, False),
    (8, wrong_route, True, False),
    (5, wrong_method, True, False),
    (4, chunked, True, True),
    (6, bad_framing, False, False),
    (6, bad_head, False, False),
    (5, cut_off, False, False),
]


def make(seed: int) -> Hostile:
    """The hostile request of this number."""
    rng = random.Random(seed)
    _, maker, complete, is_body = rng.choices(KINDS, weights=[kind[0] for kind in KINDS])[0]
    return Hostile(maker.__name__, maker(rng), complete, is_body)


# -------------------------------------------------------------------------------------------------- load


def exchange(port: int, data: bytes, complete: bool) -> tuple[int, bytes]:
    """Status and body of what comes back until the server closes; CLOSED if nothing does. What is not
    complete is followed by the end of our side, so that the server need not wait for the rest.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=SOCKET_S) as connection:
        received = b""
        with contextlib.suppress(OSError):  # refused while it was being sent: the answer may be there already
            connection.sendall(data)
        try:
            if not complete:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except TimeoutError:
            return -1, b"no end of the connection"
        except OSError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]), body) if len(words) > 1 and words[1].isdigit() else (CLOSED, received)


def fault(request: Hostile, status: int, body: bytes) -> str | None:
    """What is wrong with an answer, if anything."""
    if status == CLOSED:
        return "no answer" if request.complete else None
    if not 400 <= status < 500:
        return f"status {status}"
    if b"Traceback" in body:
        return "a stack trace"
    if request.is_body and not json.loads(body).get("field"):
        return "names no field"
    return None


def attack(port: int, seed: int) -> tuple[str, int, str | None]:
    """(kind, status, fault) of one request."""
    request = make(seed)
    status, body = exchange(port, request.data, request.complete)
    return request.kind, status, fault(request, status, body)


def still_answers(port: int, deadline_s: float) -> bool:
    """Whether a search is answered rightly, in time."""
    began = time.monotonic()
    found = answer(port, {"query": "who wrote Hamlet?", "top_n": 3})
    return len(found) > 0 and time.monotonic() - began <= deadline_s


@click.command()
@click.argument("index_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--requests", "count", default=20_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--search-deadline", default=5.0, show_default=True, help="Seconds for a search in between.")
def main(index_dir: Path, count: int, seed: int, search_deadline: float) -> None:
    """See the top of this file."""
    statuses: Counter[tuple[str, int]] = Counter()
    faults: Counter[str] = Counter()
    searches = failed = 0
    with server(index_dir, "--threads", "1") as (_, port), ThreadPoolExecutor(WORKERS) as workers:
        for start in range(0, count, 500):
            seeds = range(seed * 10**9 + start, seed * 10**9 + min(start + 500, count))
            for number, (kind, status, wrong) in zip(
                seeds, workers.map(lambda number: attack(port, number), seeds), strict=True
            ):
                statuses[kind, status] += 1
                if wrong:
                    faults[f"{kind}: {wrong}"] += 1
                    print(f"request {number}: {kind}: {wrong}: {make(number).data[:300]!r}")
            searches += 1
            failed += not still_answers(port, search_deadline)
    for (kind, status), number in sorted(statuses.items()):
        print(f"{kind:14} {status or 'closed':>6} {number:7}")
    print(f"{count} hostile requests, {sum(faults.values())} answered wrongly")
    print(f"{searches} searches in between, {failed} failed or late")
    sys.exit(1 if faults or failed else 0)


if __name__ == "__main__":
    main()
