"""Own time: what HTTP, queueing and JSON take of a request, in processor time.

    python -m benchmarks.own_time INDEX_DIR --queries my.questions.jsonl --clients 64

The server is asked as it is, and then with an encoder and an index that sleep for as long as the real ones
took a query: the same requests in like batches, with nothing left but our own code. No cache. Prints both in
milliseconds of a core a request, and the share.
"""

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import LevelResult, LoadProfile, measure, read_queries
from benchmarks.serving import start, start_module
from benchmarks.wsgi import processor_seconds

STAGES = ("encode", "search")
WARM_UP_S = 2.0


class SleepingEncoder:
    """Takes its time for each text; its vectors are all the same."""

    def __init__(self, dimension: int, seconds: float) -> None:
        self._vector, self._seconds = np.full(dimension, dimension**-0.5, np.float32), seconds

    def encode_in_parts(self, texts: list[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """See retriever_server.models.encoder.Encoder."""
        time.sleep(self._seconds * len(texts))
        yield list(range(len(texts))), np.tile(self._vector, (len(texts), 1))


class SleepingIndex:
    """Takes its time for each query, and finds other rows each time."""

    def __init__(self, count: int, seconds: float) -> None:
        self._count, self._seconds, self._asked = count, seconds, 0

    def search(self, queries: Any, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """See retriever_server.indexes.Index."""
        asked = len(queries.texts)
        time.sleep(self._seconds * asked)
        self._asked += asked
        first = np.arange(self._asked, self._asked + asked)[:, None] * depth
        rows = (first + np.arange(depth)) % self._count
        return np.linspace(0.9, 0.8, depth)[None].repeat(asked, axis=0), rows


@click.command()
@click.argument("index_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--clients", default=64, show_default=True)
@click.option("--seconds", default=8.0, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--encoder-dtype", default="float16", show_default=True)
@click.option("--sleep", nargs=2, type=float, hidden=True, help="Seconds a query of each stage: serve so.")
def main(
    index_dir: Path,
    queries: Path,
    clients: int,
    seconds: float,
    rounds: int,
    encoder_dtype: str,
    sleep: tuple[float, float] | None,
) -> None:
    """See the top of this file."""
    if sleep:
        serve_sleeping(index_dir, *sleep)
    asked = read_queries(queries)
    for _ in range(rounds):
        options = ("--cache-size", "0", "--encoder-dtype", encoder_dtype)
        whole, stages = cost(start(index_dir, *options), asked, clients, seconds)
        words = ["--queries", str(queries), "--sleep", *(f"{stages[stage]:.6f}" for stage in STAGES)]
        sleeping = start_module("benchmarks.own_time", str(index_dir), *words)
        own, _ = cost(sleeping, asked, clients, seconds)
        share = own["cost"] / whole["cost"]
        click.echo(
            f"whole: {whole['rate']:.0f} requests/s, {whole['cost']:.2f} ms of a core a request; "
            f"our own code: {own['rate']:.0f} requests/s, {own['cost']:.2f} ms; share {share:.1%}"
        )


def cost(started: Any, queries: list[str], clients: int, seconds: float) -> tuple[dict[str, float], dict]:
    """`rate` and `cost`, milliseconds of a core a request, of a server that is then ended; and the seconds a
    query took in each stage.
    """
    process, port = started
    try:
        url, found = f"http://127.0.0.1:{port}", list[LevelResult]()
        warm = LoadProfile(url, seconds=WARM_UP_S, warm_up_s=0.0)
        asyncio.run(measure(warm, [clients], queries[::-1], lambda figures: None))
        before = processor_seconds(process.pid)
        asyncio.run(
            measure(LoadProfile(url, seconds=seconds, warm_up_s=0.0), [clients], queries, found.append)
        )
        busy = processor_seconds(process.pid) - before
        rate = found[0].requests_per_s
        figures = {"rate": rate, "cost": 1000 * busy / (rate * found[0].seconds)}
        return figures, stage_seconds(url)
    finally:
        process.terminate()
        process.wait(timeout=60)


def stage_seconds(url: str) -> dict[str, float]:
    """Seconds a query in each stage, by what the server counts of itself."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        families = text_string_to_metric_families(reply.read().decode())
    sums = {
        (sample.name, sample.labels["stage"]): sample.value
        for family in families
        for sample in family.samples
        if re.fullmatch("retriever_(stage_seconds|batch_size)_sum", sample.name)
    }
    return {
        stage: sums["retriever_stage_seconds_sum", stage] / max(1, sums["retriever_batch_size_sum", stage])
        for stage in STAGES
    }


def serve_sleeping(index_dir: Path, encode_s: float, search_s: float) -> None:
    """The server itself, over the sleeping stages."""
    from retriever_server.building.store import open_store
    from retriever_server.http import server
    from retriever_server.serving.pipeline import ServingLimits
    from retriever_server.serving.served import Served
    from retriever_server.serving.service import Searcher

    served = Served()

    def load(tell: Any) -> Searcher:
        store = open_store(index_dir, check_contents=False)
        encoder = SleepingEncoder(store.manifest.dimension or 0, encode_s)
        index = SleepingIndex(store.manifest.count, search_s)
        slow: Any = replace(store, encoder=encoder, index=index)
        return Searcher(slow, ServingLimits(cache_mib=0), served.metrics)

    server.run_server(load, served, server.ListenOptions("127.0.0.1", 0, 256))


if __name__ == "__main__":
    main()
