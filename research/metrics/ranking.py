"""Measures of a ranking against the relevant passages, which all count the same (binary relevance).

A repeated id counts once, at its first rank. pytrec_eval gives the same figures for whole runs; rewards need
single rankings, thousands of times per step.
"""

import math
from collections.abc import Callable, Collection, Sequence


def ndcg(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """nDCG@k (Järvelin and Kekäläinen 2002) as trec_eval's ``ndcg_cut``; 0 if nothing is relevant.

    A relevant passage at rank r, from 1, gains 1/log2(r + 1), as a share of the best possible gain.
    """
    wanted = set(gold)
    gained = sum(_gain(rank) for rank, name in enumerate(_best(ranked, k), start=1) if name in wanted)
    best = sum(_gain(rank) for rank in range(1, min(k, len(wanted)) + 1))
    return gained / best if best else 0.0


def recall(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """The share of relevant passages among the k best; 0 if nothing is relevant."""
    wanted = set(gold)
    return len(wanted.intersection(_best(ranked, k))) / len(wanted) if wanted else 0.0


def _best(ranked: Sequence[str], k: int) -> list[str]:
    return list(dict.fromkeys(ranked))[:k]


def _gain(rank: int) -> float:
    return 1.0 / math.log2(rank + 1)


MEASURES: dict[str, Callable[[Sequence[str], Collection[str], int], float]] = {"ndcg": ndcg, "recall": recall}
"""By name: (ids of the ranking, best first; wanted ids; k) -> 0 to 1."""
