"""Index kinds, one class each, by the names that `build --index` takes.

A kind is built once from what `Sources` offers, into files of its own inside the index directory, and opened
from there. To add one, write a class with the members of `Index` and name it in KINDS.
"""

from importlib import import_module
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from retriever_server.corpus import Corpus
from retriever_server.errors import RetrieverError

KINDS = {
    "flat": "flat:FlatIndex",
    "bm25": "bm25:Bm25Index",
    "bm25_query_weighted": "bm25:QueryWeightedBm25Index",
    "hybrid": "hybrid:HybridIndex",
}
"""name -> module of this package and class; imported when it is used"""


class Sources(NamedTuple):
    """What an index is built from: the passages, and for dense kinds a flat index file of their vectors."""

    corpus: Corpus
    vectors: Path | None


class Queries(NamedTuple):
    """Queries as a kind wants them: texts always, float32 unit vectors [q, dimension] for dense kinds."""

    texts: list[str]
    vectors: np.ndarray | None = None


class Index(Protocol):
    """An opened index, read only, safe to search from many threads."""

    dense: ClassVar[bool]
    """Whether an encoder's vectors are searched."""
    count: int

    def __init__(self, directory: Path) -> None:
        """Open the files in `directory`. Raises RetrieverError when they are not such an index."""

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
