"""A small corpus of people, and a retrieval server as a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests

from retriever_server.building.build import BuildOptions, create_index
from retriever_server.building.store import Store
from retriever_server.models.encoder import set_threads
from retriever_server.serving.service import Searcher

ROOT = Path(__file__).parents[1]
DEADLINE_S = 120
PLACES = ("Rome", "Zürich", "東京", "Cairo", "Lima", "Oslo", "Perth", "Quito")
TRADES = ("baker", "sailor", "poet", "judge", "farmer", "singer", "painter", "spy")


def people(first_year: int) -> list[dict[str, Any]]:
    """64 rows; another year makes another corpus with the same ids."""
    pairs = [(place, trade) for place in PLACES for trade in TRADES]
    return [
        {
            "id": number,
            "contents": f"{place}\nThe best known {trade} of {place} was born in {first_year + 7 * number}.",
        }
        for number, (place, trade) in enumerate(pairs)
    ]


ROWS = people(1500)
CONTENTS = {str(row["id"]): row["contents"] for row in ROWS}


def build_index(target: Path, rows: list[dict[str, Any]], kind: str = "flat", force: bool = False) -> None:
    """An index of `rows` in the folder `target`; one of kind bm25 is served in a second, one with an encoder
    in fifteen.
    """
    corpus = target.with_suffix(".jsonl")
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    set_threads(1)  # on a busy machine two threads that wait for each other take longer than one
    create_index(BuildOptions(corpus=corpus, target=target, encoder="minilm", kind=kind, force=force))


def start(index: Path, *options: str) -> tuple[subprocess.Popen, str]:
    """A server process and its address, as soon as it listens."""
    arguments = [sys.executable, "-m", "retriever_server", "serve", str(index), "--port", "0", *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("listening on http://127.0.0.1:"), line
    return process, line.split()[2].rstrip(",")


def wait_until_ready(process: subprocess.Popen) -> None:
    """Until it answers searches."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready: http://127.0.0.1:"), line


@contextmanager
def serving(index: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server that answers searches, and its address; killed on leaving."""
    process, url = start(index, "--threads", "1", *options)
    with process:
        try:
            wait_until_ready(process)
            yield process, url
        finally:
            process.kill()


def ask(url: str, route: str, body: dict) -> Any:
    """The answer to a request that must succeed."""
    reply = requests.post(f"{url}{route}", json=body, timeout=DEADLINE_S)
    assert reply.status_code == 200, reply.text
    return reply.json()


def document(number: int) -> dict[str, str]:
    """Row `number`, as it is answered."""
    return {"id": str(number), "contents": CONTENTS[str(number)]}


class Hit(NamedTuple):
    """One passage of an answer."""

    id: str
    contents: str
    score: float


def search_store(store: Store, queries: list[str], top_k: int) -> list[list[Hit]]:
    """What a service over `store` answers to `queries`."""
    searcher = Searcher(store)
    results = searcher.passages(queries, top_k)
    searcher.close()
    return [
        [Hit(**json.loads(line), score=score) for line, score in zip(*passages, strict=True)]
        for passages in results
    ]
