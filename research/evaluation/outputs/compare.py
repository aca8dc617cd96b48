"""Two evaluations of the same questions, question by question: differences with their intervals and p."""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from research.evaluation.config import EvaluationError
from research.evaluation.outputs.predictions import PREDICTIONS, key_of, read_predictions
from research.metrics.statistics import paired_difference

COMPARED = ("em", "f1", "acc", "support_recall", "searches", "model_tokens")

Scores = dict[tuple[str, str], dict[str, dict[str, float]]]
"""(data set, method) -> question id -> metrics"""


def compare(run_a: Path, run_b: Path) -> str:
    """What differs between the configurations, and a Markdown table of what differs between the results.

    Raises EvaluationError when the runs have no questions in common.
    """
    a, b = _scores(run_a), _scores(run_b)
    pairs = _pairs(a, b)
    if not pairs:
        raise EvaluationError(
            f"{run_a} and {run_b} have no data set in common, each with one method or the same"
        )
    lines = [f"A: {run_a}", f"B: {run_b}", *_differences(run_a, run_b), ""]
    lines += ["| data set | metric | questions | A | B | B - A [95%] | p |", "|---|---|---|---|---|---|---|"]
    for label, of_a, of_b in pairs:
        lines += _rows(label, of_a, of_b)
    return "\n".join(lines)


def _scores(run_dir: Path) -> Scores:
    if not (run_dir / PREDICTIONS).exists():
        raise EvaluationError(f"{run_dir} is no evaluation: there is no {PREDICTIONS} in it")
    scores: Scores = {}
    for trajectory in read_predictions(run_dir):
        key = key_of(trajectory)
        scores.setdefault((key.dataset, key.method), {})[key.id] = trajectory.metrics
    return scores


def _pairs(a: Scores, b: Scores) -> list[tuple[str, Any, Any]]:
    """What to compare: the same method on the same data set, else the only methods that each run has."""
    same = [
        (f"{dataset}, {method}", a[dataset, method], b[dataset, method])
        for dataset, method in a
        if (dataset, method) in b
    ]
    if same:
        return same
    only_a, only_b = ({method for _, method in scores} for scores in (a, b))
    if len(only_a) != 1 or len(only_b) != 1:
        return []
    [of_a], [of_b] = only_a, only_b
    return [
        (f"{dataset}, {of_a} and {of_b}", a[dataset, of_a], b[dataset, of_b])
        for dataset, _ in a
        if (dataset, of_b) in b
    ]


def _rows(label: str, a: dict[str, dict[str, float]], b: dict[str, dict[str, float]]) -> list[str]:
    ids = [name for name in a if name in b]
    lines = []
    for metric in COMPARED:
        both = [name for name in ids if metric in a[name] and metric in b[name]]
        if both:
            of_a, of_b = (np.array([scores[name][metric] for name in both]) for scores in (a, b))
            found = paired_difference(of_a, of_b)
            lines.append(
                f"| {label} | {metric} | {len(both):,} | {of_a.mean():.3f} | {of_b.mean():.3f} | "
                f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] | {found.p:.4f} |"
            )
    left_out = len(a) + len(b) - 2 * len(ids)
    return lines + (
        [f"| {label} | *{left_out:,} questions of one run alone are left out* | | | | | |"]
        if left_out
        else []
    )


def _differences(run_a: Path, run_b: Path) -> list[str]:
    """The keys of the configurations and the identities that differ."""
    a, b = (_flat(run_dir) for run_dir in (run_a, run_b))
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys]


def _flat(run_dir: Path) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in ("config.yaml", "identity.json"):
        values: Any = OmegaConf.to_container(OmegaConf.load(run_dir / name))
        for key, value in values.items():
            flat |= (
                {f"{key}.{inner}": each for inner, each in value.items()}
                if isinstance(value, dict)
                else {key: value}
            )
    return flat
