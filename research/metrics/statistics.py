"""The uncertainty of a mean over questions: bootstrap intervals, and the paired test of two runs.

By hand, not scipy.stats: resampling the counts of distinct scores, which are few, takes a small part of the
time and memory of resampling thousands of questions.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
_CHUNK = 5_000_000  # numbers at a time


class Interval(NamedTuple):
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """B - A of two runs over the same questions, its 95% interval, and the two-sided p of no difference."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap(values: np.ndarray, seed: int = 0) -> Interval:
    """Percentile bootstrap (B. Efron, Ann. Statist. 7, 1979) over questions; `values` float [n], n >= 1."""
    means = _resampled_means(np.asarray(values, dtype=np.float64), seed)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


def bootstrap_mean_of(groups: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """The same for the plain mean of the groups' means, resampled within each group; float [n] each."""
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    means = np.mean([_resampled_means(each, seed + place) for place, each in enumerate(values)], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean([each.mean() for each in values])), float(low), float(high))


def paired_difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Difference:
    """Bootstrap interval of mean(b - a), and a sign-flip permutation test; float [n] of the same questions.

    p answers: if chance decided which run a difference belongs to, how often would its mean be as far from 0?
    Raises ValueError for empty values, different lengths, or values that are not finite.
    """
    if len(a) != len(b) or not len(a) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"two runs of the same questions are compared, not {len(a)} and {len(b)} values")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    interval = bootstrap(differences, seed)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return Difference(*interval, 1.0)
    generator, observed, as_far = np.random.default_rng(seed), abs(differences.sum()), 0
    for rows in _chunks(len(sizes)):
        positive = generator.binomial(counts, 0.5, size=(rows, len(sizes)))
        as_far += int((np.abs((2 * positive - counts) @ sizes) >= observed * (1 - 1e-9)).sum())
    return Difference(*interval, (as_far + 1) / (RESAMPLES + 1))  # the observed one counts: never a p of 0


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of RESAMPLES samples, drawn as counts of the distinct values: the same distribution."""
    distinct, counts = np.unique(values, return_counts=True)
    generator, total = np.random.default_rng(seed), len(values)
    sums = [generator.multinomial(total, counts / total, rows) @ distinct for rows in _chunks(len(distinct))]
    return np.concatenate(sums) / total


def _chunks(width: int) -> Iterator[int]:
    """Numbers of rows, RESAMPLES in all, so that no array of `width` columns is too large."""
    most = max(1, _CHUNK // width)
    yield from (min(most, RESAMPLES - start) for start in range(0, RESAMPLES, most))
