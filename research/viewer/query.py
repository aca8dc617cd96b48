"""Which trajectories the list shows, and in which order. With two runs an entry is a pair, and a filter holds
if it holds for either side.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from research.viewer.rows import Row

FACETS = ("split", "source", "method", "control", "finish")
RANGES = ("step", "searches", "reward")
Sort = Literal["step", "reward", "searches", "tokens", "question", "gain"]
Verdict = Literal[
    "right", "wrong", "unjudged", "differ", "gained", "lost", "both_right", "both_wrong", "unpaired"
]


class Entry(NamedTuple):
    """A line of the list: a trajectory, or two of the same question, one of each run."""

    left: Row | None
    right: Row | None = None

    @property
    def rows(self) -> list[Row]:
        """Those that there are; at least one."""
        return [row for row in self if row is not None]

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of both sides, empty for one that is missing."""
        return self.left.key if self.left else "", self.right.key if self.right else ""

    @property
    def verdicts(self) -> tuple[bool | None, bool | None]:
        """Whether each side is right; None where it is missing or nothing judged it."""
        return self.left.right if self.left else None, self.right.right if self.right else None


class Query(BaseModel):
    """The filters of the page; None lets everything through. An empty ``control`` is a real search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = ""
    verdict: Verdict | None = None
    split: str | None = None
    source: str | None = None
    method: str | None = None
    control: str | None = None
    finish: str | None = None
    step_min: int | None = None
    step_max: int | None = None
    searches_min: int | None = None
    searches_max: int | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    sort: Sort = "step"
    order: Literal["asc", "desc"] = "desc"

    def select(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that pass all filters but the text, in order; what has no value to sort by comes
        last.
        """
        tests, value = self._row_tests(), _SORTS[self.sort]
        found = [entry for entry in entries if any(all(test(row) for test in tests) for row in entry.rows)]
        if self.verdict:
            found = [entry for entry in found if _VERDICTS[self.verdict](entry)]
        known = [entry for entry in found if value(entry) is not None]
        unknown = [entry for entry in found if value(entry) is None]
        return sorted(known, key=value, reverse=self.order == "desc") + unknown

    def _row_tests(self) -> list[Callable[[Row], bool]]:
        """One function for each filter that is set."""
        tests = [_equals(name, getattr(self, name)) for name in FACETS if getattr(self, name) is not None]
        for name in RANGES:
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low is not None or high is not None:
                tests.append(_within(name, low, high))
        return tests


def facets(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The values that there are to filter by."""
    return {name: sorted({getattr(row, name) for row in rows}) for name in FACETS}


def ranges(rows: Sequence[Row]) -> dict[str, tuple[float, float] | None]:
    """The least and the greatest value of each number, None where no row has one."""
    found = {}
    for name in RANGES:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        found[name] = (min(values), max(values)) if values else None
    return found


def _equals(name: str, wanted: str) -> Callable[[Row], bool]:
    return lambda row: getattr(row, name) == wanted


def _within(name: str, low: float | None, high: float | None) -> Callable[[Row], bool]:
    def test(row: Row) -> bool:
        value = getattr(row, name)
        return value is not None and (low is None or value >= low) and (high is None or value <= high)

    return test


def _of_first(name: str) -> Callable[[Entry], Any]:
    return lambda entry: getattr(entry.rows[0], name)


def _gain(entry: Entry) -> float | None:
    """How much more reward the second run earned."""
    rewards = [row.reward for row in entry.rows if row.reward is not None]
    return rewards[1] - rewards[0] if len(rewards) == 2 else None


_SORTS: dict[Sort, Callable[[Entry], Any]] = {
    "step": _of_first("step"),
    "reward": _of_first("reward"),
    "searches": _of_first("searches"),
    "tokens": _of_first("tokens"),
    "question": _of_first("question"),
    "gain": _gain,
}
_VERDICTS: dict[Verdict, Callable[[Entry], bool]] = {
    "right": lambda entry: True in entry.verdicts,
    "wrong": lambda entry: False in entry.verdicts,
    "unjudged": lambda entry: entry.verdicts == (None, None),
    "differ": lambda entry: set(entry.verdicts) == {True, False},
    "gained": lambda entry: entry.verdicts == (False, True),
    "lost": lambda entry: entry.verdicts == (True, False),
    "both_right": lambda entry: entry.verdicts == (True, True),
    "both_wrong": lambda entry: entry.verdicts == (False, False),
    "unpaired": lambda entry: len(entry.rows) == 1,
}
