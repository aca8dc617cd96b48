"""Scores of questions to figures: by task with bootstrap intervals, and the mean of the tasks.

Nothing is rounded before it is shown.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from research.evaluation.bright.trec import METRICS
from research.metrics.statistics import bootstrap, bootstrap_mean_of
from research.report.tables import markdown_table

QuestionScores = Mapping[str, Mapping[str, float]]
"""question id -> metric -> value"""


def figures(scores: QuestionScores) -> dict[str, Any]:
    """One task: the number of questions, and the mean of each metric with its 95% interval."""
    columns = {name: np.array([row[name] for row in scores.values()]) for name in METRICS}
    intervals = {name: bootstrap(each)._asdict() for name, each in columns.items()}
    return {"questions": len(scores), **intervals}


def mean_figures(tasks: Mapping[str, QuestionScores]) -> dict[str, Any]:
    """The plain mean over tasks; its interval resamples the questions within each task."""
    rows: dict[str, Any] = {"questions": sum(map(len, tasks.values()))}
    for name in METRICS:
        groups = [np.array([row[name] for row in scores.values()]) for scores in tasks.values()]
        rows[name] = bootstrap_mean_of(groups)._asdict()
    return rows


def table(results: list[dict[str, Any]]) -> str:
    """The figures for a terminal, one line per task."""
    lines = [["task", "questions", *METRICS]]
    for row in results:
        cells = [
            f"{row[name]['mean']:.5f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}]" for name in METRICS
        ]
        lines.append([row["task"], str(row["questions"]), *cells])
    return markdown_table(lines)
