"""Searcher: queries in, passages out, for any number of threads at once."""

from collections.abc import Sequence, Set
from typing import NamedTuple

from retriever_server.metrics import Metrics
from retriever_server.pipeline import Found, Limits, Pipeline, Question
from retriever_server.store import Manifest, Store

NONE_EXCLUDED: Set[str] = frozenset()


class Hit(NamedTuple):
    """One passage found; `score` is that of the kind of index, higher is nearer: an inner product of unit
    vectors, BM25, ..."""

    id: str
    contents: str
    score: float


class Passages(NamedTuple):
    """The passages found for one query, best first: each as the JSON object it is in the canonical corpus,
    and its score.
    """

    lines: list[bytes]
    scores: list[float]


class Searcher:
    """Answers queries over one store."""

    def __init__(self, store: Store, limits: Limits = Limits(), metrics: Metrics | None = None) -> None:  # noqa: B008
        """`metrics` counts; without it nobody looks."""
        self._store = store
        self._pipeline = Pipeline(store.index, store.encoder, limits, metrics or Metrics())

    @property
    def manifest(self) -> Manifest:
        """What is being served."""
        return self._store.manifest

    @property
    def pipeline(self) -> Pipeline:
        """The stages, for their figures."""
        return self._pipeline

    def search(
        self, queries: Sequence[str], top_k: int, excluded: Sequence[Set[str]] | None = None
    ) -> list[list[Hit]]:
        """For each query its min(top_k, corpus) best passages, best first, equal scores in the index's order;
        `excluded` has for each query the ids that it does not want.

        Raises what encoding or searching raised, Unavailable when the queue is full, Closed after close().
        """
        return [self._hits(found) for found in self._find(queries, top_k, excluded)]

    def passages(
        self, queries: Sequence[str], top_k: int, excluded: Sequence[Set[str]] | None = None
    ) -> list[Passages]:
        """The same as `search`, as bytes that need no parsing."""
        corpus = self._store.corpus
        return [
            Passages([corpus.line(row) for row in found.rows.tolist()], found.scores.tolist())
            for found in self._find(queries, top_k, excluded)
        ]

    def close(self, timeout_s: float = 1.0) -> None:
        """Answer what waits and stop."""
        self._pipeline.close(timeout_s)

    def _find(self, queries: Sequence[str], top_k: int, excluded: Sequence[Set[str]] | None) -> list[Found]:
        unwanted = excluded or [NONE_EXCLUDED] * len(queries)
        # As many more as could be dropped: what is left is what the best top_k without them are.
        asked = [Question(query, top_k + len(ids)) for query, ids in zip(queries, unwanted, strict=True)]
        answers = self._pipeline.ask(asked)
        return [
            self._without(answer.result(), ids, top_k) for answer, ids in zip(answers, unwanted, strict=True)
        ]

    def _without(self, found: Found, unwanted: Set[str], top_k: int) -> Found:
        if not unwanted:
            return found
        wanted = [i for i, row in enumerate(found.rows) if self._store.corpus[row].id not in unwanted][:top_k]
        return Found(found.rows[wanted], found.scores[wanted])

    def _hits(self, found: Found) -> list[Hit]:
        rows, scores = found.rows.tolist(), found.scores.tolist()
        return [Hit(*self._store.corpus[row], score) for row, score in zip(rows, scores, strict=True)]
