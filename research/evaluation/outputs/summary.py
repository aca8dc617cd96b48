"""metrics.json: means with intervals by data set and method, the retriever's identity, the counts. And the
table of it for a terminal. Nothing is rounded before it is shown.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from research.evaluation.outputs.predictions import Key
from research.evaluation.outputs.scoring import METRICS, SHARES
from research.files import write_atomically
from research.metrics.statistics import bootstrap

METRICS_FILE = "metrics.json"
MEAN = "mean"
COLUMNS = ("em", "f1", "acc", "judge", "support_recall", "searches", "model_tokens", "format_valid", "failed")
TITLES = {
    "em": "EM",
    "f1": "F1",
    "support_recall": "support",
    "model_tokens": "tokens",
    "format_valid": "format",
}
WITH_INTERVAL = {"em", "f1", "acc", "judge"}


def summarise(scores: dict[Key, dict[str, float]], identity: dict[str, Any]) -> dict[str, Any]:
    """What metrics.json holds. `identity` says what the figures hang on: model, retriever, ..."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for key, row in scores.items():
        groups[key.method, key.dataset].append(row)
    results = [
        {"method": method, "dataset": dataset, **_figures(rows)} for (method, dataset), rows in groups.items()
    ]
    return {**identity, "results": results + _means(results)}


def _figures(rows: list[dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"questions": len(rows)}
    for name in METRICS:
        values = [row[name] for row in rows if name in row]
        if values:
            figures[name] = {**bootstrap(np.array(values))._asdict(), "questions": len(values)}
    return figures


def _means(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each method, the plain mean over data sets, where there are several."""
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in results:
        by_method[row["method"]].append(row)
    means = []
    for method, rows in by_method.items():
        if len(rows) > 1:
            common = [name for name in METRICS if all(name in row for row in rows)]
            figures = {name: {"mean": float(np.mean([row[name]["mean"] for row in rows]))} for name in common}
            means.append(
                {"method": method, "dataset": MEAN, "questions": sum(r["questions"] for r in rows), **figures}
            )
    return means


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write metrics.json, at once or not at all."""
    write_atomically(run_dir / METRICS_FILE, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def read_summary(run_dir: Path) -> dict[str, Any]:
    """What `write_summary` wrote. Raises FileNotFoundError."""
    summary: dict[str, Any] = json.loads((run_dir / METRICS_FILE).read_text(encoding="utf-8"))
    return summary


def markdown(results: Iterable[dict[str, Any]]) -> str:
    """The figures as a Markdown table, padded so that a terminal shows it well."""
    rows = list(results)
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [["method", "data set", "questions", *(TITLES.get(name, name) for name in columns)]]
    for row in rows:
        cells = [cell_text(name, row.get(name)) for name in columns]
        lines.append([row["method"], row["dataset"], str(row["questions"]), *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def cell_text(name: str, figure: dict[str, float] | None) -> str:
    """`.412 [.380, .444]`; one number where there is no interval to tell."""
    if figure is None:
        return "-"
    digits = 3 if name in SHARES else 1
    text = f"{figure['mean']:.{digits}f}"
    if name in WITH_INTERVAL and "low" in figure:
        text += f" [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"
    return text
