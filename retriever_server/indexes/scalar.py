"""Flat kinds with fewer bytes per number (FAISS IndexScalarQuantizer): flat_fp16 with two, sq8 with one.

The files are FAISS's own, written a chunk at a time: building needs no more memory for more passages.
"""

from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np
import torch

from retriever_server.indexes import IndexSources, Needs, Settings
from retriever_server.indexes.faiss_file import FILE, FaissIndex, chunks, file_header, training_sample
from retriever_server.indexes.flat import MappedIndex, map_vectors
from retriever_server.indexes.options import IndexOptions
from retriever_server.indexes.screen import Screen

TRAINING_ROWS = 1 << 17  # determine the range of each dimension; what lies outside is clipped to it


class _ScalarIndex(FaissIndex):
    types = (faiss.IndexScalarQuantizer,)
    quantizer: ClassVar[int]
    number_bytes: ClassVar[int]

    @classmethod
    def fits(cls, index: faiss.Index) -> bool:
        """Whether it is an IndexScalarQuantizer of this kind's numbers."""
        return isinstance(index, cls.types) and index.sq.qtype == cls.quantizer

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: IndexOptions) -> Needs:
        """The codes on disk; in memory at most the sample they are trained on."""
        assert dimension is not None
        memory = 4 * min(count, TRAINING_ROWS) * dimension
        return Needs(disk=count * dimension * cls.number_bytes, memory=memory)

    @classmethod
    def build(cls, sources: IndexSources, directory: Path) -> list[str]:
        """Write the codes; their ranges, if they have any, are those of a sample of TRAINING_ROWS."""
        vectors = map_vectors(sources.vectors)
        empty = faiss.IndexScalarQuantizer(vectors.shape[1], cls.quantizer, faiss.METRIC_INNER_PRODUCT)
        if not empty.is_trained:
            empty.train(training_sample(vectors, TRAINING_ROWS))
        write_codes(empty, vectors, directory / FILE)
        return [FILE]


class ByteIndex(_ScalarIndex):
    """A byte per number, with the range of its dimension. FAISS scans all of them."""

    kind = "sq8"
    expected = "an IndexScalarQuantizer of 8 bits by inner product"
    quantizer, number_bytes = faiss.ScalarQuantizer.QT_8bit, 1


class HalfIndex(MappedIndex, _ScalarIndex):
    """Half precision. Exact for the vectors as stored; see screen.py for the search."""

    kind = "flat_fp16"
    expected = "an IndexScalarQuantizer of half precision by inner product"
    quantizer, number_bytes, number = faiss.ScalarQuantizer.QT_fp16, 2, np.float16

    def __init__(self, directory: Path, settings: Settings) -> None:
        """Open the file; RetrieverError when it is not of this kind, or as gpu_screen."""
        super().__init__(directory, settings)
        self._screen = self._screen or Screen([torch.from_numpy(self._vectors)])


def write_codes(empty: faiss.IndexScalarQuantizer, vectors: np.ndarray, path: Path) -> None:
    """Write the file that faiss.write_index would after adding all `vectors` to the trained index `empty`."""
    with path.open("wb") as file:
        file.write(file_header(empty, len(vectors), len(vectors) * empty.code_size))
        for chunk in chunks(vectors, "quantizing"):
            file.write(empty.sa_encode(chunk).tobytes())
