"""Approximate kinds: hnsw, a graph in which a query walks to its neighbours, and ivfpq, lists of short codes.

Both are built in main memory, which is checked first, and written by FAISS. When to use which, and what the
defaults achieve, is in docs/retriever.md.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np

from retriever_server.errors import RetrieverError
from retriever_server.indexes import IndexSources, Needs, Settings
from retriever_server.indexes.faiss_file import FILE, FaissIndex, chunks, parts, training_sample
from retriever_server.indexes.flat import map_vectors
from retriever_server.indexes.options import HnswOptions, IndexOptions, IvfPqOptions
from retriever_server.memory import require_memory

STORAGE = {"flat": (",Flat", 4), "fp16": ("_SQfp16", 2), "sq8": ("_SQ8", 1)}  # factory word, bytes per number
REFINED_BITS = {"SQ4": 4, "SQ6": 6, "SQ8": 8, "SQfp16": 16}  # per number
SQ_TRAINING_ROWS = 1 << 17
ROWS_PER_LIST = 64  # to train on; FAISS asks for at least 39
LEAST_ROWS = 1000  # below which lists and codes have too little to learn from
ID_BYTES = 8


class HnswIndex(FaissIndex):
    """FAISS's IndexHNSW over vectors of 4, 2 or 1 bytes per number, which it gives back nearly exactly."""

    kind = "hnsw"
    types = (faiss.IndexHNSWFlat, faiss.IndexHNSWSQ)
    expected = "an IndexHNSWFlat or IndexHNSWSQ by inner product"

    def __init__(self, directory: Path, settings: Settings) -> None:
        """Open the file; RetrieverError when it is not of this kind."""
        super().__init__(directory, settings)
        self._ef_search = cast(HnswOptions, settings.options).efSearch
        self._index.hnsw.efSearch = self._ef_search
        self._keeper = faiss.downcast_index(self._index.storage)

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: IndexOptions) -> Needs:
        """The whole index, on disk and in memory: vectors, 2 M links in the lowest layer and few above."""
        assert dimension is not None and isinstance(options, HnswOptions)
        links = 4 * (2 * options.M + options.M // 8) + 2 * ID_BYTES
        size = count * (dimension * STORAGE[options.storage][1] + links)
        return Needs(disk=size, memory=size + 4 * min(count, SQ_TRAINING_ROWS) * dimension)

    @classmethod
    def build(cls, sources: IndexSources, directory: Path) -> list[str]:
        """Link one vector after the other."""
        vectors, options = map_vectors(sources.vectors), cast(HnswOptions, sources.options)
        recipe = f"HNSW{options.M}{STORAGE[options.storage][0]}"
        index: Any = faiss.index_factory(vectors.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = options.efConstruction
        if not index.is_trained:
            index.train(training_sample(vectors, SQ_TRAINING_ROWS))
        return _fill(index, vectors, directory)

    def _candidates(self, queries: np.ndarray, top_k: int) -> Sequence[np.ndarray]:
        # Always everything that the walk visited, so that a long list begins with the short one.
        return list(self._index.search(queries, min(max(self._ef_search, top_k), self.count))[1])


class IvfPqIndex(FaissIndex):
    """OPQ, inverted lists, 4-bit product codes scanned in registers, and a refined form that scores the best.

    Held in main memory.
    """

    kind = "ivfpq"
    types = (faiss.IndexRefine,)
    least_agreement = 0.9  # of the coarsest refined form, 4 bits per number
    expected = "an IndexRefine over an IndexIVFPQ or IndexIVFPQFastScan by inner product"

    def __init__(self, directory: Path, settings: Settings) -> None:
        """Open the file; RetrieverError when it is not of this kind, or larger than the free memory."""
        path = directory / FILE
        if path.exists():
            what = f'{path}, an index of the kind "ivfpq",'
            require_memory(path.stat().st_size, what, "hnsw and the flat kinds are memory-mapped")
        super().__init__(directory, settings)
        options = cast(IvfPqOptions, settings.options)
        self._codes: Any = faiss.downcast_index(self._index.base_index)
        self._keeper = faiss.downcast_index(self._index.refine_index)
        self._wanted = options.candidates
        faiss.extract_index_ivf(self._codes).nprobe = options.nprobe

    @classmethod
    def fits(cls, index: faiss.Index) -> bool:
        """Whether it is an IndexRefine over an IVFPQ."""
        codes = (faiss.IndexIVFPQ, faiss.IndexIVFPQFastScan)
        return isinstance(index, cls.types) and isinstance(parts(index)[-1], codes)

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: IndexOptions) -> Needs:
        """The whole index, on disk and in memory, and the sample it is trained on."""
        assert dimension is not None and isinstance(options, IvfPqOptions)
        if count < LEAST_ROWS:
            raise RetrieverError(
                f'the index kind "ivfpq" needs {LEAST_ROWS:,} passages to learn from, '
                f"the corpus has {count:,}: choose flat"
            )
        codes, lists = _codes(dimension, options), _lists(count, options)
        row = codes / 2 + ID_BYTES + dimension * REFINED_BITS[options.refine] / 8
        size = int(count * row) + 4 * dimension * (lists + dimension)
        return Needs(disk=size, memory=size + 4 * dimension * _training_rows(lists))

    @classmethod
    def build(cls, sources: IndexSources, directory: Path) -> list[str]:
        """Train on ROWS_PER_LIST vectors per list, then encode all."""
        vectors, options = map_vectors(sources.vectors), cast(IvfPqOptions, sources.options)
        (count, dimension), lists = vectors.shape, _lists(len(vectors), options)
        codes = _codes(dimension, options)
        recipe = f"OPQ{codes}_{dimension},IVF{lists},PQ{codes}x4fs,Refine({options.refine})"
        index = faiss.index_factory(dimension, recipe, faiss.METRIC_INNER_PRODUCT)
        _train(index, training_sample(vectors, min(count, _training_rows(lists))))
        return _fill(index, vectors, directory)

    def _candidates(self, queries: np.ndarray, top_k: int) -> Sequence[np.ndarray]:
        # Always the same number, so that a long list begins with the short one.
        return list(self._codes.search(queries, min(max(self._wanted, top_k), self.count))[1])


def _train(index: Any, sample: np.ndarray) -> None:
    transformed: Any = faiss.downcast_index(index.base_index)
    opq: Any = faiss.downcast_VectorTransform(transformed.chain.at(0))
    lists: Any = faiss.downcast_index(transformed.index)
    # OPQ learns for the codes that will be used, not for FAISS's default of 8 bits.
    codes = faiss.ProductQuantizer(index.d, lists.pq.M, lists.pq.nbits)
    opq.pq = codes
    for clustering in (lists.cp, lists.pq.cp, codes.cp):
        clustering.min_points_per_centroid = 1  # ROWS_PER_LIST determines the sample: no warnings
    index.train(sample)
    opq.pq = None  # `codes` is freed when this function returns


def _fill(index: faiss.Index, vectors: np.ndarray, directory: Path) -> list[str]:
    for chunk in chunks(vectors, "indexing"):
        index.add(chunk)
    faiss.write_index(index, str(directory / FILE))
    return [FILE]


def _lists(count: int, options: IvfPqOptions) -> int:
    """About 4 sqrt(count) if not set, but no more than there are vectors to train them on."""
    most = count // ROWS_PER_LIST
    if options.nlist > most:
        raise RetrieverError(
            f"--index-option nlist={options.nlist}: {count:,} passages train at most {most:,}"
        )
    return options.nlist or min(2 ** round(math.log2(4 * math.sqrt(count))), most)


def _training_rows(lists: int) -> int:
    return max(ROWS_PER_LIST * lists, LEAST_ROWS)


def _codes(dimension: int, options: IvfPqOptions) -> int:
    codes = options.M or max(1, dimension // 2)
    if dimension % codes:
        raise RetrieverError(f"--index-option M={codes} does not divide the vectors' {dimension} numbers")
    return codes
