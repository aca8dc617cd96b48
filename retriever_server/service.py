"""Searcher: queries in, passages out, for any number of threads at once."""

from typing import NamedTuple

import numpy as np

from retriever_server.batcher import Batcher
from retriever_server.indexes import Queries
from retriever_server.store import Manifest, Store

MAX_BATCH = 64
WINDOW_S = 0.02


class Hit(NamedTuple):
    """One passage found; `score` is that of the kind of index, higher is nearer: an inner product of unit
    vectors, BM25, ..."""

    id: str
    contents: str
    score: float


class _Job(NamedTuple):
    query: str
    top_k: int


class _Ranking(NamedTuple):
    rows: np.ndarray
    scores: np.ndarray


class Searcher:
    """Answers queries over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batcher: Batcher[_Job, _Ranking] = Batcher(self._rank, MAX_BATCH, WINDOW_S)

    @property
    def manifest(self) -> Manifest:
        """What is being served."""
        return self._store.manifest

    def search(self, queries: list[str], top_k: int) -> list[list[Hit]]:
        """For each query its min(top_k, corpus) best passages, best first, equal scores in corpus order.

        Raises what encoding or searching raised, and RuntimeError after close().
        """
        rankings = [self._batcher.submit(_Job(query, top_k)) for query in queries]
        return [self._hits(ranking.result()) for ranking in rankings]

    def close(self, timeout_s: float = 1.0) -> None:
        """Answer what waits and stop."""
        self._batcher.close(timeout_s)

    def _rank(self, jobs: list[_Job]) -> list[_Ranking]:
        texts, encoder = [job.query for job in jobs], self._store.encoder
        queries = Queries(texts, encoder.encode_queries(texts) if encoder else None)
        # The order is total, so the best k of a longer list are the list that k alone would have given.
        scores, rows = self._store.index.search(queries, max(job.top_k for job in jobs))
        return [_Ranking(rows[i, : job.top_k], scores[i, : job.top_k]) for i, job in enumerate(jobs)]

    def _hits(self, ranking: _Ranking) -> list[Hit]:
        rows, scores = ranking.rows.tolist(), ranking.scores.tolist()
        found = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
        return [Hit(*self._store.corpus[row], score) for row, score in found]
