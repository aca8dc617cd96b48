"""Paired tests of a run: the same held-out questions before and after, and under the supervised control.

Only questions with real search count; the measure is the environment's (EM, nDCG@10).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.metrics.statistics import Difference, paired_difference
from research.training.run_files import read_metrics
from research.training.watch.table import HeldOut

HEADER = ("same questions: A, B", "questions", "A", "B", "B - A [95%]", "won", "lost", "p")
NOTE = "Won and lost: questions on which B is better or worse; p is that of a sign-flip permutation test."
SUPERVISED = "supervised"  # folder of the control in the run's
HOPS = re.compile(r"_\d+hop$")

Scores = dict[tuple[str, str], float]
"""(data source, question id) -> the measure, mean of its samples"""


class Comparison(NamedTuple):
    """Two policies on the questions that both were asked; `first` and `second` are their means."""

    name: str
    questions: int
    first: float
    second: float
    difference: Difference
    won: int
    lost: int

    def cells(self) -> tuple[str, ...]:
        """One text for each of HEADER."""
        difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*self.difference[:3])
        means = (f"{self.first:.3f}", f"{self.second:.3f}")
        counts = (str(self.won), str(self.lost))
        return (self.name, str(self.questions), *means, difference, *counts, f"{self.difference.p:.4f}")


def comparisons(run_dir: Path) -> list[Comparison]:
    """By data source, by data set if it has several, and over all; then the supervised control, if any."""
    held_out = HeldOut(run_dir)
    before, after = (_scores(held_out, step) for step in (0, held_out.after))
    found = [
        _compared(f"{name}: before, after", _of(sources, before), after)
        for name, sources in _groups(before, after)
    ]
    if read_metrics(run_dir / SUPERVISED):  # it was judged to the end
        control = _scores(HeldOut(run_dir / SUPERVISED), 0)
        found.append(_compared("all: before, supervised", before, control))
        found.append(_compared("all: after, supervised", after, control))
    return [one for one in found if one]


def _scores(held_out: HeldOut, step: int | None) -> Scores:
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    for key, metrics in held_out.metrics(step).items():
        if not key.control:
            samples[key.source, key.id].append(metrics[held_out.headline.metric])
    return {key: sum(values) / len(values) for key, values in samples.items()}


def _groups(before: Scores, after: Scores) -> Iterator[tuple[str, set[str]]]:
    """Names of groups of questions with their data sources, no group twice."""
    sources = sorted({source for source, _ in before.keys() & after.keys()})
    yield from ((source, {source}) for source in sources)
    sets: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        sets[HOPS.sub("", source)].add(source)
    if len(sets) > 1:
        yield from ((name, members) for name, members in sets.items() if len(members) > 1)
    if len(sources) > 1:
        yield "all", set(sources)


def _of(sources: set[str], scores: Scores) -> Scores:
    return {key: score for key, score in scores.items() if key[0] in sources}


def _compared(name: str, first: Scores, second: Scores) -> Comparison | None:
    """The comparison; None without a common question."""
    keys = sorted(first.keys() & second.keys())
    if not keys:
        return None
    a, b = (np.array([scores[key] for key in keys]) for scores in (first, second))
    won, lost = int((b > a).sum()), int((b < a).sum())
    return Comparison(name, len(keys), float(a.mean()), float(b.mean()), paired_difference(a, b), won, lost)
