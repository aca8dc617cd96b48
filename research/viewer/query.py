"""Which trajectories the list shows, and in which order.

With two runs an entry is a pair, and a filter passes it if it passes either side.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from research.viewer.rows import Row

FACETS = ("split", "source", "method", "control", "finish")
RANGES = ("step", "searches", "reward")


class Entry(NamedTuple):
    """A line of the list: a trajectory, or two of the same question, one of each run."""

    left: Row | None
    right: Row | None = None

    @property
    def rows(self) -> list[Row]:
        """The sides that exist; at least one."""
        return [row for row in self if row is not None]

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of both sides, empty for a missing one."""
        return self.left.key if self.left else "", self.right.key if self.right else ""

    @property
    def verdicts(self) -> tuple[bool | None, bool | None]:
        """Whether each side is right; None if it is missing or was not judged."""
        return self.left.right if self.left else None, self.right.right if self.right else None


VERDICTS: dict[str, Callable[[Entry], bool]] = {
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


class ListQuery(BaseModel):
    """The filters of the page; None passes everything. An empty ``control`` is a real search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = ""
    verdict: Literal[tuple(VERDICTS)] | None = None  # type: ignore[valid-type]
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
    sort: Literal["step", "reward", "searches", "tokens", "question", "gain"] = "step"
    order: Literal["asc", "desc"] = "desc"

    def select(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that pass all filters except the text, sorted; those without a value come last."""
        passes, verdict = self._row_test(), VERDICTS[self.verdict] if self.verdict else lambda entry: True
        selected = [entry for entry in entries if any(map(passes, entry.rows)) and verdict(entry)]
        values = [(self._sort_value(entry), entry) for entry in selected]
        known = [pair for pair in values if pair[0] is not None]
        known.sort(key=lambda pair: pair[0], reverse=self.order == "desc")
        return [entry for _, entry in known] + [entry for value, entry in values if value is None]

    def _row_test(self) -> Callable[[Row], bool]:
        """Whether a row passes all filters that are set; one without a number is in no range."""
        equal = [(name, value) for name in FACETS if (value := getattr(self, name)) is not None]
        bounds = [(name, getattr(self, f"{name}_min"), getattr(self, f"{name}_max")) for name in RANGES]
        within = [(name, low, high) for name, low, high in bounds if (low, high) != (None, None)]

        def lies(value: float | None, low: float | None, high: float | None) -> bool:
            return value is not None and (low is None or value >= low) and (high is None or value <= high)

        return lambda row: (
            all(getattr(row, name) == value for name, value in equal)
            and all(lies(getattr(row, name), low, high) for name, low, high in within)
        )

    def _sort_value(self, entry: Entry) -> Any:
        """A value of the first side, or how much more reward the second run earned."""
        if self.sort != "gain":
            return getattr(entry.rows[0], self.sort)
        rewards = [row.reward for row in entry.rows if row.reward is not None]
        return rewards[1] - rewards[0] if len(rewards) == 2 else None


def facets(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The values to filter by."""
    return {name: sorted({getattr(row, name) for row in rows}) for name in FACETS}


def ranges(rows: Sequence[Row]) -> dict[str, tuple[float, float] | None]:
    """The least and the greatest value of each number; None if no row has one."""
    columns = {name: [value for row in rows if (value := getattr(row, name)) is not None] for name in RANGES}
    return {name: (min(values), max(values)) if values else None for name, values in columns.items()}
