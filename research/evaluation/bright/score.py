"""From rankings to figures, by task with bootstrap intervals; also for others' run files.

Nothing is rounded before it is shown.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.datasets.bright import question_file
from research.evaluation.bright.queries import named
from research.evaluation.bright.trec import METRICS, plain_id, read_qrels, read_run, trec_scores
from research.metrics.statistics import bootstrap, bootstrap_mean_of
from research.report.tables import markdown_table

QuestionScores = Mapping[str, Mapping[str, float]]
"""question id -> metric -> value"""


def figures(scores: QuestionScores) -> dict[str, Any]:
    """One task: the number of questions, and the mean of each metric with its 95% interval."""
    intervals = {name: bootstrap(_column(scores, name))._asdict() for name in METRICS}
    return {"questions": len(scores), **intervals}


def mean_figures(tasks: Mapping[str, QuestionScores]) -> dict[str, Any]:
    """The plain mean over tasks; its interval resamples the questions within each task."""
    groups = {name: [_column(scores, name) for scores in tasks.values()] for name in METRICS}
    intervals = {name: bootstrap_mean_of(columns)._asdict() for name, columns in groups.items()}
    return {"questions": sum(map(len, tasks.values())), **intervals}


def _column(scores: QuestionScores, metric: str) -> np.ndarray:
    return np.array([row[metric] for row in scores.values()])


def table(results: list[dict[str, Any]]) -> str:
    """The figures for a terminal, one line per task."""
    lines = [["task", "questions", *METRICS]]
    for row in results:
        cells = ["{mean:.5f} [{low:.3f}, {high:.3f}]".format(**row[name]) for name in METRICS]
        lines.append([row["task"], str(row["questions"]), *cells])
    return markdown_table(lines)


def score_run(run_file: Path, qrels_file: Path, task: str | None = None, long: bool = False) -> str:
    """The figures of a run file as text, over the judged questions that it has; names the others.

    Judgements are a file in TREC's format, or questions with gold ids, of which `task` selects one task's
    (research.datasets.bright.question_file). Raises EvaluationError or DataError.
    """
    run = read_run(run_file)
    qrels = _judgements(qrels_file, task, long)
    plain = {plain_id(query): query for query in qrels}
    both = {query: qrels[query] for key, query in plain.items() if key in run}
    remarks = [f"{len(both)} questions are judged and in the run."]
    if absent := [query for key, query in plain.items() if key not in run]:
        remarks.append(f"Missing in the run, {len(absent)}: {named(absent)}.")
    if others := [query for query in run if query not in plain]:
        remarks.append(f"In the run without judgement, {len(others)}: {named(others)}.")
    if not both:
        return "\n".join(remarks)
    rows = [{"task": "questions present", **figures(trec_scores(run, both))}]
    if absent:
        rows.append({"task": "missing as 0", **figures(trec_scores(run, qrels))})
    return "\n".join([table(rows), "", *remarks])


def _judgements(path: Path, task: str | None, long: bool) -> dict[str, dict[str, int]]:
    if path.suffix in (".jsonl", ".gz", ".parquet", ".json"):
        return {each.id: dict.fromkeys(each.gold_ids, 1) for each in question_file(path, task, long)}
    return read_qrels(path)
