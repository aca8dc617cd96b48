"""Flat index: every query against every vector by inner product (FAISS IndexFlatIP), exact, in a fixed order.

The file is FAISS's own format: any FAISS program reads it, and an index that FAISS wrote elsewhere is served
here. It is memory-mapped: several processes share one copy, and what does not fit into memory still works.
"""

import struct
from pathlib import Path

import faiss
import numpy as np

from retriever_server.errors import RetrieverError
from retriever_server.indexes import Queries, Sources

FILE = "index.faiss"
LEAST_AGREEMENT = 0.99  # of a stored vector with its passage encoded anew; half precision keeps above .999
SCORE_DECIMALS = 6
SPARE_CANDIDATES = 16
# Two float32 sums of one inner product differ by less than this; so do scores that round to the same value.
SCORE_NOISE = 1e-5


class FlatIndex:
    """An IndexFlatIP file, read only. Safe to search from many threads."""

    dense = True

    def __init__(self, directory: Path) -> None:
        """Raises RetrieverError when the file is not a flat inner-product FAISS index."""
        path = directory / FILE
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise RetrieverError(f"{path}: FAISS cannot read it: {str(error).splitlines()[0]}") from error
        if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            kind = type(index).__name__
            raise RetrieverError(f"{path}: a {kind}; only a flat inner-product index can be served")
        self._index = index
        self.count: int = index.ntotal
        self.dimension: int = index.d
        # FAISS owns this memory: the view lives as long as self._index does.
        self._vectors = faiss.rev_swig_ptr(index.get_xb(), self.count * self.dimension).reshape(
            self.count, self.dimension
        )

    @classmethod
    def build(cls, sources: Sources, directory: Path) -> list[str]:
        """The file of the vectors is the index."""
        assert sources.vectors is not None
        (directory / FILE).unlink(missing_ok=True)
        (directory / FILE).hardlink_to(sources.vectors)
        return [FILE]

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """Whether each row's inner product with the same row of `vectors` is that of a vector with itself."""
        assert vectors is not None
        if vectors.shape[1] != self.dimension:
            raise RetrieverError(
                f"the index has vectors of {self.dimension} numbers, the encoder makes {vectors.shape[1]}"
            )
        agreement = (vectors * self.vectors(rows)).sum(axis=1)
        found: np.ndarray = np.abs(agreement - 1) <= 1 - LEAST_AGREEMENT  # False for NaN
        return found

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of `rows` [n]: float32 [n, dimension]."""
        return self._vectors[rows]

    def search(self, queries: Queries, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact: scores float64 [q, k] and rows int64 [q, k], k = min(top_k, count), best first, equal scores
        in row order. Scores are rounded to SCORE_DECIMALS, so that they do not depend on the batch.
        """
        assert queries.vectors is not None
        top_k = min(top_k, self.count)
        vectors = np.ascontiguousarray(queries.vectors, dtype=np.float32)
        candidates = self._candidates(vectors, top_k)
        ranked = [self._rank(query, rows, top_k) for query, rows in zip(vectors, candidates, strict=True)]
        return np.stack([scores for scores, _ in ranked]), np.stack([rows for _, rows in ranked])

    def _candidates(self, queries: np.ndarray, top_k: int) -> np.ndarray:
        """Rows [q, >= top_k] that hold every row whose exact score could be among the best top_k."""
        fetch = min(top_k + SPARE_CANDIDATES, self.count)
        while True:
            scores, rows = self._index.search(queries, fetch)
            tie_goes_on = scores[:, -1] >= scores[:, top_k - 1] - SCORE_NOISE
            if fetch == self.count or not tie_goes_on.any():
                return rows
            fetch = min(fetch * 4, self.count)

    def _rank(self, query: np.ndarray, rows: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        # FAISS adds up in an order that depends on the batch size; scoring its candidates once more does not.
        exact = (self.vectors(rows).astype(np.float64) @ query.astype(np.float64)).round(SCORE_DECIMALS)
        order = np.lexsort((rows, -exact))[:top_k]
        return exact[order], rows[order]


class FlatWriter:
    """Appends to an IndexFlatIP file of `count` rows, so that a half-written one can be gone on with.

    FAISS itself only writes what lies in memory as a whole. Opening the finished file with FlatIndex checks
    it.
    """

    def __init__(self, path: Path, count: int, dimension: int) -> None:
        """Open the file, new or left by a writer of the same size; `rows` says how many are in it whole."""
        unused = 1 << 20  # two fields that FAISS keeps for old readers and always fills so
        header = struct.pack(
            "<4siqqq?iQ",
            b"IxFI", dimension, count, unused, unused, True, faiss.METRIC_INNER_PRODUCT, count * dimension,
        )  # fmt: skip
        self._file = path.open("ab")
        if self._file.tell() < len(header):
            self._file.truncate(0)
            self._file.write(header)
        self.rows: int = (self._file.tell() - len(header)) // (4 * dimension)
        self._file.truncate(len(header) + self.rows * 4 * dimension)

    def __enter__(self) -> "FlatWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, vectors: np.ndarray) -> None:
        """Add float32 [n, dimension]; they are with the system when this returns."""
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._file.flush()
