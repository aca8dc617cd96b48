"""Hybrid: a dense and a lexical kind, both asked, their lists joined by reciprocal-rank fusion.

A passage scores the sum of 1 / (60 + rank) over the lists that have it, ranks from 1 (Cormack, Clarke and
Buettcher, SIGIR 2009, with their 60). Ranks alone count: inner products and BM25 scores have no common scale.

Both lists have the same length whatever is asked for, `depth`, so that the best k of a longer answer are the
answer of length k. A passage that neither list has is not found.
"""

from pathlib import Path
from typing import cast

import numpy as np

from retriever_server.errors import BUILD_AGAIN, RetrieverError
from retriever_server.indexes import Index, Needs, Queries, Settings, Sources, index_class
from retriever_server.indexes.options import Bm25Options, HybridOptions, Options, options_of

RANK_OFFSET = 60


class HybridIndex:
    """A dense and a lexical index, joined. Safe to search from many threads."""

    dense = True

    def __init__(self, directory: Path, settings: Settings) -> None:
        """Raises RetrieverError when the parts are not such indexes, or not of one corpus."""
        options = cast(HybridOptions, settings.options)
        self._depth = options.depth
        self._parts: list[Index] = [
            index_class(kind)(directory / part, Settings(chosen))
            for part, (kind, chosen) in _parts(options).items()
        ]
        counts = {part.count for part in self._parts}
        if len(counts) > 1:
            raise RetrieverError(f"{directory}: the parts have different numbers of rows; {BUILD_AGAIN}")
        [self.count] = counts

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: Options) -> Needs:
        """What both parts need; they are built one after the other."""
        of_parts = [
            index_class(kind).needs(count, dimension, chosen)
            for kind, chosen in _parts(cast(HybridOptions, options)).values()
        ]
        return Needs(sum(part.disk for part in of_parts), max(part.memory for part in of_parts))

    @classmethod
    def build(cls, sources: Sources, directory: Path) -> list[str]:
        """Each part in a subfolder of its own."""
        files = []
        for part, (kind, chosen) in _parts(cast(HybridOptions, sources.options)).items():
            (directory / part).mkdir(exist_ok=True)
            of_part = index_class(kind).build(sources._replace(options=chosen), directory / part)
            files += [f"{part}/{name}" for name in of_part]
        return files

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """Whether both parts can hold the passages there."""
        return np.logical_and(*(part.check(rows, texts, vectors) for part in self._parts))

    def search(self, queries: Queries, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores float64 [q, k] and rows int64 [q, k], k = min(top_k, count), best first, equal scores in row
        order; row -1 with -inf where the two lists together have fewer.
        """
        lists = [part.search(queries, self._depth)[1] for part in self._parts]
        joined = [fuse(ranked, min(top_k, self.count)) for ranked in zip(*lists, strict=True)]
        return np.stack([scores for scores, _ in joined]), np.stack([rows for _, rows in joined])


def _parts(options: HybridOptions) -> dict[str, tuple[str, Options]]:
    """Subfolder -> kind and options of each part."""
    lexical = Bm25Options(k1=options.k1, b=options.b)
    return {
        "dense": (options.dense, options_of(options.dense)()),
        "lexical": (options.lexical, lexical),
    }


def fuse(lists: tuple[np.ndarray, ...], top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Join lists of rows, best first, -1 where there is none: scores float64 [top_k], rows int64 [top_k]."""
    rows = np.concatenate(lists)
    ranks = np.concatenate([np.arange(1, len(ranked) + 1) for ranked in lists])
    found, of = np.unique(rows[rows >= 0], return_inverse=True)
    sums = np.bincount(of, weights=1 / (RANK_OFFSET + ranks[rows >= 0]), minlength=len(found))
    best = np.argsort(-sums, kind="stable")[:top_k]  # `found` is in row order
    scores, best_rows = np.full(top_k, -np.inf), np.full(top_k, -1, np.int64)
    scores[: len(best)], best_rows[: len(best)] = sums[best], found[best]
    return scores, best_rows
