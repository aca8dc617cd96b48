"""Searcher: queries in, passages out, for any number of threads at once."""

from collections.abc import Sequence, Set
from concurrent.futures import wait
from typing import NamedTuple, Protocol

import numpy as np

from retriever_server.building.store import Manifest, Store
from retriever_server.errors import Unavailable
from retriever_server.serving.metrics import Metrics
from retriever_server.serving.pipeline import Found, Limits, Pipeline, Question

NONE_EXCLUDED: Set[str] = frozenset()
NOTHING = Found(np.zeros(0, np.int64), np.zeros(0))


class Hit(NamedTuple):
    """One passage found; `score` is that of the kind of index, higher is nearer: an inner product of unit
    vectors, BM25, ..."""

    id: str
    contents: str
    score: float


class Passages(NamedTuple):
    """The passages found for one query, best first: each as the JSON object it is in the canonical corpus, or
    one of its id alone, and its score.
    """

    lines: list[bytes]
    scores: list[float]


class Reranks(Protocol):
    """What rerank.Reranker does."""

    def rerank(self, queries: list[str], hits: list[list[Hit]], top_k: int) -> list[list[Hit]]:
        """For each query its best `top_k` hits, best first, with scores of its own."""


class Searcher:
    """Answers queries over one store."""

    def __init__(
        self,
        store: Store,
        limits: Limits = Limits(),  # noqa: B008
        metrics: Metrics | None = None,
        reranker: Reranks | None = None,
        rerank_depth: int = 0,
    ) -> None:
        """`metrics` counts; without it nobody looks. With a `reranker` at least `rerank_depth` passages are
        found for each query, and put into its order before the best are taken.
        """
        self._store, self._reranker, self._rerank_depth = store, reranker, rerank_depth
        self._answer_s = limits.answer_s
        rerank = self._rerank if reranker else None
        self._pipeline = Pipeline(store.index, store.encoder, limits, metrics or Metrics(), rerank)

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

        A blank query finds nothing. Raises what encoding or searching raised, Unavailable when the queue is
        full or there is no answer in time, Closed after close().
        """
        return [self._hits(found) for found in self._find(queries, top_k, excluded)]

    def passages(
        self,
        queries: Sequence[str],
        top_k: int,
        excluded: Sequence[Set[str]] | None = None,
        contents: bool = True,
    ) -> list[Passages]:
        """The same as `search`, as bytes that need no parsing; without `contents`, of the ids alone."""
        line = self._store.corpus.line if contents else self._store.corpus.id_line
        return [
            Passages([line(row) for row in found.rows.tolist()], found.scores.tolist())
            for found in self._find(queries, top_k, excluded)
        ]

    def close(self, timeout_s: float = 1.0) -> None:
        """Answer what waits, stop, and let go of the store."""
        self._pipeline.close(timeout_s)
        self._store.release()

    def _find(self, queries: Sequence[str], top_k: int, excluded: Sequence[Set[str]] | None) -> list[Found]:
        unwanted = excluded or [NONE_EXCLUDED] * len(queries)
        # As many more as could be dropped: what is left is what the best top_k without them are.
        depth = max(top_k, self._rerank_depth)
        asked = [Question(query, depth + len(ids)) for query, ids in zip(queries, unwanted, strict=True)]
        # A blank query asks for nothing, and must not cost the others of its batch their answers.
        worded = [question for question in asked if question.text.strip()]
        answers = dict(zip(worded, self._answers(worded), strict=True))
        return [
            self._best(answers.get(question, NOTHING), ids, top_k)
            for question, ids in zip(asked, unwanted, strict=True)
        ]

    def _answers(self, questions: Sequence[Question]) -> list[Found]:
        answers = self._pipeline.ask(questions)
        late = wait(answers, self._answer_s).not_done
        if late:
            raise Unavailable(
                f"{len(late)} of {len(questions)} queries have no answer after {self._answer_s:g} s: "
                "the encoder or the index is stuck or overloaded; ask again later, or restart the server"
            )
        return [answer.result() for answer in answers]

    def _best(self, found: Found, unwanted: Set[str], top_k: int) -> Found:
        if unwanted:
            corpus = self._store.corpus
            wanted = [place for place, row in enumerate(found.rows) if corpus.id(row) not in unwanted]
            found = Found(found.rows[wanted], found.scores[wanted])
        return Found(found.rows[:top_k], found.scores[:top_k])

    def _rerank(self, texts: list[str], found: list[Found]) -> list[Found]:
        assert self._reranker is not None
        hits = [self._hits(of_query) for of_query in found]
        ordered = self._reranker.rerank(texts, hits, top_k=max(map(len, hits)))
        return [
            _as_found(after, before, of_query.rows)
            for after, before, of_query in zip(ordered, hits, found, strict=True)
        ]

    def _hits(self, found: Found) -> list[Hit]:
        rows, scores = found.rows.tolist(), found.scores.tolist()
        return [Hit(*self._store.corpus[row], score) for row, score in zip(rows, scores, strict=True)]


def _as_found(after: list[Hit], before: list[Hit], rows: np.ndarray) -> Found:
    """The rows of the hits `after`, which are those `before` in another order."""
    row_of = {hit.id: row for hit, row in zip(before, rows.tolist(), strict=True)}
    return Found(
        np.array([row_of[hit.id] for hit in after], np.int64), np.array([hit.score for hit in after])
    )
