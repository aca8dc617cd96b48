"""What the kinds that live in one FAISS file share: reading it, checking rows of it, and exact scores.

FAISS finds candidates; they are scored once more here, in float64 from the vectors as the index stores them.
So scores do not depend on the batch, and the order is total: by score, then by row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from retriever_server.errors import RetrieverError
from retriever_server.indexes import Queries, Settings

FILE = "index.faiss"
SCORE_DECIMALS = 6
SPARE_CANDIDATES = 16
MOST_FETCHED = 1 << 22  # rows of all queries that FAISS is asked for more of; 12 bytes each
RANKED_ROWS = 1 << 15  # scored exactly at a time
# Two float32 sums of one inner product differ by less than this; so do scores that round to the same value.
SCORE_NOISE = 1e-5
# Queries from which FAISS multiplies matrices. Release 1.15 would not at all, and take four times as long.
faiss.cvar.distance_compute_blas_threshold = 4


class FaissIndex:
    """One FAISS file, read only, memory-mapped as far as FAISS can. Safe to search from many threads.

    A kind says what FAISS type it is (`fits`, in words `expected`), gives its stored `vectors`, and may find
    `_candidates` in a way of its own.
    """

    dense: ClassVar[bool] = True
    kind: ClassVar[str]
    expected: ClassVar[str]
    least_agreement: ClassVar[float] = 0.99
    """Of a stored vector with its passage encoded anew. Half precision keeps above .999, 8 bits above .99."""

    def __init__(self, directory: Path, settings: Settings, file: str = FILE) -> None:
        """Raises RetrieverError when the file is not a FAISS index of this kind."""
        path = directory / file
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise RetrieverError(f"{path}: FAISS cannot read it: {str(error).splitlines()[0]}") from error
        if index.metric_type != faiss.METRIC_INNER_PRODUCT or not self.fits(index):
            found = describe(index)
            raise RetrieverError(f'{path}: it is {found}, but the kind "{self.kind}" is {self.expected}')
        self._index: Any = index
        self.count: int = index.ntotal
        self.dimension: int = index.d

    @staticmethod
    def fits(index: faiss.Index) -> bool:
        """Whether FAISS's type is the kind's."""
        raise NotImplementedError

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of `rows` [n], as far as the kind keeps them: float [n, dimension]."""
        raise NotImplementedError

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """Whether each row's inner product with the same row of `vectors` is that of a vector with itself."""
        assert vectors is not None
        if vectors.shape[1] != self.dimension:
            raise RetrieverError(
                f"the index has vectors of {self.dimension} numbers, the encoder makes {vectors.shape[1]}"
            )
        agreement = (vectors * self.vectors(rows)).sum(axis=1)
        found: np.ndarray = np.abs(agreement - 1) <= 1 - self.least_agreement  # False for NaN
        return found

    def search(self, queries: Queries, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """As in the protocol; scores are rounded to SCORE_DECIMALS."""
        assert queries.vectors is not None
        top_k = min(top_k, self.count)
        vectors = np.ascontiguousarray(queries.vectors, dtype=np.float32)
        candidates = self._candidates(vectors, top_k)
        ranked = [self._rank(query, rows, top_k) for query, rows in zip(vectors, candidates, strict=True)]
        return np.stack([scores for scores, _ in ranked]), np.stack([rows for _, rows in ranked])

    def _candidates(self, queries: np.ndarray, top_k: int) -> Sequence[np.ndarray]:
        """For each query the rows [>= top_k] that hold every row whose exact score could be among the best
        top_k. A kind that is not exhaustive gives what it found, and -1 for what it did not.
        """
        found: list[np.ndarray] = [np.zeros(0, np.int64)] * len(queries)
        left = [(np.arange(len(queries)), min(top_k + SPARE_CANDIDATES, self.count))]
        while left:
            places, fetch = left.pop()
            scores, rows = self._nearest(queries[places], fetch)
            tie_goes_on = (scores[:, -1] >= scores[:, top_k - 1] - SCORE_NOISE) & (fetch < self.count)
            for place, of_query in zip(places[~tie_goes_on], rows[~tie_goes_on], strict=True):
                found[place] = of_query
            # The others have what they want; of those that go on, no more at a time than fit into memory.
            more, tied = min(fetch * 4, self.count), places[tie_goes_on]
            size = max(1, MOST_FETCHED // more)
            left += [(tied[start : start + size], more) for start in range(0, len(tied), size)]
        return found

    def _nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What FAISS finds: scores float32 [q, count], best first, and rows int64 [q, count]."""
        found: tuple[np.ndarray, np.ndarray] = self._index.search(queries, count)
        return found

    def _rank(self, query: np.ndarray, rows: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best top_k of the candidates, padded with row -1 and score -inf."""
        rows = rows[rows >= 0]
        # FAISS adds up in an order that depends on the batch size; scoring its candidates once more does not.
        # In parts, for a tie may go on over more rows than fit into memory in float64.
        parts = np.split(rows, list(range(RANKED_ROWS, len(rows), RANKED_ROWS)))
        vectors = (self.vectors(part).astype(np.float64) for part in parts)
        exact = np.concatenate([part @ query.astype(np.float64) for part in vectors]).round(SCORE_DECIMALS)
        order = np.lexsort((rows, -exact))[:top_k]
        scores, best = np.full(top_k, -np.inf), np.full(top_k, -1, dtype=np.int64)
        scores[: len(order)], best[: len(order)] = exact[order], rows[order]
        return scores, best


def describe(index: faiss.Index) -> str:
    """FAISS's type in words, with those it is made of: "an IndexRefine over IndexIVFPQ, by inner product"."""
    names = [type(part).__name__ for part in (index, *parts(index))]
    by_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
    return f"an {' over '.join(names)}, by {'inner product' if by_product else 'another distance'}"


def parts(index: faiss.Index) -> list[faiss.Index]:
    """The indexes inside, outermost first: what is refined, transformed, or stored under a graph."""
    found: list[Any] = []
    inner: Any = index
    while (inner := _inside(inner)) is not None:
        found.append(inner)
    return found


def _inside(index: faiss.Index) -> Any:
    for types, member in (
        (faiss.IndexRefine, "base_index"),
        (faiss.IndexPreTransform, "index"),
        (faiss.IndexHNSW, "storage"),
        (faiss.IndexIDMap, "index"),
    ):
        if isinstance(index, types):
            return faiss.downcast_index(getattr(index, member))
    return None
