"""Flat index: every query against every vector by inner product (FAISS IndexFlatIP), exact, in a fixed order.

The file is FAISS's own format: any FAISS program reads it, and an index that FAISS wrote elsewhere is served
here. It is memory-mapped: several processes share one copy, and what does not fit into memory still works.
On GPUs, half precision finds the candidates (screen.py), and the answers are the same.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from retriever_server.indexes import Needs, Settings, Sources
from retriever_server.indexes.faiss_file import FILE, FaissIndex
from retriever_server.indexes.gpu import gpu_screen
from retriever_server.indexes.options import Options

DEFAULT = Settings(Options())


class FlatIndex(FaissIndex):
    """An IndexFlatIP file, read only. Safe to search from many threads."""

    kind = "flat"
    expected = "an IndexFlat by inner product"

    def __init__(self, directory: Path, settings: Settings = DEFAULT, file: str = FILE) -> None:
        """Raises RetrieverError when the file is not a flat inner-product FAISS index, or as gpu_screen."""
        super().__init__(directory, settings, file)
        # FAISS owns this memory: the view lives as long as self._index does.
        self._vectors = faiss.rev_swig_ptr(self._index.get_xb(), self.count * self.dimension).reshape(
            self.count, self.dimension
        )
        self._screen = gpu_screen(self._vectors, settings.device)

    @staticmethod
    def fits(index: faiss.Index) -> bool:
        """An IndexFlat."""
        return isinstance(index, faiss.IndexFlat)

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: Options) -> Needs:
        """Nothing: the file of the vectors is the index."""
        return Needs(disk=0, memory=0)

    @classmethod
    def build(cls, sources: Sources, directory: Path) -> list[str]:
        """The file of the vectors is the index."""
        assert sources.vectors is not None
        (directory / FILE).unlink(missing_ok=True)
        (directory / FILE).hardlink_to(sources.vectors)
        return [FILE]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of `rows` [n]: float32 [n, dimension]."""
        return self._vectors[rows]

    def _candidates(self, queries: np.ndarray, top_k: int) -> Sequence[np.ndarray]:
        if self._screen:
            return self._screen.candidates(queries, top_k)
        return super()._candidates(queries, top_k)


class FlatSlice(FlatIndex):
    """A range of the rows of a flat index, on the CPU; they keep their numbers."""

    def __init__(self, directory: Path, rows: range) -> None:
        """As FlatIndex does."""
        super().__init__(directory)
        self.count = len(rows)
        # FAISS reads such a range in place, and nothing else of the file.
        within = faiss.IDSelectorRange(rows.start, rows.stop)
        self._within = faiss.SearchParameters(sel=within)  # type: ignore[call-arg]

    def _nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        found: tuple[np.ndarray, np.ndarray] = self._index.search(queries, count, params=self._within)
        return found


def map_vectors(path: Path) -> np.ndarray:
    """The vectors in a flat index file, memory-mapped: float32 [count, dimension], read only.

    Raises RetrieverError when it is not one.
    """
    index = FlatIndex(path.parent, file=path.name)
    shape = (index.count, index.dimension)
    header = path.stat().st_size - 4 * index.count * index.dimension  # the vectors come last
    return np.memmap(path, dtype="<f4", mode="r", offset=header, shape=shape)


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
