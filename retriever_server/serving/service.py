"""Searcher: queries in, passages out, for any number of threads at once."""

from collections.abc import Sequence, Set
from concurrent.futures import wait
from typing import NamedTuple

import numpy as np

from retriever_server.building.store import Manifest, Store
from retriever_server.errors import Unavailable
from retriever_server.models.reranker import Reranker
from retriever_server.serving.metrics import ServiceMetrics
from retriever_server.serving.pipeline import Lookup, Pipeline, RankedRows, ServingLimits

NONE_EXCLUDED: Set[str] = frozenset()
NOTHING = RankedRows(np.zeros(0, np.int64), np.zeros(0))


class Passages(NamedTuple):
    """One query's passages, best first, as JSON objects (whole rows, or ids alone), and their scores.

    A higher score is better, on the kind's scale: inner product, BM25, ...
    """

    lines: list[bytes]
    scores: list[float]


class Searcher:
    """Answers queries over one store."""

    def __init__(
        self,
        store: Store,
        limits: ServingLimits = ServingLimits(),  # noqa: B008
        metrics: ServiceMetrics | None = None,
        reranker: Reranker | None = None,
        rerank_depth: int = 0,
    ) -> None:
        """Start the pipeline; a `reranker` orders at least the best `rerank_depth` passages per query."""
        self._store, self._reranker, self._rerank_depth = store, reranker, rerank_depth
        self._answer_s = limits.answer_s
        rerank = self._rerank if reranker else None
        self.pipeline = Pipeline(store.index, store.encoder, limits, metrics or ServiceMetrics(), rerank)

    @property
    def manifest(self) -> Manifest:
        """What is being served."""
        return self._store.manifest

    def passages(
        self,
        queries: Sequence[str],
        top_k: int,
        excluded: Sequence[Set[str]] | None = None,
        contents: bool = True,
    ) -> list[Passages]:
        """The min(top_k, corpus) best passages per query, best first, equal scores in the index's order.

        `excluded` holds, per query, ids that must not be returned; without `contents`, rows have ids only. A
        blank query finds nothing. Raises what encoding or searching raised, Unavailable when the queue is
        full or an answer is late, Closed after close().
        """
        line = self._store.corpus.line if contents else self._store.corpus.id_line
        return [
            Passages([line(row) for row in ranked.rows.tolist()], ranked.scores.tolist())
            for ranked in self._ranked(queries, top_k, excluded)
        ]

    def close(self, timeout_s: float = 1.0) -> None:
        """Answer waiting queries, stop, and release the store."""
        self.pipeline.close(timeout_s)
        self._store.release()

    def _ranked(
        self, queries: Sequence[str], top_k: int, excluded: Sequence[Set[str]] | None
    ) -> list[RankedRows]:
        unwanted = excluded or [NONE_EXCLUDED] * len(queries)
        # Fetch as many more as could be dropped, so that the best top_k remain without those.
        depth = max(top_k, self._rerank_depth)
        lookups = [Lookup(query, depth + len(ids)) for query, ids in zip(queries, unwanted, strict=True)]
        # A blank query has no answer, and must not cost the other queries of its batch theirs.
        real = [lookup for lookup in lookups if lookup.text.strip()]
        answers = dict(zip(real, self._answers(real), strict=True))
        return [
            self._best(answers.get(lookup, NOTHING), ids, top_k)
            for lookup, ids in zip(lookups, unwanted, strict=True)
        ]

    def _answers(self, lookups: Sequence[Lookup]) -> list[RankedRows]:
        answers = self.pipeline.submit(lookups)
        late = wait(answers, self._answer_s).not_done
        if late:
            raise Unavailable(
                f"{len(late)} of {len(lookups)} queries have no answer after {self._answer_s:g} s: "
                "the encoder or the index is stuck or overloaded; try again later, or restart the server"
            )
        return [answer.result() for answer in answers]

    def _best(self, ranked: RankedRows, unwanted: Set[str], top_k: int) -> RankedRows:
        rows, scores = ranked
        if unwanted:
            wanted = [place for place, row in enumerate(rows) if self._store.corpus.id(row) not in unwanted]
            rows, scores = rows[wanted], scores[wanted]
        return RankedRows(rows[:top_k], scores[:top_k])

    def _rerank(self, texts: list[str], results: list[RankedRows]) -> list[RankedRows]:
        assert self._reranker is not None
        passages = [[self._store.corpus[row].contents for row in ranked.rows] for ranked in results]
        ranking = self._reranker.rank(texts, passages)
        return [
            RankedRows(ranked.rows[order], scores)
            for ranked, (order, scores) in zip(results, ranking, strict=True)
        ]
