"""Several lists of one question fused into one. Pure functions.

`sum` (as in ReDI): the sum of a passage's scores in all lists. In a list that was cut at its length, a
missing passage gets the lowest score there, the most it can have had; in a shorter list it shares no word
with the text, and gets 0. So the sum over whole lists is exact.

`rrf` (G. Cormack, C. Clarke, S. Buettcher, SIGIR 2009): the sum of 1 / (k + rank), ranks from 1; a list that
lacks a passage adds nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

PassageScores = Mapping[str, float]
"""id of a passage -> score, higher is better"""
FUSIONS = ("sum", "rrf")


def fused(
    lists: Sequence[PassageScores], weights: Sequence[float], fusion: str, length: int, k: int = 60
) -> dict[str, float]:
    """The `length` best, best first, from lists of at most `length`; a single list of weight 1 as it is."""
    if len(lists) == 1 and weights[0] == 1:
        return best(lists[0], length)
    scores = summed(lists, weights, length) if fusion == "sum" else reciprocal_ranks(lists, weights, k)
    return best(scores, length)


def summed(lists: Sequence[PassageScores], weights: Sequence[float], length: int) -> dict[str, float]:
    """The weighted sum of scores for each passage of any list; missing ones as the module says."""
    floors = [min(scores.values()) if len(scores) >= length else 0.0 for scores in lists]
    total = dict.fromkeys((name for scores in lists for name in scores), 0.0)
    for scores, weight, floor in zip(lists, weights, floors, strict=True):
        for name in total:
            total[name] += weight * scores.get(name, floor)
    return total


def reciprocal_ranks(lists: Sequence[PassageScores], weights: Sequence[float], k: int) -> dict[str, float]:
    """The weighted sum of 1 / (k + rank) for each passage of any list."""
    total: dict[str, float] = defaultdict(float)
    for scores, weight in zip(lists, weights, strict=True):
        for rank, name in enumerate(best(scores, len(scores)), start=1):
            total[name] += weight / (k + rank)
    return dict(total)


def best(scores: PassageScores, length: int) -> dict[str, float]:
    """The `length` best, best first; equal scores by descending id, as trec_eval breaks ties."""
    names = sorted(scores, key=lambda name: (scores[name], name.encode()), reverse=True)
    return {name: scores[name] for name in names[:length]}
