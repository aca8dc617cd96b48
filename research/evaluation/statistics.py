"""How sure a mean over questions is: bootstrap intervals, and the paired test of two runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
_CHUNK = 5_000_000  # numbers at once


class Interval(NamedTuple):
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Of two runs over the same questions: B - A with its 95% interval, and the two-sided p of no
    difference.
    """

    mean: float
    low: float
    high: float
    p: float


def bootstrap(values: np.ndarray, seed: int = 0) -> Interval:
    """Percentile bootstrap (B. Efron, Ann. Statist. 7, 1979) over questions; `values` float [n], n >= 1.

    The same values give the same interval.
    """
    means = _resampled_means(np.asarray(values, dtype=np.float64), seed)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


def bootstrap_mean_of(groups: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """The same for the plain mean of the groups' means; the values of each group, float [n], are drawn anew
    within it.
    """
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    means = np.mean([_resampled_means(each, seed + place) for place, each in enumerate(values)], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean([each.mean() for each in values])), float(low), float(high))


def paired_difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Difference:
    """Bootstrap interval of mean(b - a), and a sign-flip permutation test: were it chance which run a
    difference belongs to, how often would its mean be as far from 0? `a` and `b` float [n] of the same
    questions.
    """
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    interval = bootstrap(differences, seed)
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return Difference(*interval, 1.0)
    generator = np.random.default_rng(seed)
    observed, as_far, total = abs(nonzero.sum()), 0, 0
    while total < RESAMPLES:
        count = min(RESAMPLES - total, max(1, _CHUNK // len(nonzero)))
        signs = generator.integers(0, 2, size=(count, len(nonzero)), dtype=np.int8) * 2 - 1
        as_far += int((np.abs(signs @ nonzero) >= observed - 1e-9).sum())
        total += count
    return Difference(*interval, (as_far + 1) / (total + 1))  # the observed one counts: never a p of 0


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    while sum(map(len, means)) < RESAMPLES:
        count = min(RESAMPLES - sum(map(len, means)), max(1, _CHUNK // len(values)))
        means.append(values[generator.integers(len(values), size=(count, len(values)))].mean(axis=1))
    return np.concatenate(means)
