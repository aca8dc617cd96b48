"""Which held-out episodes the report shows."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from research.environments.headline import Headline
from research.episode.trajectory import Trajectory
from research.training.config import headline_of
from research.training.run_files import read_step
from research.training.watch.table import (
    EpisodeKey,
    episode_key,
    held_out_metrics,
    held_out_split,
    step_after,
)

Comparison = tuple[bool | None, bool | None]
"""Whether an episode went well before and after the training; None if there was none"""
PAGE_ORDER: tuple[Comparison, ...] = (
    *((False, True), (True, False), (False, False), (True, True)),
    *((False, None), (True, None), (None, False), (None, True)),
)


@dataclass(frozen=True)
class Pair:
    """A held-out question with its episodes before and after."""

    verdict: str
    before: Trajectory | None
    after: Trajectory | None

    @property
    def either(self) -> Trajectory:
        """For what both have in common: question, gold answers, source."""
        episode = self.after or self.before
        assert episode is not None
        return episode


def choose_pairs(run_dir: Path, count: int) -> list[Pair]:
    """A mix of ``count`` questions with real searches, with as many of each verdict as there are."""
    split = held_out_split(run_dir)
    steps, headline = (0, step_after(run_dir, split)), headline_of(run_dir)
    done = [_well_done(held_out_metrics(run_dir, split, step), headline) for step in steps]
    groups: dict[Comparison, list[EpisodeKey]] = defaultdict(list)
    for key in sorted({*done[0], *done[1]}, key=_shuffled):
        groups[done[0].get(key), done[1].get(key)].append(key)
    in_turn = chain.from_iterable(zip_longest(*(groups[verdict] for verdict in PAGE_ORDER)))
    chosen = set([key for key in in_turn if key is not None][:count])
    before, after = (dict(_read(run_dir, split, step, chosen)) for step in steps)
    return [
        Pair(_describe(*verdict, headline), before.get(key), after.get(key))
        for verdict in PAGE_ORDER
        for key in groups[verdict]
        if key in chosen
    ]


def _well_done(metrics: dict[EpisodeKey, dict[str, float]], headline: Headline) -> dict[EpisodeKey, bool]:
    return {key: headline.well_done(row) for key, row in metrics.items() if not key.control}


def _describe(before: bool | None, after: bool | None, headline: Headline) -> str:
    """``wrong before, right after``"""
    good, bad = headline.verdicts
    names = {True: good, False: bad, None: "not asked"}
    if before == after:
        return f"{names[before]} before and after"
    return f"{names[before]} before, {names[after]} after"


def _shuffled(key: EpisodeKey) -> str:
    """A sort key without meaning that is the same each time."""
    return hashlib.sha256(repr(key).encode()).hexdigest()


def _read(
    run_dir: Path, split: str, step: int | None, chosen: set[EpisodeKey]
) -> Iterator[tuple[EpisodeKey, Trajectory]]:
    """The chosen episodes of a step. The file is streamed: as objects it can take gigabytes."""
    for trajectory in read_step(run_dir, step, split) if step is not None else ():
        if episode_key(trajectory) in chosen:
            yield episode_key(trajectory), trajectory
