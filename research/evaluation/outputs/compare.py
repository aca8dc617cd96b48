"""Two evaluations of the same questions, question by question: differences with intervals and p-values."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from research.evaluation.config import EvaluationError
from research.evaluation.outputs.folder import CONFIG, IDENTITY, read_record
from research.evaluation.outputs.predictions import PREDICTIONS, prediction_key, read_predictions
from research.metrics.statistics import paired_difference

COMPARED = ("em", "f1", "acc", "support_recall", "searches", "model_tokens")

MethodScores = dict[str, dict[str, float]]
"""question id -> metrics"""


def compare_runs(run_a: Path, run_b: Path) -> str:
    """How the configurations differ, and a Markdown table of how the results do.

    Raises EvaluationError if the runs have no questions in common.
    """
    pairs = _pairs(_scores(run_a), _scores(run_b))
    if not pairs:
        raise EvaluationError(
            f"{run_a} and {run_b} have no data set in common with the same method, or with one method each"
        )
    lines = [f"A: {run_a}", f"B: {run_b}", *_differences(run_a, run_b), ""]
    lines += ["| data set | metric | questions | A | B | B - A [95%] | p |", "|---|---|---|---|---|---|---|"]
    for pair in pairs:
        lines += _rows(*pair)
    return "\n".join(lines)


def _scores(run_dir: Path) -> dict[tuple[str, str], MethodScores]:
    """(data set, method) -> scores."""
    if not (run_dir / PREDICTIONS).exists():
        raise EvaluationError(f"{run_dir} is not an evaluation: there is no {PREDICTIONS} in it")
    scores: dict[tuple[str, str], MethodScores] = defaultdict(dict)
    for trajectory in read_predictions(run_dir):
        key = prediction_key(trajectory)
        scores[key.dataset, key.method][key.id] = trajectory.metrics
    return scores


def _pairs(
    a: dict[tuple[str, str], MethodScores], b: dict[tuple[str, str], MethodScores]
) -> list[tuple[str, MethodScores, MethodScores]]:
    """What to compare: the same method on the same data set, else the single method of each run."""
    if same := [(f"{key[0]}, {key[1]}", a[key], b[key]) for key in a if key in b]:
        return same
    only_a, only_b = ({method for _, method in scores} for scores in (a, b))
    if len(only_a) != 1 or len(only_b) != 1:
        return []
    [of_a], [of_b] = only_a, only_b
    common = [dataset for dataset, _ in a if (dataset, of_b) in b]
    return [(f"{each}, {of_a} and {of_b}", a[each, of_a], b[each, of_b]) for each in common]


def _rows(label: str, a: MethodScores, b: MethodScores) -> Iterator[str]:
    ids = [name for name in a if name in b]
    for metric in COMPARED:
        both = [name for name in ids if metric in a[name] and metric in b[name]]
        if both:
            of_a, of_b = (np.array([scores[name][metric] for name in both]) for scores in (a, b))
            mean, low, high, p = paired_difference(of_a, of_b)
            yield (
                f"| {label} | {metric} | {len(both):,} | {of_a.mean():.3f} | {of_b.mean():.3f} | "
                f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] | {p:.4f} |"
            )
    if left_out := len(a) + len(b) - 2 * len(ids):
        yield f"| {label} | *{left_out:,} questions of one run alone are left out* | | | | | |"


def _differences(run_a: Path, run_b: Path) -> list[str]:
    """The keys of the configurations and the identities that differ."""
    a, b = (read_record(run_dir / CONFIG) | read_record(run_dir / IDENTITY) for run_dir in (run_a, run_b))
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys]
