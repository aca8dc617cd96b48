"""Pairs of trajectories of the same question, one from each of two runs. Pure functions."""

from collections.abc import Sequence

from research.viewer.query import Entry
from research.viewer.rows import Row

# What two trajectories must have in common besides question and sample, if the runs share any value of it.
# Otherwise it is what is compared: files of step 0 and step 60, say, or methods that only one run has.
TRAITS = ("split", "source", "method", "control", "step")


def pair(left: Sequence[Row], right: Sequence[Row]) -> list[Entry]:
    """An entry for each question of either side, in the order of the left one, then of the right one.

    A trait of which the two sides share no value is ignored; the last of several trajectories that are then
    alike on one side counts.
    """
    values = [[{getattr(row, name) for row in side} for side in (left, right)] for name in TRAITS]
    shared = [name for name, (lefts, rights) in zip(TRAITS, values, strict=True) if lefts & rights]

    def by_question(rows: Sequence[Row]) -> dict[tuple[object, ...], Row]:
        return {(row.id, row.sample, *(getattr(row, name) for name in shared)): row for row in rows}

    of_left, of_right = by_question(left), by_question(right)
    return [Entry(of_left.get(key), of_right.get(key)) for key in {**of_left, **of_right}]
