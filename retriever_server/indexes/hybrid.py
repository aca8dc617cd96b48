"""Hybrid: a dense and a lexical kind, both asked, their lists joined by reciprocal-rank fusion.

A passage scores the sum of 1 / (60 + rank) over the lists that have it, ranks from 1 (Cormack, Clarke and
Buettcher, SIGIR 2009, with their 60). Ranks alone count: inner products and BM25 scores have no common scale.

Both lists have the same length whatever is asked for, `depth`, so that the best k of a longer answer are the
answer of length k. A passage that neither list has is not found.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retriever_server.errors import BUILD_AGAIN, RetrieverError
from retriever_server.indexes import Index, Queries, Sources, index_class
from retriever_server.indexes.bm25 import Bm25Index

SETTINGS_FILE = "hybrid.json"
PARTS = ("dense", "lexical")
"""Subfolders, one a part."""
RANK_OFFSET = 60
DEPTH = 1000  # as long as the longest answer that the service gives


class Settings(NamedTuple):
    """The two kinds, and how many passages of each list are joined."""

    dense: str = "flat"
    lexical: str = "bm25"
    depth: int = DEPTH


def settings(options: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """The settings that options name, dense, lexical and depth, and the other options, which are those of the
    lexical kind. RetrieverError for a kind that is not of its sort and for a depth that is no whole number
    above 0.
    """
    own = {name: value for name, value in options.items() if name in Settings._fields}
    rest = {name: value for name, value in options.items() if name not in own}
    depth = own.pop("depth", str(DEPTH))
    if not depth.isdecimal() or int(depth) < 1:
        raise RetrieverError(f'the depth of a hybrid index must be a whole number above 0, not "{depth}"')
    chosen = Settings(**own, depth=int(depth))
    dense, lexical = index_class(chosen.dense), index_class(chosen.lexical)
    if not dense.dense or dense is HybridIndex or not issubclass(lexical, Bm25Index):
        raise RetrieverError(
            f"hybrid joins a dense kind and one of BM25, not {chosen.dense} and {chosen.lexical}"
        )
    return chosen, rest


class HybridIndex:
    """A dense and a lexical index, joined. Safe to search from many threads."""

    dense = True

    def __init__(self, directory: Path) -> None:
        """Raises RetrieverError when the files are not such an index."""
        path = directory / SETTINGS_FILE
        try:
            chosen = Settings(**json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise RetrieverError(f"{path}: {error}; {BUILD_AGAIN}") from error
        kinds = (chosen.dense, chosen.lexical)
        self._parts: list[Index] = [
            index_class(kind)(directory / part) for part, kind in zip(PARTS, kinds, strict=True)
        ]
        self._depth = chosen.depth
        counts = {part.count for part in self._parts}
        if len(counts) > 1:
            raise RetrieverError(f"{directory}: the parts have different numbers of rows; {BUILD_AGAIN}")
        [self.count] = counts

    @classmethod
    def build(cls, sources: Sources, directory: Path, options: Mapping[str, str] | None = None) -> list[str]:
        """Each part in a subfolder of its own; options are those of settings()."""
        chosen, rest = settings(options or {})
        dense, lexical = index_class(chosen.dense), index_class(chosen.lexical)
        assert issubclass(lexical, Bm25Index)
        for name in PARTS:
            (directory / name).mkdir(exist_ok=True)
        files = {
            "dense": dense.build(sources, directory / "dense"),
            "lexical": lexical.build(sources, directory / "lexical", rest),
        }
        (directory / SETTINGS_FILE).write_text(json.dumps(chosen._asdict()) + "\n")
        return [SETTINGS_FILE, *(f"{part}/{file}" for part in PARTS for file in files[part])]

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
