"""Measure the sharded index on this machine: questions a second, and the time without answers after a kill.

    python -m benchmarks.cluster --rows 200000 --dimension 384

Starts a Ray of its own for 1 and 2 shards, and for 1 and 2 replicas of one shard. Figures are printed as
lines of JSON. Shards of one machine share its cores and memory: what they gain there is their threads' work.
"""

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import ray

from retriever_server.building.store import MANIFEST_FILE, FileMark, Manifest
from retriever_server.corpus import CORPUS_FILE
from retriever_server.errors import Unavailable
from retriever_server.indexes import Index, Queries
from retriever_server.indexes.flat import FILE, FlatIndex, FlatWriter
from retriever_server.models.encoder import set_threads
from retriever_server.serving.cluster import ClusterOptions, ShardedIndex

TOP_K = 10


def write_index(directory: Path, vectors: np.ndarray) -> None:
    """An index directory over `vectors` float32 [n, dimension], with an empty corpus."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CORPUS_FILE).touch()
    with FlatWriter(directory / FILE, *vectors.shape) as file:
        file.append(vectors)
    manifest = Manifest(
        kind="flat",
        dimension=vectors.shape[1],
        count=len(vectors),
        corpus=FileMark.of(directory / CORPUS_FILE),
        files={FILE: FileMark.of(directory / FILE)},
        versions={},
    )
    (directory / MANIFEST_FILE).write_text(manifest.model_dump_json())


def queries_a_second(index: Index, asked: np.ndarray, seconds: float) -> float:
    """Batches `asked` [q, dimension], one after the other as the server sends them."""
    index.search(Queries([], asked), TOP_K)
    batches, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        index.search(Queries([], asked), TOP_K)
        batches += 1
    return batches * len(asked) / (time.monotonic() - began)


def longest_silence(index: ShardedIndex, asked: np.ndarray, threads: int, seconds: float) -> dict[str, float]:
    """The longest time without an answer to any of `threads` callers, who ask one query at a time for
    `seconds` while a shard actor is killed, and how many questions were given up.
    """
    answered, given_up, until = [time.monotonic()], [0], time.monotonic() + seconds

    def ask() -> None:
        while time.monotonic() < until:
            try:
                index.search(Queries([], asked[:1]), TOP_K)
                answered.append(time.monotonic())
            except Unavailable:
                given_up[0] += 1

    callers = [threading.Thread(target=ask) for _ in range(threads)]
    for caller in callers:
        caller.start()
    time.sleep(1)
    ray.kill(index.actors()[0], no_restart=False)
    for caller in callers:
        caller.join()
    times = np.sort(answered)
    return {"longest_silence_s": round(float(np.diff(times).max()), 3), "given_up": given_up[0]}


@contextmanager
def sharded(directory: Path, shards: int, replicas: int) -> Iterator[ShardedIndex]:
    """The index on a Ray of its own."""
    index = ShardedIndex(directory, ClusterOptions(shards=shards, replicas=replicas))
    try:
        yield index
    finally:
        index.close()
        ray.shutdown()


def tell(what: str, **figures: float) -> None:
    """Print one line of figures."""
    print(json.dumps({"what": what, **figures}), flush=True)


@click.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--dimension", default=384, show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Of each measurement; a kill has 20.")
def main(rows: int, dimension: int, seconds: float) -> None:
    """Measure the sharded index on this machine."""
    random = np.random.default_rng(0)
    vectors, asked = (random.normal(size=(n, dimension)).astype("f4") for n in (rows, 64))
    for matrix in (vectors, asked):
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    set_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_index(directory, vectors)
        for batch in (1, 64):
            rate = queries_a_second(FlatIndex(directory), asked[:batch], seconds)
            tell("without Ray, 1 thread", batch=batch, queries_a_second=round(rate, 1))
        for shards in (1, 2):
            with sharded(directory, shards, replicas=1) as index:
                for batch in (1, 64):
                    rate = queries_a_second(index, asked[:batch], seconds)
                    tell(f"{shards} shards", batch=batch, queries_a_second=round(rate, 1))
        for replicas in (1, 2):
            with sharded(directory, 1, replicas) as index:
                tell(f"a kill, {replicas} replicas", **longest_silence(index, asked, threads=4, seconds=20))


if __name__ == "__main__":
    main()
