"""metrics.json, means with intervals by method and data set, and its table. Rounded only when shown."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.evaluation.outputs.predictions import PredictionKey
from research.evaluation.outputs.scoring import COUNTS, METRICS
from research.files import write_atomically
from research.metrics.statistics import bootstrap
from research.report.tables import markdown_table

METRICS_FILE = "metrics.json"
MEAN = "mean"
LABELS = ("method", "dataset", "questions")  # of a row, before its figures
COLUMNS = ("em", "f1", "acc", "judge", "support_recall", "searches", "model_tokens", "format_valid", "failed")
TITLES = {
    "em": "EM",
    "f1": "F1",
    "support_recall": "support",
    "model_tokens": "tokens",
    "format_valid": "format",
}
WITH_INTERVAL = {"em", "f1", "acc", "judge", "ndcg@10"}


def summarise(scores: dict[PredictionKey, dict[str, float]], identity: dict[str, Any]) -> dict[str, Any]:
    """The contents of metrics.json; `identity` is what the figures depend on: model, retriever, ..."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for key, row in scores.items():
        groups[key.method, key.dataset].append(row)
    results = [
        {"method": method, "dataset": dataset, "questions": len(rows), **_figures(rows)}
        for (method, dataset), rows in groups.items()
    ]
    return {**identity, "results": results + _means(results)}


def _figures(rows: list[dict[str, float]]) -> dict[str, Any]:
    columns: dict[str, list[float]] = {name: [] for name in METRICS}
    own = {name: 0.0 for row in rows for name in row if name not in METRICS}
    for row in rows:  # what an environment would have measured of a failed question counts 0
        for name, value in ((own if row.get("failed") else {}) | row).items():
            columns.setdefault(name, []).append(value)
    return {
        name: {**bootstrap(np.array(values))._asdict(), "questions": len(values)}
        for name, values in columns.items()
        if values
    }


def _means(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method with several data sets, the plain mean over them."""
    means = []
    for method in dict.fromkeys(row["method"] for row in results):
        rows = [row for row in results if row["method"] == method]
        if len(rows) > 1:
            common = [name for name in rows[0] if name not in LABELS and all(name in row for row in rows)]
            figures = {name: {"mean": float(np.mean([row[name]["mean"] for row in rows]))} for name in common}
            questions = sum(row["questions"] for row in rows)
            means.append({"method": method, "dataset": MEAN, "questions": questions, **figures})
    return means


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write metrics.json, whole or not at all. Raises DataError."""
    write_atomically(run_dir / METRICS_FILE, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def read_summary(run_dir: Path) -> dict[str, Any]:
    """What `write_summary` wrote. Raises FileNotFoundError."""
    summary: dict[str, Any] = json.loads((run_dir / METRICS_FILE).read_text(encoding="utf-8"))
    return summary


def result_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The figures as rows of text, after a header."""
    there = dict.fromkeys(name for row in results for name in row)
    columns = [name for name in COLUMNS if name in there]
    columns += [name for name in there if name not in (*LABELS, *METRICS)]  # of an environment of one's own
    header = ["method", "data set", "questions", *(TITLES.get(name, name) for name in columns)]
    return [header] + [
        [
            row["method"],
            row["dataset"],
            f"{row['questions']:,}",
            *(cell_text(name, row.get(name)) for name in columns),
        ]
        for row in results
    ]


def markdown(results: Iterable[Mapping[str, Any]]) -> str:
    """The figures as a Markdown table."""
    return markdown_table(result_rows([*results]))


def cell_text(name: str, figure: Mapping[str, float] | None, percent: bool = False) -> str:
    """`.412 [.380, .444]`, or `41.2 [38.0, 44.4]`; one number where there is no interval to show."""
    if figure is None:
        return "-"
    digits, scale = 1 if percent or name in COUNTS else 3, 100 if percent else 1
    mean, *interval = (
        f"{scale * figure[each]:.{digits}f}" for each in ("mean", "low", "high") if each in figure
    )
    return f"{mean} [{', '.join(interval)}]" if interval and name in WITH_INTERVAL else mean
