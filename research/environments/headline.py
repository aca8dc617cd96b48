"""How an environment's results are reported: its measure, the progress lines, the table and the charts."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from research.metrics.answers import wilson_interval

REWARD = "critic/score/mean"
LENGTHS = {"search/response_tokens": "mean", "response_length/max": "longest"}


@dataclass(frozen=True)
class Chart:
    """A chart of plain metrics over steps: metric name -> label."""

    title: str
    curves: dict[str, str]
    share: bool = False


@dataclass(frozen=True)
class Column:
    """A mean in the table, before -> after."""

    label: str
    metric: str
    digits: int = 2


@dataclass(frozen=True)
class Headline:
    """What an environment is measured by, in words for people. See question_answering.py for one.

    Attributes:
        metric: the measure, among the metrics of a trajectory; ``search/METRIC`` is its mean over a step.
        label: its name for people.
        title: of the chart of held-out questions.
        note: what stands under the table.
        step_line: (label, metric of a step, format) of a line of progress.
        training_chart: the measure and its like over the training questions.
        charts: what else is drawn over the steps.
        columns: of the table, besides the measure itself.
        better: (metric, value): an episode is well done where the metric is above the value.
        verdicts: words for an episode that is well done, and for one that is not.
        share: whether the measure of one episode is 0 or 1, which decides how its interval is computed.
        baseline: metric that the training should leave behind, drawn beside the held-out measure; or empty.
        failure: (metric, words): what failed where the retriever did.
    """

    metric: str
    label: str
    title: str
    note: str
    step_line: tuple[tuple[str, str, str], ...]
    training_chart: Chart
    charts: tuple[Chart, ...]
    columns: tuple[Column, ...]
    better: tuple[str, float]
    verdicts: tuple[str, str]
    share: bool = True
    baseline: str = ""
    failure: tuple[str, str] = ("failed_searches", "searches of these episodes failed")

    @property
    def header(self) -> tuple[str, ...]:
        """The names of the table's columns."""
        labels = tuple(column.label for column in self.columns)
        if self.baseline:
            return (f"{self.label} of the question", "before [95%]", "after [95%]", *labels)
        return (f"{self.label} before [95%]", f"{self.label} after [95%]", *labels)

    @property
    def measures(self) -> tuple[str, ...]:
        """The metrics that the table needs."""
        baseline = (self.baseline,) if self.baseline else ()
        return (self.metric, *baseline, *(column.metric for column in self.columns))

    def well_done(self, metrics: dict[str, float]) -> bool:
        """Whether an episode with these metrics is well done."""
        name, least = self.better
        return metrics[name] > least

    def result(self, rows: Sequence[dict[str, float]]) -> "Result":
        """The result of the metrics of some episodes."""
        names = (*self.measures, self.failure[0])
        means = {name: sum(row[name] for row in rows) / len(rows) for name in names}
        spread = statistics.stdev(row[self.metric] for row in rows) if len(rows) > 1 else 0.0
        return Result(self, len(rows), means, spread)

    def cells(self, before: "Result | None", after: "Result | None") -> tuple[str, ...]:
        """One text for each of ``header``; ``-`` where nothing was measured."""

        def shown(result: Result | None, column: Column) -> str:
            return f"{result.means[column.metric]:.{column.digits}f}" if result else "-"

        baseline = (shown(after or before, Column("", self.baseline, 3)),) if self.baseline else ()
        measures = (result.text if result else "-" for result in (before, after))
        means = (f"{shown(before, column)} -> {shown(after, column)}" for column in self.columns)
        return (*baseline, *measures, *means)


@dataclass(frozen=True)
class Result:
    """Means over the held-out questions of one source at one step; `spread` is the measure's deviation."""

    headline: Headline
    questions: int
    means: dict[str, float]
    spread: float = 0.0

    @property
    def value(self) -> float:
        """What the training is for, from 0 to 1."""
        return self.means[self.headline.metric]

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the measure: Wilson's for a share, else from the standard error, within 0 and 1."""
        if self.headline.share:
            return wilson_interval(self.value * self.questions, self.questions)
        half = 1.96 * self.spread / math.sqrt(self.questions)
        return max(0.0, self.value - half), min(1.0, self.value + half)

    @property
    def failures(self) -> float:
        """Failures per episode if the retriever failed."""
        return self.means.get(self.headline.failure[0], 0.0)

    @property
    def text(self) -> str:
        """The measure with its interval."""
        return "{:.3f} [{:.3f}, {:.3f}]".format(self.value, *self.interval)
