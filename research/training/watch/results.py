"""What held-out episodes come to: a row of figures for search agents (HeldOut) and one for query reasoners
(Rewritten), each with the columns of its table.
"""

import math
import statistics
from dataclasses import dataclass
from typing import ClassVar

from research.metrics.answers import wilson_interval

Metrics = list[dict[str, float]]


@dataclass(frozen=True)
class HeldOut:
    """Means over the held-out questions of one source at one step, of a search agent."""

    HEADER: ClassVar = ("EM before [95%]", "EM after [95%]", "searches", "format valid")

    questions: int
    em: float
    searches: float
    format_valid: float
    failed_searches: float = 0.0

    @classmethod
    def of(cls, rows: Metrics) -> "HeldOut":
        """From the metrics of the episodes."""
        names = ("em", "searches", "format_valid", "failed_searches")
        return cls(len(rows), *(_mean(rows, name) for name in names))

    @property
    def value(self) -> float:
        """What the training is for, from 0 to 1."""
        return self.em

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the EM."""
        return wilson_interval(self.em * self.questions, self.questions)

    @property
    def failures(self) -> float:
        """Searches that failed, or texts that could not be scored, an episode."""
        return self.failed_searches

    @classmethod
    def cells(cls, before: "Result | None", after: "Result | None") -> tuple[str, ...]:
        """One text for each of ``HEADER``; ``-`` where nothing was measured."""
        pairs = (_pair(before, after, name) for name in ("searches", "format_valid"))
        return (_with_interval(before), _with_interval(after), *pairs)


@dataclass(frozen=True)
class Rewritten:
    """The same of a query reasoner. ``original`` is the nDCG@10 of the questions themselves, ``spread`` the
    standard deviation of the texts' nDCG@10 over the questions.
    """

    HEADER: ClassVar = (
        "nDCG@10 of the question",
        "before [95%]",
        "after [95%]",
        "recall@10",
        "tokens",
    )

    questions: int
    ndcg: float
    spread: float
    original: float
    recall: float
    tokens: float
    scoring_failed: float = 0.0

    @classmethod
    def of(cls, rows: Metrics) -> "Rewritten":
        """From the metrics of the episodes."""
        spread = statistics.stdev(row["ndcg_at_10"] for row in rows) if len(rows) > 1 else 0.0
        names = ("original_ndcg", "recall_at_10", "response_tokens", "scoring_failed")
        rest = (_mean(rows, name) for name in names)
        return cls(len(rows), _mean(rows, "ndcg_at_10"), spread, *rest)

    @property
    def value(self) -> float:
        """What the training is for, from 0 to 1."""
        return self.ndcg

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean nDCG@10 by its standard error, within 0 and 1."""
        half = 1.96 * self.spread / math.sqrt(self.questions)
        return max(0.0, self.ndcg - half), min(1.0, self.ndcg + half)

    @property
    def failures(self) -> float:
        """Searches that failed, or texts that could not be scored, an episode."""
        return self.scoring_failed

    @classmethod
    def cells(cls, before: "Result | None", after: "Result | None") -> tuple[str, ...]:
        """One text for each of ``HEADER``; ``-`` where nothing was measured."""
        either = after or before
        original = f"{either.original:.3f}" if isinstance(either, Rewritten) else "-"
        pairs = (_pair(before, after, "recall"), _pair(before, after, "tokens", 1))
        return (original, _with_interval(before), _with_interval(after), *pairs)


Result = HeldOut | Rewritten


def _mean(rows: Metrics, name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _with_interval(result: Result | None) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(result.value, *result.interval) if result else "-"


def _pair(before: Result | None, after: Result | None, name: str, digits: int = 2) -> str:
    values = (f"{getattr(result, name):.{digits}f}" if result else "-" for result in (before, after))
    return " -> ".join(values)
