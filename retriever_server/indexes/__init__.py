"""Index kinds, one class each, by the names that `build --index` takes.

A kind is built once from what `Sources` offers, into files of its own inside the index directory, and opened
from there. To add one, write a class with the members of `Index` and name it in KINDS.
"""

from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol

import click
import numpy as np

from retriever_server.corpus import Corpus
from retriever_server.errors import RetrieverError
from retriever_server.indexes.options import Options

KINDS = {
    "flat": "flat:FlatIndex",
    "flat_fp16": "scalar:HalfIndex",
    "sq8": "scalar:ByteIndex",
    "hnsw": "ann:HnswIndex",
    "ivfpq": "ann:IvfPqIndex",
    "bm25": "bm25:Bm25Index",
    "bm25_query_weighted": "bm25:QueryWeightedBm25Index",
    "hybrid": "hybrid:HybridIndex",
}
"""name -> module of this package and class; imported when it is used"""
GPU_KINDS = ("flat", "flat_fp16")
Device = Literal["cpu", "gpu", "auto"]


class Sources(NamedTuple):
    """What an index is built from: the passages, for dense kinds a flat index file of their vectors, and the
    options of the kind.
    """

    corpus: Corpus
    vectors: Path | None
    options: Options


class Settings(NamedTuple):
    """How an index is opened: the options of its kind, and where it is searched."""

    options: Options
    device: Device = "cpu"


class Needs(NamedTuple):
    """Bytes, about: `disk` of the index's own files, and `memory` while they are made."""

    disk: int
    memory: int


class Queries(NamedTuple):
    """Queries as a kind wants them: texts always, float32 unit vectors [q, dimension] for dense kinds."""

    texts: list[str]
    vectors: np.ndarray | None = None


class Index(Protocol):
    """An opened index, read only, safe to search from many threads."""

    dense: ClassVar[bool]
    """Whether an encoder's vectors are searched."""
    count: int

    def __init__(self, directory: Path, settings: Settings) -> None:
        """Open the files in `directory`. Raises RetrieverError when they are not such an index, or when they
        do not fit where they are to be searched.
        """

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: Options) -> Needs:
        """What building over `count` passages takes beside the vectors. Raises RetrieverError when no such
        index can be built.
        """

    @classmethod
    def build(cls, sources: Sources, directory: Path) -> list[str]:
        """Write the index into `directory`; returns the names of its files."""

    def search(self, queries: Queries, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores float64 [q, k] and rows int64 [q, k], k = min(top_k, count), best first, equal scores in row
        order; row -1 with score -inf where the index found fewer.
        """

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """For each of `rows` whether the index can hold the passage there that has the contents `texts` and
        the `vectors` [rows, dimension]: bool [rows].

        `vectors` is None for kinds that are not dense. Raises RetrieverError when the dimension differs.
        """


def index_class(kind: str) -> type[Index]:
    """The class of a kind; RetrieverError that names all kinds if there is none of this name."""
    if kind not in KINDS:
        raise RetrieverError(f'no index kind "{kind}"; there are: {", ".join(KINDS)}')
    module, name = KINDS[kind].split(":")
    found: type[Index] = getattr(import_module(f"{__name__}.{module}"), name)
    return found


def open_index(kind: str, directory: Path, settings: Settings) -> Index:
    """Open the index of this kind in `directory`.

    Raises RetrieverError as the kind does, and when the kind cannot be searched on the GPU that is asked for.
    """
    if settings.device != "cpu" and kind not in GPU_KINDS:
        problem = f'the index kind "{kind}" is searched on the CPU (on GPUs: {", ".join(GPU_KINDS)})'
        if settings.device == "gpu":
            raise RetrieverError(f"--index-device gpu: {problem}")
        click.echo(problem, err=True)
    return index_class(kind)(directory, settings)
