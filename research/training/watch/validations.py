"""The validations of a run: a score per data set and step, the best step, and its checkpoint.

The trainer adds ``validation/score``, ``validation/SOURCE/score`` and ``validation/SOURCE/questions`` to the
row of each step that is validated. The checkpoint of the best step so far is kept in ``checkpoints/best``,
out of reach of ``trainer.max_actor_ckpt_to_keep``. Its files are hard links, which take no disk space until
the checkpoint they come from is removed.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from research.files import link_or_copy
from research.metrics.answers import wilson_interval
from research.training.config import BEST
from research.training.run_files import History, StepMetrics, latest_checkpoint

SCORE = "validation/score"
EVALUATED_STEP = "validation/evaluated_step"
STOPPED_EARLY = "validation/stopped_early"


class DataSetScore(NamedTuple):
    """The mean score of the questions of one data set, from 0 to 1."""

    value: float
    questions: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval by Wilson: exact for right or wrong, too wide for scores in between."""
        return wilson_interval(self.value * self.questions, self.questions)

    def __str__(self) -> str:
        return "{:.2f} [{:.2f}, {:.2f}]".format(self.value, *self.interval)


def score_metrics(metrics: StepMetrics, questions: Mapping[str, int], measure: str) -> dict[str, float]:
    """The ``validation/*`` metrics of a step, from veRL's own and the number of questions per source.

    ``validation/score`` is the mean over the sources, whatever their sizes.
    """
    scores: dict[str, float] = {}
    for source, count in sorted(questions.items()):
        pattern = re.compile(f"val-(core|aux)/{re.escape(source)}/{measure}/mean@1")
        name = source.removeprefix("validation").removeprefix("_") or "all"
        scores[f"validation/{name}/score"] = next(metrics[key] for key in metrics if pattern.fullmatch(key))
        scores[f"validation/{name}/questions"] = count
    values = [value for key, value in scores.items() if key.endswith("/score")]
    return {SCORE: sum(values) / len(values), **scores} if values else {}


def data_set_scores(row: StepMetrics) -> dict[str, DataSetScore]:
    """The scores of a row by data set; empty if the step was not validated."""
    if SCORE not in row:
        return {}
    # No regular expression: guards look at every row at every step.
    stems = (key.removesuffix("/questions") for key in row if key.endswith("/questions"))
    return {
        stem.removeprefix("validation/"): DataSetScore(row[f"{stem}/score"], int(row[f"{stem}/questions"]))
        for stem in stems
    }


def validated_scores(rows: History, least: int = 0) -> dict[int, float]:
    """The mean score of each validated step from `least` on; step 0 is the start."""
    return {int(row["step"]): row[SCORE] for row in rows if SCORE in row and row["step"] >= least}


def best_step(rows: History, least: int = 1) -> int | None:
    """The step with the highest score, the latest of equals; None if none was validated.

    The start, which has no checkpoint, counts only for a `least` of 0.
    """
    scores = validated_scores(rows, least)
    return max(scores, key=lambda step: (scores[step], step), default=None)


def validations_without_gain(rows: History) -> int:
    """The number of validations since the best one, which may be that of the start."""
    best = best_step(rows, least=0)
    return sum(step > best for step in validated_scores(rows)) if best is not None else 0


def stopped_early(rows: History) -> bool:
    """Whether ``research.early_stop`` ended the run at the last of the rows."""
    return bool(rows) and STOPPED_EARLY in rows[-1]


def evaluated_step(rows: History) -> int | None:
    """The step whose policy was tested after the training; None before that."""
    return next((int(row[EVALUATED_STEP]) for row in reversed(rows) if EVALUATED_STEP in row), None)


def keep_as_best(run_dir: Path, step: int) -> None:
    """Make the checkpoint of ``step`` the best one, in place of an earlier one."""
    best, source = _best_folder(run_dir), run_dir / "checkpoints" / f"global_step_{step}"
    temporary = best / "new"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=link_or_copy)
    shutil.rmtree(best / source.name, ignore_errors=True)
    temporary.rename(best / source.name)
    for path in best.glob("global_step_*"):
        if path.name != source.name:
            shutil.rmtree(path)


def _best_folder(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "best"


def best_checkpoint(run_dir: Path) -> int | None:
    """The step of the checkpoint kept as the best; None if none was kept."""
    steps = [int(path.name.rpartition("_")[2]) for path in _best_folder(run_dir).glob("global_step_*")]
    return max(steps, default=None)


def final_checkpoint(run_dir: Path, keep: str) -> tuple[int, Path] | None:
    """Step and folder of the checkpoint that becomes ``policy``; None before the first one.

    It is the newest one if ``keep`` is ``last`` or nothing was validated.
    """
    best, last = best_checkpoint(run_dir), latest_checkpoint(run_dir)
    if keep == BEST and best is not None:
        return best, _best_folder(run_dir) / f"global_step_{best}"
    return None if last is None else (last, run_dir / "checkpoints" / f"global_step_{last}")


def provenance(rows: History, measure: str) -> str:
    """One line on the step whose policy was tested after the training; empty before that."""
    step, scores = evaluated_step(rows), validated_scores(rows)
    if step is None or step not in scores:
        return ""
    last = max(scores)
    line = f"after: the policy of step {step}, mean validation {measure} {scores[step]:.3f}"
    if scores.get(0, 0.0) > scores[step]:
        line += f", less than before the training ({scores[0]:.3f})"
    elif step == best_step(rows):
        line += ", the best of all validations"
    return line + (f" (step {last}, the last: {scores[last]:.3f})" if step < last else "")
