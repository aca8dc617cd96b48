"""Pairs of trajectories of the same question, one of each of two runs. Pure functions."""

from collections.abc import Sequence

from research.viewer.query import Entry
from research.viewer.rows import Row

# Besides question and sample: what two trajectories must have in common, wherever the runs can be told to use
# the same values. Files of step 0 and step 60, or methods that one run alone has, are what is to be compared.
TRAITS = ("split", "source", "method", "control", "step")


def pair(left: Sequence[Row], right: Sequence[Row]) -> list[Entry]:
    """An entry for each question of either side, in the order of the left one, then of the right one.

    A trait of which the two sides share no value is not looked at; of several trajectories that are then
    alike on one side, the last one counts.
    """
    shared = [
        name
        for name in TRAITS
        if {getattr(row, name) for row in left} & {getattr(row, name) for row in right}
    ]

    def by_question(rows: Sequence[Row]) -> dict[tuple[object, ...], Row]:
        return {(row.id, row.sample, *(getattr(row, name) for name in shared)): row for row in rows}

    lefts, rights = by_question(left), by_question(right)
    return [Entry(lefts.get(key), rights.get(key)) for key in {**lefts, **rights}]
