"""Hybrid: a dense and a lexical kind, whose lists are joined by reciprocal-rank fusion.

A passage scores the sum of 1 / (60 + rank) over the lists that have it, ranks from 1 (Cormack, Clarke and
Buettcher, SIGIR 2009, with their 60). Only ranks count: inner products and BM25 scores have no common scale.

Both lists always have the same length, `depth`, so that the best k of a longer answer are the answer of
length k. A passage in neither list is not found.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from retriever_server.errors import BUILD_AGAIN, RetrieverError
from retriever_server.indexes import (
    Index,
    IndexSources,
    Needs,
    Queries,
    ScoredRows,
    Settings,
    index_class,
    pad_ranked,
)
from retriever_server.indexes.options import Bm25Options, HybridOptions, IndexOptions, options_of

RANK_OFFSET = 60


class HybridIndex:
    """A dense and a lexical index, joined. Thread-safe."""

    dense = True

    def __init__(self, directory: Path, settings: Settings) -> None:
        """Open both parts; RetrieverError when they are not such indexes, or not of one corpus."""
        self._depth = cast(HybridOptions, settings.options).depth
        self._parts: list[Index] = [
            part(directory / folder, Settings(options)) for folder, part, options in _parts(settings.options)
        ]
        counts = {part.count for part in self._parts}
        if len(counts) > 1:
            raise RetrieverError(f"{directory}: the parts have different numbers of rows; {BUILD_AGAIN}")
        [self.count] = counts

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: IndexOptions) -> Needs:
        """What both parts need; they are built one after the other."""
        needs = [part.needs(count, dimension, own) for _, part, own in _parts(options)]
        return Needs(sum(part.disk for part in needs), max(part.memory for part in needs))

    @classmethod
    def build(cls, sources: IndexSources, directory: Path) -> list[str]:
        """Build each part in its own subfolder."""
        files = []
        for folder, part, options in _parts(sources.options):
            (directory / folder).mkdir(exist_ok=True)
            names = part.build(sources._replace(options=options), directory / folder)
            files += [f"{folder}/{name}" for name in names]
        return files

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """Whether both parts can hold the passages there."""
        return np.logical_and(*(part.check(rows, texts, vectors) for part in self._parts))

    def search(self, queries: Queries, top_k: int) -> ScoredRows:
        """As in the protocol; row -1 with score -inf where the two lists together have fewer."""
        lists = [part.search(queries, self._depth)[1] for part in self._parts]
        top_k = min(top_k, self.count)
        return pad_ranked([join_lists(ranked, top_k) for ranked in zip(*lists, strict=True)], top_k)


def _parts(options: IndexOptions) -> Iterator[tuple[str, type[Index], IndexOptions]]:
    """Subfolder, class and options of each part."""
    hybrid = cast(HybridOptions, options)
    yield "dense", index_class(hybrid.dense), options_of(hybrid.dense)()
    yield "lexical", index_class(hybrid.lexical), Bm25Options(k1=hybrid.k1, b=hybrid.b)


def join_lists(lists: tuple[np.ndarray, ...], top_k: int) -> ScoredRows:
    """Join lists of rows, best first, padded with -1: scores float64 and rows int64, at most `top_k`."""
    rows = np.concatenate(lists)
    ranks = np.concatenate([np.arange(1, len(ranked) + 1) for ranked in lists])
    distinct, of = np.unique(rows[rows >= 0], return_inverse=True)
    sums = np.bincount(of, weights=1 / (RANK_OFFSET + ranks[rows >= 0]), minlength=len(distinct))
    best = np.argsort(-sums, kind="stable")[:top_k]  # `distinct` is in row order
    return sums[best], distinct[best]
