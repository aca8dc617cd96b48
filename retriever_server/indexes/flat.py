"""Flat index: every query against every vector by inner product (FAISS IndexFlatIP), exact, in a fixed order.

The file is FAISS's own format: any FAISS program reads it, and an index that FAISS wrote elsewhere is served
here. It is memory-mapped: several processes share one copy, and what does not fit into memory still works.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np

from retriever_server.errors import RetrieverError

SCORE_DECIMALS = 6
SPARE_CANDIDATES = 16
# Two float32 sums of one inner product differ by less than this; so do scores that round to the same value.
SCORE_NOISE = 1e-5


class FlatIndex:
    """An IndexFlatIP file, read only. Safe to search from many threads."""

    def __init__(self, path: Path) -> None:
        """Raises RetrieverError when the file is not a flat inner-product FAISS index."""
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

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of `rows` [n]: float32 [n, dimension]."""
        return self._vectors[rows]

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best rows for `queries` [q, dimension], best first, equal scores in row order.

        Returns scores float64 [q, k] and rows int64 [q, k], k = min(top_k, count). Scores are rounded to
        SCORE_DECIMALS, as far as an encoder repeats itself whatever queries share its batch.
        """
        top_k = min(top_k, self.count)
        candidates = self._candidates(np.ascontiguousarray(queries, dtype=np.float32), top_k)
        ranked = [self._rank(query, rows, top_k) for query, rows in zip(queries, candidates, strict=True)]
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


def write_flat(path: Path, chunks: Iterable[np.ndarray], count: int, dimension: int) -> None:
    """Write float32 [n, dimension] chunks, `count` rows in all, as an IndexFlatIP file; memory: one chunk.

    FAISS itself only writes what lies in memory as a whole. Opening the file with FlatIndex checks it.
    """
    unused = 1 << 20  # two fields that FAISS keeps for old readers and always fills so
    header = struct.pack(
        "<4siqqq?iQ",
        b"IxFI", dimension, count, unused, unused, True, faiss.METRIC_INNER_PRODUCT, count * dimension,
    )  # fmt: skip
    with path.open("wb") as file:
        file.write(header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype="<f4").tobytes())
