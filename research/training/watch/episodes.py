"""Which held-out episodes the report shows."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from research.environments.headline import Headline
from research.episode.trajectory import Trajectory
from research.training.watch.table import EpisodeKey, HeldOut

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


def choose_pairs(run_dir: Path, count: int) -> list[Pair]:
    """A mix of ``count`` questions with real searches, balanced over the verdicts as far as possible."""
    held_out = HeldOut(run_dir)
    headline, steps = held_out.headline, (0, held_out.after)
    done = [
        {key: headline.well_done(row) for key, row in held_out.metrics(step).items() if not key.control}
        for step in steps
    ]
    groups: dict[Comparison, list[EpisodeKey]] = defaultdict(list)
    # In an order without meaning that is the same each time.
    for key in sorted({*done[0], *done[1]}, key=lambda key: hashlib.sha256(repr(key).encode()).hexdigest()):
        groups[done[0].get(key), done[1].get(key)].append(key)
    in_turn = chain.from_iterable(zip_longest(*(groups[verdict] for verdict in PAGE_ORDER)))
    chosen = set([key for key in in_turn if key is not None][:count])
    before, after = (
        {key: trajectory for key, trajectory in held_out.episodes(step) if key in chosen} for step in steps
    )
    return [
        Pair(_describe(*verdict, headline), before.get(key), after.get(key))
        for verdict in PAGE_ORDER
        for key in groups[verdict]
        if key in chosen
    ]


def _describe(before: bool | None, after: bool | None, headline: Headline) -> str:
    """``wrong before, right after``"""
    good, bad = headline.verdicts
    names = {True: good, False: bad, None: "not asked"}
    if before == after:
        return f"{names[before]} before and after"
    return f"{names[before]} before, {names[after]} after"
