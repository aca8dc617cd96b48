"""What a running training prints: a line per step, held-out results, and the warnings of the guards."""

import math
import re
import statistics
from pathlib import Path

import click

from research.environments.headline import Headline
from research.environments.question_answering import HEADLINE
from research.training.config import GuardConfig
from research.training.run_files import StepMetrics, read_metrics
from research.training.watch.guards import ENTROPY, ROLLOUT_DIFFERENCE, GuardWatch, failed_share

STEPS_OF_THE_ESTIMATE = 10
NOTHING_TO_REWARD = (
    "WARNING step 0: the policy neither searches nor answers in a valid form, so rewards can teach it "
    "little: give a larger model, or a cold start that is long enough"
)


class StepPrinter:
    """Turns each row that is added to ``metrics.jsonl`` into lines; earlier rows are only history.

    ``whose`` names a policy that is judged without being trained by steps.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int | None,
        guards: GuardConfig,
        headline: Headline = HEADLINE,
        whose: str = "",
    ) -> None:
        self.whose = whose
        self.run_dir, self.total_steps, self.headline = run_dir, total_steps, headline
        self.guards = GuardWatch(guards)
        self._size = -1  # of the file when it was last read; -1: not there
        self.lines()

    def print_new(self) -> None:
        """Print them."""
        for line in self.lines():
            click.echo(line)

    def lines(self) -> list[str]:
        """Lines for the rows that were added since the last call."""
        path = self.run_dir / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else -1
        if size == self._size:  # this is called twice a second, and the file grows once per step
            return []
        self._size = size
        rows = read_metrics(self.run_dir)[len(self.guards.rows) :]
        return [line for row in rows for line in self._row_lines(row)]

    def _row_lines(self, row: StepMetrics) -> list[str]:
        step, alarms = int(row["step"]), self.guards.observe(row)
        lines = [self._step_line(row)] if "timing_s/step" in row else []
        lines += [f"WARNING step {step}: {alarm.message}" for alarm in alarms]
        # Only the few validation questions: results on the test questions are for the table.
        pattern = re.compile(f"val-.*/validation_?(.*)/{self.headline.metric}/mean@1")
        values = {match[1]: row[key] for key in sorted(row) if (match := pattern.fullmatch(key))}
        scores = ", ".join(f"{name} {value:.3f}".strip() for name, value in values.items())
        when = f"of {self.whose}" if self.whose else f"at step {step}"
        lines += [f"  validation {when}: {self.headline.label} {scores}"] if scores else []
        return lines + ([NOTHING_TO_REWARD] if step == 0 and not self.whose and _does_nothing(row) else [])

    def _step_line(self, row: StepMetrics) -> str:
        """At most 120 columns, and 12 more if searches failed."""
        seconds, step = row["timing_s/step"], int(row["step"])
        count = f"{step}/{self.total_steps}" if self.total_steps else f"{step}"
        difference = f"{row.get(ROLLOUT_DIFFERENCE, math.nan):.0e}".replace("e-0", "e-")
        tokens = row["perf/total_num_tokens"] / seconds
        speed = f"{tokens:.0f}" if tokens < 1000 else f"{tokens / 1000:.1f}k"
        duration = f"{seconds:.1f}s" if seconds < 100 else f"{seconds:.0f}s"
        measures = [f"{label} {row[key]:{form}}" for label, key, form in self.headline.step_line]
        measures += [f"failed {share:.1%}"] if (share := failed_share(row)) else []
        return (
            f"step {count:>7}  {'  '.join(measures)}  "
            f"entropy {row.get(ENTROPY, math.nan):.2f}  {duration}  {speed} tok/s  "
            f"diff {difference}{self._left(step)}"
        )

    def _left(self, step: int) -> str:
        """The time for the remaining steps at the pace of the last ones."""
        if not self.total_steps or step >= self.total_steps:
            return ""
        rows = [row for row in self.guards.rows if "timing_s/step" in row][-STEPS_OF_THE_ESTIMATE:]
        pace = statistics.fmean(row["timing_s/step"] + row.get("timing_s/testing", 0.0) for row in rows)
        return f"  {_duration((self.total_steps - step) * pace)} left"


def _does_nothing(row: StepMetrics) -> bool:
    """Whether no validation question was searched for or answered in a valid form."""
    names = "searches|format_valid"
    values = [row[key] for key in row if re.fullmatch(f"val-.*/validation.*/({names})/mean@1", key)]
    return bool(values) and not any(values)


def _duration(seconds: float) -> str:
    """``45s``, ``12m``, ``3.1h``."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 3600 else f"{seconds / 3600:.1f}h"
