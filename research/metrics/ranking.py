"""Measures of a ranking against the passages that are wanted, each counting the same (binary relevance).

Ids count once, in a ranking where they stand first.
"""

import math
from collections.abc import Callable, Collection, Sequence


def ndcg(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """nDCG@k (Järvelin and Kekäläinen 2002), as trec_eval's ``ndcg_cut``: a wanted passage at rank r, from 1,
    gives 1/log2(r + 1); as a share of what the best ranking gives. 0 where nothing is wanted.
    """
    wanted = set(gold)
    gained = sum(_gain(rank) for rank, name in enumerate(_best(ranked, k), start=1) if name in wanted)
    best = sum(_gain(rank) for rank in range(1, min(k, len(wanted)) + 1))
    return gained / best if best else 0.0


def recall(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """Share of the wanted passages that are among the k best. 0 where nothing is wanted."""
    wanted = set(gold)
    return len(wanted.intersection(_best(ranked, k))) / len(wanted) if wanted else 0.0


def _best(ranked: Sequence[str], k: int) -> list[str]:
    return list(dict.fromkeys(ranked))[:k]


def _gain(rank: int) -> float:
    return 1.0 / math.log2(rank + 1)


MEASURES: dict[str, Callable[[Sequence[str], Collection[str], int], float]] = {"ndcg": ndcg, "recall": recall}
"""By name: (ids of the ranking, best first; wanted ids; k) -> 0 to 1."""
