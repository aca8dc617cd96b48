"""Which held-out episodes the report shows."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from research.training.run_files import read_trajectories, trajectory_path
from research.training.table import Key, held_out_metrics, held_out_split, key_of, last_step
from research.trajectory import Trajectory

# Whether the answer was right (before, after the training), None where it was not asked; in the page's order.
VERDICTS: dict[tuple[bool | None, bool | None], str] = {
    (False, True): "wrong before, right after",
    (True, False): "right before, wrong after",
    (False, False): "wrong before and after",
    (True, True): "right before and after",
    (False, None): "wrong before, not asked after",
    (True, None): "right before, not asked after",
    (None, False): "not asked before, wrong after",
    (None, True): "not asked before, right after",
}


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
    steps = (0, last_step(run_dir, split))
    right = [_right(held_out_metrics(run_dir, split, step)) for step in steps]
    groups: dict[str, list[Key]] = defaultdict(list)
    for key in sorted({*right[0], *right[1]}, key=_shuffled):
        groups[VERDICTS[right[0].get(key), right[1].get(key)]].append(key)
    in_turn = chain.from_iterable(zip_longest(*(groups[verdict] for verdict in VERDICTS.values())))
    chosen = set([key for key in in_turn if key is not None][:count])
    before, after = (dict(_read(run_dir, split, step, chosen)) for step in steps)
    return [
        Pair(verdict, before.get(key), after.get(key))
        for verdict in VERDICTS.values()
        for key in groups[verdict]
        if key in chosen
    ]


def _right(metrics: dict[Key, dict[str, float]]) -> dict[Key, bool]:
    return {key: row["em"] == 1.0 for key, row in metrics.items() if not key.control}


def _shuffled(key: Key) -> str:
    """An order without meaning that is the same each time."""
    return hashlib.sha256(repr(key).encode()).hexdigest()


def _read(
    run_dir: Path, split: str, step: int | None, chosen: Iterable[Key]
) -> Iterator[tuple[Key, Trajectory]]:
    """The chosen episodes of a step. A file is gone through, not held: it can have gigabytes as objects."""
    path = trajectory_path(run_dir, step, split) if step is not None else None
    for trajectory in read_trajectories(path) if path and path.exists() else ():
        if key_of(trajectory) in chosen:
            yield key_of(trajectory), trajectory
