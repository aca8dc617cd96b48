"""Flat index: every query against every vector by inner product (FAISS IndexFlatIP), exact, in a fixed order.

The file has FAISS's own format: any FAISS program reads it, and an index that FAISS wrote elsewhere is served
here. It is memory-mapped: several processes share one copy, and one larger than the memory still works. On
GPUs, half precision finds the candidates (screen.py), and the answers are the same.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np

from retriever_server.indexes import IndexSources, Needs, ScoredRows, Settings
from retriever_server.indexes.faiss_file import FILE, FaissIndex, file_header
from retriever_server.indexes.gpu import gpu_screen
from retriever_server.indexes.options import IndexOptions

DEFAULT = Settings(IndexOptions())


class MappedIndex(FaissIndex):
    """A FAISS file that ends with the `number`s of all vectors, which are read in place, or on GPUs."""

    number: ClassVar[type[np.floating]]

    def __init__(self, directory: Path, settings: Settings = DEFAULT, file: str = FILE) -> None:
        """Open the file; RetrieverError when it is not a FAISS index of this kind, or as gpu_screen."""
        super().__init__(directory, settings, file)
        # FAISS owns this memory: the view is valid as long as self._index is.
        codes = faiss.rev_swig_ptr(self._index.codes.data(), self.count * self._index.code_size)
        self._vectors = codes.view(self.number).reshape(self.count, self.dimension)
        self._screen = gpu_screen(self._vectors, settings.device)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of `rows` [n]: `number` [n, dimension]."""
        return self._vectors[rows]

    def _candidates(self, queries: np.ndarray, top_k: int) -> Sequence[np.ndarray]:
        if self._screen:
            return self._screen.candidates(queries, top_k)
        return super()._candidates(queries, top_k)


class FlatIndex(MappedIndex):
    """An IndexFlatIP file, read only. Thread-safe."""

    kind = "flat"
    types = (faiss.IndexFlat,)
    expected = "an IndexFlat by inner product"
    number = np.float32

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: IndexOptions) -> Needs:
        """Nothing: the file of the vectors is the index."""
        return Needs(disk=0, memory=0)

    @classmethod
    def build(cls, sources: IndexSources, directory: Path) -> list[str]:
        """Link the file of the vectors: it is the index."""
        assert sources.vectors is not None
        (directory / FILE).unlink(missing_ok=True)
        (directory / FILE).hardlink_to(sources.vectors)
        return [FILE]


class FlatSlice(FlatIndex):
    """A range of a flat index's rows, on the CPU; they keep their numbers."""

    def __init__(self, directory: Path, rows: range) -> None:
        """Open the file as FlatIndex does."""
        super().__init__(directory)
        self.count = len(rows)
        # FAISS reads such a range in place, and nothing else of the file.
        selector = faiss.IDSelectorRange(rows.start, rows.stop)
        self._within = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]

    def _nearest(self, queries: np.ndarray, count: int) -> ScoredRows:
        return self._index.search(queries, count, params=self._within)


def map_vectors(path: Path | None) -> np.ndarray:
    """The vectors in a flat index file, memory-mapped: float32 [count, dimension], read only.

    Raises RetrieverError when it is not one.
    """
    assert path is not None
    index = FlatIndex(path.parent, file=path.name)
    shape = (index.count, index.dimension)
    header = path.stat().st_size - 4 * index.count * index.dimension  # the vectors come last
    return np.memmap(path, dtype="<f4", mode="r", offset=header, shape=shape)


class FlatWriter(AbstractContextManager["FlatWriter"]):
    """Appends to an IndexFlatIP file of `count` rows, and resumes a half-written one.

    Opening the finished file with FlatIndex checks it.
    """

    def __init__(self, path: Path, count: int, dimension: int) -> None:
        """Open the file, new or left by a writer of the same size, of which `rows` are complete."""
        header = file_header(faiss.IndexFlatIP(dimension), count, count * dimension)
        self._file = path.open("ab")
        if self._file.tell() < len(header):
            self._file.truncate(0)
            self._file.write(header)
        self.rows: int = (self._file.tell() - len(header)) // (4 * dimension)
        self._file.truncate(len(header) + self.rows * 4 * dimension)

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, vectors: np.ndarray) -> None:
        """Add float32 [n, dimension]; they have reached the operating system when this returns."""
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._file.flush()
