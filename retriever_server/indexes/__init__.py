"""Index kinds, one class each, by the names that `build --index` takes.

A kind is built once from `IndexSources`, into files of its own inside the index directory, and opened from
there. To add one, write a class with the members of `Index` and name it in KINDS.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol

import click
import numpy as np

from retriever_server.corpus import Corpus
from retriever_server.errors import RetrieverError
from retriever_server.indexes.options import IndexOptions

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
"""Name -> module of this package and class, imported when it is used."""
GPU_KINDS = ("flat", "flat_fp16")
Device = Literal["cpu", "gpu", "auto"]
ScoredRows = tuple[np.ndarray, np.ndarray]
"""Scores float64 [q, k] and rows int64 [q, k], or [k] each for one query."""


class IndexSources(NamedTuple):
    """What an index is built from: passages, options, and for dense kinds a flat index file of vectors."""

    corpus: Corpus
    vectors: Path | None
    options: IndexOptions


class Settings(NamedTuple):
    """How an index is opened: the options of its kind, and where it is searched."""

    options: IndexOptions
    device: Device = "cpu"


class Needs(NamedTuple):
    """Approximate bytes: `disk` of the index's own files, and `memory` while it is built."""

    disk: int
    memory: int


class Queries(NamedTuple):
    """Texts, and for dense kinds their unit vectors, float32 [q, dimension]."""

    texts: list[str]
    vectors: np.ndarray | None = None


class Index(Protocol):
    """An opened index, read only, thread-safe."""

    dense: ClassVar[bool]
    """Whether an encoder's vectors are searched."""
    count: int

    def __init__(self, directory: Path, settings: Settings) -> None:
        """Open the files in `directory`.

        Raises RetrieverError when they are not such an index, or do not fit where they are to be searched.
        """

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: IndexOptions) -> Needs:
        """What building over `count` passages takes beside the vectors; RetrieverError if impossible."""

    @classmethod
    def build(cls, sources: IndexSources, directory: Path) -> list[str]:
        """Write the index into `directory`; returns the names of its files."""

    def search(self, queries: Queries, top_k: int) -> ScoredRows:
        """Scores float64 [q, k] and rows int64 [q, k], best first, equal scores in row order.

        k = min(top_k, count); missing results are row -1 with score -inf.
        """

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """Whether each row can be the passage with this text and vector [rows, dimension]: bool [rows].

        `vectors` is None for kinds that are not dense. Raises RetrieverError when the dimension differs.
        """


def pad_ranked(ranked: Sequence[ScoredRows], top_k: int) -> ScoredRows:
    """(scores, rows) of each query, at most `top_k`, in the form that `Index.search` returns."""
    scores = np.full((len(ranked), top_k), -np.inf)
    rows = np.full((len(ranked), top_k), -1, np.int64)
    for i, (of_query, found) in enumerate(ranked):
        scores[i, : len(found)], rows[i, : len(found)] = of_query, found
    return scores, rows


def index_class(kind: str) -> type[Index]:
    """The class of a kind; RetrieverError with all kinds if there is none of this name."""
    if kind not in KINDS:
        raise RetrieverError(f'no index kind "{kind}"; there are: {", ".join(KINDS)}')
    module, name = KINDS[kind].split(":")
    return getattr(import_module(f"{__name__}.{module}"), name)


def open_index(kind: str, directory: Path, settings: Settings) -> Index:
    """Open the index of this kind in `directory`.

    Raises RetrieverError as the kind does, and when the kind cannot be searched on the requested GPU.
    """
    if settings.device != "cpu" and kind not in GPU_KINDS:
        problem = f'the index kind "{kind}" is searched on the CPU (on GPUs: {", ".join(GPU_KINDS)})'
        if settings.device == "gpu":
            raise RetrieverError(f"--index-device gpu: {problem}")
        click.echo(problem, err=True)
    return index_class(kind)(directory, settings)
