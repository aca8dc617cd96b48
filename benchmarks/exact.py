"""Exact: a flat index against brute force in double precision, query by query.

    python -m benchmarks.exact INDEX_DIR --queries queries.txt --count 10000

Compares rows, their order and their scores, rounded as the index rounds them, equal ones in corpus order.
Exits 1 unless all are the same.
"""

import sys
from pathlib import Path

import click
import numpy as np

from benchmarks.load import read_queries
from retriever_server.building.store import open_store
from retriever_server.indexes import Queries
from retriever_server.indexes.faiss_file import FILE, SCORE_DECIMALS
from retriever_server.indexes.flat import map_vectors

BATCH = 64


@click.command()
@click.argument("index_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--count", default=10_000, show_default=True)
@click.option("--top-k", default=10, show_default=True)
def main(index_dir: Path, queries: Path, count: int, top_k: int) -> None:
    """See the top of this file."""
    store = open_store(index_dir)
    assert store.encoder is not None
    asked = store.encoder.encode_queries(read_queries(queries)[:count])
    vectors = np.array(map_vectors(index_dir / FILE), np.float64)
    different = 0
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        scores, rows = store.index.search(Queries([], part), top_k)
        true_scores, true_rows = brute_force(vectors, part, top_k)
        different += int(((rows != true_rows) | (scores != true_scores)).any(axis=1).sum())
    print(
        f"{len(asked):,} queries, {len(vectors):,} passages, {top_k} each: {different} not as by brute force"
    )
    sys.exit(1 if different else 0)


def brute_force(vectors: np.ndarray, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores, rows), each [queries, top_k], of float64 vectors [n, dimension]."""
    scores = np.round(queries.astype(np.float64) @ vectors.T, SCORE_DECIMALS)
    rows = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)[:, :top_k]
    return np.take_along_axis(scores, rows, axis=1), rows


if __name__ == "__main__":
    main()
