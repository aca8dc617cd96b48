"""What the validations of a run say: a score per data set and step, the best step, and its checkpoint.

The trainer adds ``validation/score``, ``validation/SOURCE/score`` and ``validation/SOURCE/questions`` to the
row of each step that is validated. The checkpoint of the best step so far is kept in ``checkpoints/best``,
out of reach of ``trainer.max_actor_ckpt_to_keep``. Its files are hard links: it takes disk only once the
checkpoint it comes from is removed.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from research.metrics.answers import wilson_interval
from research.training.run_files import latest_checkpoint

SCORE = "validation/score"
EVALUATED_STEP = "validation/evaluated_step"
STOPPED_EARLY = "validation/stopped_early"
BEST, LAST = "best", "last"
KEEP = (BEST, LAST)  # values of research.keep

Row = Mapping[str, float]


class Score(NamedTuple):
    """The mean score of one data set's questions, from 0 to 1."""

    value: float
    questions: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval by Wilson: exact for right or wrong, and too wide for scores in between."""
        return wilson_interval(self.value * self.questions, self.questions)


def score_metrics(metrics: Row, questions: Mapping[str, int], measure: str) -> dict[str, float]:
    """The ``validation/*`` metrics of a step, from veRL's own and the number of questions of each source.

    ``validation/score`` is the mean over the sources, whatever their sizes.
    """
    found: dict[str, float] = {}
    for source, count in sorted(questions.items()):
        pattern = re.compile(f"val-(core|aux)/{re.escape(source)}/{measure}/mean@1")
        name = source.removeprefix("validation").removeprefix("_") or "all"
        found[f"validation/{name}/score"] = next(metrics[key] for key in metrics if pattern.fullmatch(key))
        found[f"validation/{name}/questions"] = count
    values = [value for key, value in found.items() if key.endswith("/score")]
    return {SCORE: sum(values) / len(values), **found} if values else {}


def data_set_scores(row: Row) -> dict[str, Score]:
    """The scores of a row by data set; empty if the step was not validated."""
    if SCORE not in row:
        return {}
    # No regular expression: guards look at every row at every step.
    keys = (key for key in row if key.startswith("validation/") and key.endswith("/score") and key != SCORE)
    names = [key.removeprefix("validation/").removesuffix("/score") for key in keys]
    return {
        name: Score(row[f"validation/{name}/score"], int(row[f"validation/{name}/questions"]))
        for name in names
    }


def validated_scores(rows: Sequence[Row]) -> dict[int, float]:
    """The mean score of each validated step, the start (step 0) included."""
    return {int(row["step"]): row[SCORE] for row in rows if SCORE in row}


def best_step(rows: Sequence[Row]) -> int | None:
    """The trained step with the highest score, of equal ones the later; None if none was validated."""
    return _best({step: score for step, score in validated_scores(rows).items() if step > 0})


def best_of_all(rows: Sequence[Row]) -> int | None:
    """The same with the start, step 0, which has no checkpoint."""
    return _best(validated_scores(rows))


def _best(scores: Mapping[int, float]) -> int | None:
    return max(scores, key=lambda step: (scores[step], step), default=None)


def validations_without_gain(rows: Sequence[Row]) -> int:
    """How many validations there were since the best one, which may be that of the start."""
    best = best_of_all(rows)
    return sum(step > best for step in validated_scores(rows)) if best is not None else 0


def stopped_early(rows: Sequence[Row]) -> bool:
    """Whether ``research.early_stop`` ended the run at the last of the rows."""
    return bool(rows) and STOPPED_EARLY in rows[-1]


def keep_as_best(run_dir: Path, step: int) -> None:
    """Make the checkpoint of ``step`` the best one, in place of an earlier one."""
    best, source = _folder(run_dir), run_dir / "checkpoints" / f"global_step_{step}"
    temporary = best / "new"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=_link)
    shutil.rmtree(best / source.name, ignore_errors=True)
    temporary.rename(best / source.name)
    for path in best.glob("global_step_*"):
        if path.name != source.name:
            shutil.rmtree(path)


def best_checkpoint(run_dir: Path) -> int | None:
    """The step of the checkpoint kept as the best; None if none was kept."""
    steps = [int(path.name.rpartition("_")[2]) for path in _folder(run_dir).glob("global_step_*")]
    return max(steps, default=None)


def handed_over(run_dir: Path, keep: str) -> tuple[int, Path] | None:
    """Step and folder of the checkpoint that becomes ``policy``; None before the first one.

    It is the newest one where ``keep`` is ``last`` or nothing was validated.
    """
    best, last = best_checkpoint(run_dir), latest_checkpoint(run_dir)
    if keep == BEST and best is not None:
        return best, _folder(run_dir) / f"global_step_{best}"
    return None if last is None else (last, run_dir / "checkpoints" / f"global_step_{last}")


def provenance(rows: Sequence[Row], measure: str) -> str:
    """One line on the step whose policy was judged after the training; empty before that."""
    judged = [int(row[EVALUATED_STEP]) for row in rows if EVALUATED_STEP in row]
    scores = validated_scores(rows)
    if not judged or judged[-1] not in scores:
        return ""
    step, last = judged[-1], max(scores)
    line = f"after: the policy of step {step}, mean validation {measure} {scores[step]:.3f}"
    if scores.get(0, 0.0) > scores[step]:
        line += f", less than before the training ({scores[0]:.3f})"
    elif step == best_step(rows):
        line += ", the best of all validations"
    return line + (f" (step {last}, the last: {scores[last]:.3f})" if step < last else "")


def _folder(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "best"


def _link(source: str, target: str) -> None:
    """A hard link, or a copy on a file system that has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
