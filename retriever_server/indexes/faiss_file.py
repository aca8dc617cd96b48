"""What the kinds in one FAISS file share: building and reading it, checking its rows, and exact scores.

FAISS finds candidates; they are scored again here, in float64 from the vectors as the index stores them. So
scores do not depend on the batch, and the order is total: by score, then by row.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from retriever_server.corpus import row_chunks
from retriever_server.errors import RetrieverError, first_line
from retriever_server.indexes import Queries, ScoredRows, Settings, pad_ranked

FILE = "index.faiss"
MEMBERS = {
    faiss.IndexRefine: "base_index",
    faiss.IndexPreTransform: "index",
    faiss.IndexHNSW: "storage",
    faiss.IndexIDMap: "index",
}
"""Type of an index around another -> its member that is the other."""
COUNT_FIELD = slice(8, 16)  # where a FAISS file has its number of vectors
CHUNK_ROWS = 1 << 14  # built at a time
SCORE_DECIMALS = 6
SPARE_CANDIDATES = 16
MOST_FETCHED = 1 << 22  # further rows of all queries fetched from FAISS at a time; 12 bytes each
RANKED_ROWS = 1 << 15  # scored exactly at a time
# Two float32 sums of one inner product differ by less than this; so do scores that round to the same value.
SCORE_NOISE = 1e-5
# Number of queries from which FAISS multiplies matrices. Release 1.15 never would, and take four times as
# long.
faiss.cvar.distance_compute_blas_threshold = 4


class FaissIndex:
    """One FAISS file, read only, memory-mapped as far as FAISS can. Thread-safe.

    A kind defines its FAISS `types` (`expected` in a message), and may find `_candidates` in its own way.
    """

    dense: ClassVar[bool] = True
    kind: ClassVar[str]
    types: ClassVar[tuple[type, ...]]
    expected: ClassVar[str]
    least_agreement: ClassVar[float] = 0.99
    """Of a stored vector with its passage encoded again. Half precision has .999 or more, 8 bits .99."""

    def __init__(self, directory: Path, settings: Settings, file: str = FILE) -> None:
        """Open the file; RetrieverError when it is not a FAISS index of this kind."""
        path = directory / file
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise RetrieverError(f"{path}: FAISS cannot read it: {first_line(error)}") from error
        if index.metric_type != faiss.METRIC_INNER_PRODUCT or not self.fits(index):
            raise RetrieverError(
                f'{path}: it is {_describe(index)}, but the kind "{self.kind}" is {self.expected}'
            )
        self._index: Any = index
        self._keeper: Any = index
        """The part that has the vectors."""
        self.count: int = index.ntotal
        self.dimension: int = index.d

    @classmethod
    def fits(cls, index: faiss.Index) -> bool:
        """Whether the FAISS index is of this kind."""
        return isinstance(index, cls.types)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of `rows` [n], as exactly as the kind keeps them: float [n, dimension]."""
        return self._keeper.reconstruct_batch(rows)

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """Whether each row's inner product with the same row of `vectors` is that of a vector with itself."""
        assert vectors is not None
        if vectors.shape[1] != self.dimension:
            raise RetrieverError(
                f"the index has vectors of {self.dimension} numbers, the encoder's have {vectors.shape[1]}"
            )
        agreement = (vectors * self.vectors(rows)).sum(axis=1)
        return np.abs(agreement - 1) <= 1 - self.least_agreement  # False for NaN

    def search(self, queries: Queries, top_k: int) -> ScoredRows:
        """As in the protocol; scores are rounded to SCORE_DECIMALS."""
        assert queries.vectors is not None
        top_k = min(top_k, self.count)
        vectors = np.ascontiguousarray(queries.vectors, dtype=np.float32)
        candidates = self._candidates(vectors, top_k)
        ranked = [self._rank(query, rows, top_k) for query, rows in zip(vectors, candidates, strict=True)]
        return pad_ranked(ranked, top_k)

    def _candidates(self, queries: np.ndarray, top_k: int) -> Sequence[np.ndarray]:
        """For each query the rows [>= top_k] among which are all whose exact score could be in the top_k.

        An approximate kind returns what it found, and -1 for what it did not.
        """
        complete: list[np.ndarray] = [np.zeros(0, np.int64)] * len(queries)
        left = [(np.arange(len(queries)), min(top_k + SPARE_CANDIDATES, self.count))]
        while left:
            places, fetch = left.pop()
            scores, rows = self._nearest(queries[places], fetch)
            tie_continues = (scores[:, -1] >= scores[:, top_k - 1] - SCORE_NOISE) & (fetch < self.count)
            for place, of_query in zip(places[~tie_continues], rows[~tie_continues], strict=True):
                complete[place] = of_query
            # The others are complete; those with longer ties are handled as many at a time as fit into
            # memory.
            more, tied = min(fetch * 4, self.count), places[tie_continues]
            size = max(1, MOST_FETCHED // more)
            left += [(tied[start : start + size], more) for start in range(0, len(tied), size)]
        return complete

    def _nearest(self, queries: np.ndarray, count: int) -> ScoredRows:
        """What FAISS finds: scores float32 [q, count], best first, and rows int64 [q, count]."""
        return self._index.search(queries, count)

    def _rank(self, query: np.ndarray, rows: np.ndarray, top_k: int) -> ScoredRows:
        """Scores and rows of the best top_k candidates; row -1 is not a candidate."""
        rows = rows[rows >= 0]
        # FAISS adds up in an order that depends on the batch size; scoring its candidates again does not. In
        # parts, because a tie may have more rows than fit into memory in float64.
        parts = np.split(rows, list(range(RANKED_ROWS, len(rows), RANKED_ROWS)))
        vectors = (self.vectors(part).astype(np.float64) for part in parts)
        exact = np.concatenate([part @ query.astype(np.float64) for part in vectors]).round(SCORE_DECIMALS)
        order = np.lexsort((rows, -exact))[:top_k]
        return exact[order], rows[order]


def file_header(empty: faiss.Index, count: int, numbers: int) -> bytes:
    """The beginning of the file that FAISS writes of `count` vectors, up to their `numbers` or codes in all.

    For a program that appends those itself: FAISS only writes what is completely in memory.
    """
    header = bytearray(faiss.serialize_index(empty).tobytes())
    header[COUNT_FIELD] = count.to_bytes(8, "little")
    header[-8:] = numbers.to_bytes(8, "little")
    return bytes(header)


def training_sample(vectors: np.ndarray, rows: int) -> np.ndarray:
    """At most `rows` of the memory-mapped vectors [count, dimension], drawn with a fixed seed: float32."""
    if rows >= len(vectors):
        return np.array(vectors)
    drawn = np.random.default_rng(0).choice(len(vectors), size=rows, replace=False)
    return np.array(vectors[np.sort(drawn)])


def chunks(vectors: np.ndarray, what: str) -> Iterator[np.ndarray]:
    """All vectors in order, float32 [<= CHUNK_ROWS, dimension] at a time, with progress titled `what`."""
    for rows in row_chunks(len(vectors), CHUNK_ROWS, what):
        yield np.array(vectors[rows.start : rows.stop])


def parts(index: faiss.Index) -> list[faiss.Index]:
    """The indexes inside, outermost first: what is refined, transformed, or stored under a graph."""
    inner = []
    while member := next((name for outer, name in MEMBERS.items() if isinstance(index, outer)), None):
        index = faiss.downcast_index(getattr(index, member))
        inner.append(index)
    return inner


def _describe(index: faiss.Index) -> str:
    """FAISS's type in words, with its parts: "an IndexRefine over IndexIVFPQ, by inner product"."""
    names = [type(part).__name__ for part in (index, *parts(index))]
    by_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
    return f"an {' over '.join(names)}, by {'inner product' if by_product else 'another distance'}"
