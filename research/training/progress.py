"""What a person sees of a run: one line a step, and the table at its end."""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from research.training.run_files import read_metrics, read_trajectories, trajectory_path


class StepPrinter:
    """Prints each new row of ``metrics.jsonl`` once."""

    def __init__(self, run_dir: Path, total_steps: int | None, after: int = -1) -> None:
        self.run_dir, self.total_steps, self.last = run_dir, total_steps, after
        # Of the file when it was last read: lines() is called twice a second, and the file grows once a step.
        self._size = -1

    def lines(self) -> list[str]:
        """Lines for the rows that came since the last call."""
        path = self.run_dir / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else -1
        if size == self._size:
            return []
        self._size = size
        rows = [row for row in read_metrics(self.run_dir) if row["step"] > self.last]
        self.last = max([self.last, *(int(row["step"]) for row in rows)])
        return [line for row in rows for line in self._row_lines(row)]

    def _row_lines(self, row: dict[str, float]) -> list[str]:
        validation = [
            f"{key.split('/')[1]} {row[key]:.3f}" for key in sorted(row) if key.endswith("/em/mean@1")
        ]
        lines = [self._step_line(row)] if "timing_s/step" in row else []
        if validation:
            lines.append(f"  held out at step {int(row['step'])}: EM {', '.join(validation)}")
        return lines

    def _step_line(self, row: dict[str, float]) -> str:
        seconds = row["timing_s/step"]
        step = f"{int(row['step'])}/{self.total_steps}" if self.total_steps else f"{int(row['step'])}"
        return (
            f"step {step:>7}  reward {row['critic/score/mean']:.3f}  EM {row['search/em']:.3f}  "
            f"searches {row['search/searches']:.2f}  length {row['search/response_tokens']:.0f}  "
            f"{seconds:.1f} s  {row['perf/total_num_tokens'] / seconds:,.0f} tokens/s  "
            f"|p rollout - p actor| {row.get('training/rollout_probs_diff_mean', math.nan):.0e}"
        )


@dataclass(frozen=True)
class HeldOut:
    """Means over the held-out questions of one source at one step."""

    questions: int
    em: float
    format_valid: float
    searches: float

    @property
    def standard_error(self) -> float:
        """Of the EM, for a share of independent questions."""
        return math.sqrt(self.em * (1 - self.em) / self.questions)


def held_out(run_dir: Path, step: int) -> dict[str, HeldOut]:
    """Results of the validation at a step by data source; empty if there was none."""
    path = trajectory_path(run_dir, step, "validation")
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for trajectory in read_trajectories(path) if path.exists() else ():
        groups[trajectory.metadata["data_source"]].append(trajectory.metrics)
    return {source: _means(rows) for source, rows in sorted(groups.items())}


def _means(rows: list[dict[str, float]]) -> HeldOut:
    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    return HeldOut(len(rows), mean("em"), mean("format_valid"), mean("searches"))


def summary_table(run_dir: Path, last_step: int) -> str:
    """Held-out results before and after as a text table, standard errors of EM in brackets."""
    before, after = held_out(run_dir, 0), held_out(run_dir, last_step)
    lines = [_table_row("held out", "questions", "EM before", "EM after", "searches", "format valid")]
    for source in sorted({*before, *after}):
        old, new = before.get(source), after.get(source)
        count = (new or old).questions  # type: ignore[union-attr]
        lines.append(
            _table_row(
                source,
                count,
                _em(old),
                _em(new),
                _pair(old, new, "searches"),
                _pair(old, new, "format_valid"),
            )
        )
    return "\n".join(lines)


def _table_row(source: str, *cells: object) -> str:
    return f"{source:<16}" + "".join(f"{cell!s:>18}" for cell in cells)


def _em(result: HeldOut | None) -> str:
    return f"{result.em:.3f} (+-{result.standard_error:.3f})" if result else "-"


def _pair(old: HeldOut | None, new: HeldOut | None, name: str) -> str:
    return " -> ".join(f"{getattr(result, name):.2f}" if result else "-" for result in (old, new))
