"""What a person sees of a running training: one line a step, held-out results, and what the guards say. The
table at its end is research/training/watch/table.py's.
"""

import math
import re
import statistics
from pathlib import Path

from research.environments.headline import Headline
from research.environments.question_answering import HEADLINE
from research.training.run_files import read_metrics
from research.training.watch.guards import (
    ENTROPY,
    ROLLOUT_DIFFERENCE,
    GuardConfig,
    GuardWatch,
    Row,
    failed_share,
)

STEPS_OF_THE_ESTIMATE = 10


class StepPrinter:
    """Prints each row that is added to ``metrics.jsonl`` once; those already there are history."""

    def __init__(
        self, run_dir: Path, total_steps: int | None, guards: GuardConfig, headline: Headline = HEADLINE
    ) -> None:
        self.run_dir, self.total_steps, self.headline = run_dir, total_steps, headline
        self.guards = GuardWatch(guards)
        # Of the file when it was last read: lines() is called twice a second, and the file grows once a step.
        self._size = -1
        self._read = 0
        self.lines()

    def lines(self) -> list[str]:
        """Lines for the rows that came since the last call."""
        path = self.run_dir / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else -1
        if size == self._size:
            return []
        self._size = size
        rows = read_metrics(self.run_dir)[self._read :]
        self._read += len(rows)
        return [line for row in rows for line in self._row_lines(row)]

    def _row_lines(self, row: Row) -> list[str]:
        step, warnings = int(row["step"]), self.guards.see(row)
        lines = [self._step_line(row)] if "timing_s/step" in row else []
        lines += [f"WARNING step {step}: {warning.message}" for warning in warnings]
        # The few validation questions only: what the test questions say is for the table.
        pattern = re.compile(f"val-.*/validation_?(.*)/{self.headline.metric}/mean@1")
        found = {found[1]: row[key] for key in sorted(row) if (found := pattern.fullmatch(key))}
        held_out = [f"{name} {value:.3f}".strip() for name, value in found.items()]
        label = self.headline.label
        return lines + ([f"  validation at step {step}: {label} {', '.join(held_out)}"] if held_out else [])

    def _step_line(self, row: Row) -> str:
        """At most 120 columns, and 12 more where searches failed."""
        seconds, step = row["timing_s/step"], int(row["step"])
        count = f"{step}/{self.total_steps}" if self.total_steps else f"{step}"
        difference = f"{row.get(ROLLOUT_DIFFERENCE, math.nan):.0e}".replace("e-0", "e-")
        measures = [f"{label} {row[key]:{form}}" for label, key, form in self.headline.step_line]
        measures += [f"failed {share:.1%}"] if (share := failed_share(row)) else []
        return (
            f"step {count:>7}  {'  '.join(measures)}  "
            f"entropy {row.get(ENTROPY, math.nan):.2f}  {_seconds(seconds)}  "
            f"{_thousands(row['perf/total_num_tokens'] / seconds)} tok/s  diff {difference}{self._left(step)}"
        )

    def _left(self, step: int) -> str:
        """The time that the rest will take at the pace of the last steps."""
        if not self.total_steps or step >= self.total_steps:
            return ""
        rows = [row for row in self.guards.rows if "timing_s/step" in row][-STEPS_OF_THE_ESTIMATE:]
        pace = statistics.fmean(row["timing_s/step"] + row.get("timing_s/testing", 0.0) for row in rows)
        return f"  {_duration((self.total_steps - step) * pace)} left"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 100 else f"{seconds:.0f}s"


def _thousands(number: float) -> str:
    return f"{number:.0f}" if number < 1000 else f"{number / 1000:.1f}k"


def _duration(seconds: float) -> str:
    """``45s``, ``12m``, ``3.1h``."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 3600 else f"{seconds / 3600:.1f}h"
