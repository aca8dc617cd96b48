"""Which held-out episodes the report shows."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from research.environments.headline import Headline
from research.episode.trajectory import Trajectory
from research.training.config import headline_of
from research.training.run_files import read_step
from research.training.watch.table import Key, held_out_metrics, held_out_split, key_of, step_after

# Whether it was well done (before, after the training), None where it was not asked; in the page's order.
VERDICTS: tuple[tuple[bool | None, bool | None], ...] = (
    (False, True),
    (True, False),
    (False, False),
    (True, True),
    (False, None),
    (True, None),
    (None, False),
    (None, True),
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
        found = self.after or self.before
        assert found is not None
        return found


def choose_pairs(run_dir: Path, count: int) -> list[Pair]:
    """A mix of ``count`` questions that were searched for real, with as many of each verdict as there are."""
    split = held_out_split(run_dir)
    steps, headline = (0, step_after(run_dir, split)), headline_of(run_dir)
    done = [_well_done(held_out_metrics(run_dir, split, step), headline) for step in steps]
    groups: dict[tuple[bool | None, bool | None], list[Key]] = defaultdict(list)
    for key in sorted({*done[0], *done[1]}, key=_shuffled):
        groups[done[0].get(key), done[1].get(key)].append(key)
    in_turn = chain.from_iterable(zip_longest(*(groups[verdict] for verdict in VERDICTS)))
    chosen = set([key for key in in_turn if key is not None][:count])
    before, after = (dict(_read(run_dir, split, step, chosen)) for step in steps)
    return [
        Pair(_words(*verdict, headline), before.get(key), after.get(key))
        for verdict in VERDICTS
        for key in groups[verdict]
        if key in chosen
    ]


def _well_done(metrics: dict[Key, dict[str, float]], headline: Headline) -> dict[Key, bool]:
    return {key: headline.well_done(row) for key, row in metrics.items() if not key.control}


def _words(before: bool | None, after: bool | None, headline: Headline) -> str:
    """``wrong before, right after``"""
    good, bad = headline.verdicts
    words = {True: good, False: bad, None: "not asked"}
    if before == after:
        return f"{words[before]} before and after"
    return f"{words[before]} before, {words[after]} after"


def _shuffled(key: Key) -> str:
    """An order without meaning that is the same each time."""
    return hashlib.sha256(repr(key).encode()).hexdigest()


def _read(
    run_dir: Path, split: str, step: int | None, chosen: Iterable[Key]
) -> Iterator[tuple[Key, Trajectory]]:
    """The chosen episodes of a step. A file is gone through, not held: it can have gigabytes as objects."""
    for trajectory in read_step(run_dir, step, split) if step is not None else ():
        if key_of(trajectory) in chosen:
            yield key_of(trajectory), trajectory
