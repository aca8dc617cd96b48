"""report.html of an evaluation: tables with intervals, EM by hops, searches, and EM against searches.

From metrics.json, predictions.jsonl and timings.jsonl of the run folder.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from research.evaluation.outputs.predictions import read_predictions, read_timings
from research.evaluation.outputs.summary import read_summary, result_rows
from research.metrics.statistics import bootstrap
from research.report.drawing import COLOURS, STYLE, axes_of_figure, svg_text
from research.report.page import write_page

MOST_SEARCHES = 10  # in a chart; further ones count as so many
MOST_FAILURES = 20
TIMES = {"seconds": "per question", "generate_seconds": "sampling", "search_seconds": "searching"}

Rows = list[dict[str, Any]]
"""One question each: dataset, method, hops, em, searches"""


def write_report(run_dir: Path) -> Path:
    """Write the page and return its path. Raises FileNotFoundError for a folder without figures."""
    questions, failures = [], []
    for each in read_predictions(run_dir):
        questions.append({key: each.metadata.get(key) for key in ("method", "hops")} | each.metrics)
        if "error" in each.metadata:
            failures.append((each.metadata["question"], each.metadata["error"]))
    summary = read_summary(run_dir)
    contents = {
        "name": run_dir.absolute().name,
        "summary": summary,
        "rows": result_rows(summary["results"]),
        "charts": [(title, Markup(svg)) for title, svg in evaluation_charts(questions)],
        "seconds": dict(_seconds(run_dir)),
        "failures": failures[:MOST_FAILURES],
        "configuration": OmegaConf.to_yaml(OmegaConf.load(run_dir / "config.yaml")),
    }
    return write_page(run_dir, "evaluation/outputs/report.html.j2", contents)


def _seconds(run_dir: Path) -> Iterator[tuple[str, str]]:
    """What questions took, in seconds."""
    rows = read_timings(run_dir)
    for name, label in TIMES.items():
        values = [row[name] for row in rows]
        if any(values):
            p50, p95 = np.percentile(values, [50, 95])
            yield label, f"median {p50:.2f} s, 95% under {p95:.2f} s"


# ---------------------------------------------------------------------------------------------- charts


def evaluation_charts(rows: Rows) -> list[tuple[str, str]]:
    """(title, SVG) of each chart there are data for."""
    by_method: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    with matplotlib.rc_context(STYLE):
        charts = [_em_by(by_method, "hops", "EM by hops"), _histogram(by_method)]
        charts.append(_em_by(by_method, "searches", "EM by the searches a question took"))
    return [chart for chart in charts if chart]


def _em_by(by_method: dict[str, Rows], key: str, title: str) -> tuple[str, str] | None:
    """Mean EM with its interval at each value of `key`, one line per method, each a little to the side."""
    figure, axes = axes_of_figure()
    drawn: set[int] = set()
    for number, (method, rows) in enumerate(by_method.items()):
        groups: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if row.get(key) is not None:
                groups[min(int(row[key]), MOST_SEARCHES)].append(row["em"])
        if groups:
            places = np.array(sorted(groups))
            mean, low, high = np.array([bootstrap(np.array(groups[place])) for place in places]).T
            beside = places + 0.05 * (number - (len(by_method) - 1) / 2)
            colour = COLOURS[number % len(COLOURS)]
            bars = np.array([mean - low, high - mean])
            axes.errorbar(beside, mean, yerr=bars, color=colour, marker="o", capsize=2, label=method)
            drawn |= groups.keys()
    if not drawn:
        return None
    axes.set_ylim(-0.03, 1.03)
    return _finished(figure, axes, drawn, title)


def _histogram(by_method: dict[str, Rows]) -> tuple[str, str] | None:
    """The share of questions by their number of searches."""
    figure, axes = axes_of_figure()
    width, drawn = 0.8 / len(by_method), {0}
    for number, (method, rows) in enumerate(by_method.items()):
        counts = np.bincount([min(int(row["searches"]), MOST_SEARCHES) for row in rows])
        drawn.add(len(counts) - 1)
        places = np.arange(len(counts)) + (number - (len(by_method) - 1) / 2) * width
        axes.bar(places, counts / len(rows), width, color=COLOURS[number % len(COLOURS)], label=method)
    return _finished(figure, axes, drawn, "Searches per question")


def _finished(figure: Figure, axes: Axes, places: set[int], title: str) -> tuple[str, str]:
    """Draw only whole numbers on the x axis, and the legend above, where it hides nothing."""
    axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
    axes.set_xticks(range(min(places), max(places) + 1))
    figure.legend(loc="outside upper center", ncols=3, fontsize=7)
    return title, svg_text(figure, title)
