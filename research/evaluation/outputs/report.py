"""report.html of an evaluation: one page, readable without a network. Tables with intervals, EM by hops,
searches, and EM against searches; from metrics.json, predictions.jsonl and timings.jsonl.
"""

from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from research.drawing import COLOURS, STYLE, axes_of_figure, svg_text
from research.evaluation.outputs.predictions import Predictions, read_predictions
from research.evaluation.outputs.summary import COLUMNS, TITLES, cell_text, read_summary
from research.files import write_atomically
from research.metrics.statistics import bootstrap

REPORT = "report.html"
MOST_SEARCHES = 10  # in a chart; further ones count as so many

Rows = list[dict[str, Any]]
"""One question each: dataset, method, hops, em, searches"""


def write_report(run_dir: Path) -> Path:
    """Write the page and return its path. Raises FileNotFoundError for a folder without figures."""
    environment = Environment(
        loader=PackageLoader("research", ""),
        autoescape=True,  # questions and file names may hold any HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("evaluation/outputs/report.html.j2").render(_contents(run_dir))
    target = run_dir / REPORT
    write_atomically(target, page)
    return target


def _contents(run_dir: Path) -> dict[str, Any]:
    summary = read_summary(run_dir)
    rows = [
        {**{name: each.metadata.get(name) for name in ("dataset", "method", "hops")}, **each.metrics}
        for each in read_predictions(run_dir)
    ]
    results = summary["results"]
    columns = [name for name in COLUMNS if any(name in row for row in results)]
    return {
        "name": run_dir.absolute().name,
        "summary": summary,
        "header": ["method", "data set", "questions", *(TITLES.get(name, name) for name in columns)],
        "table": [_cells(row, columns) for row in results],
        "charts": [{"title": title, "svg": Markup(svg)} for title, svg in draw_all(rows)],
        "seconds": _seconds(run_dir),
        "failures": _failures(run_dir),
        "configuration": OmegaConf.to_yaml(OmegaConf.load(run_dir / "config.yaml")),
        "written": datetime.now().isoformat(" ", "minutes"),
    }


def _cells(row: dict[str, Any], columns: list[str]) -> list[str]:
    figures = (cell_text(name, row.get(name)) for name in columns)
    return [row["method"], row["dataset"], f"{row['questions']:,}", *figures]


def _seconds(run_dir: Path) -> dict[str, str]:
    """What a question took, in seconds."""
    rows = Predictions(run_dir).timings()
    found = {}
    for name, label in (
        ("seconds", "a question"),
        ("generate_seconds", "sampling"),
        ("search_seconds", "searching"),
    ):
        values = [row[name] for row in rows]
        if any(values):
            p50, p95 = np.percentile(values, [50, 95])
            found[label] = f"median {p50:.2f} s, 95% under {p95:.2f} s"
    return found


def _failures(run_dir: Path) -> list[tuple[str, str]]:
    """Question and reason of the first that failed."""
    failed = (each.metadata for each in read_predictions(run_dir) if "error" in each.metadata)
    return [(data["question"], data["error"]) for data, _ in zip(failed, range(20), strict=False)]


# ---------------------------------------------------------------------------------------------- charts


def draw_all(rows: Rows) -> list[tuple[str, str]]:
    """(title, SVG) of each chart there are data for."""
    by_method: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    with matplotlib.rc_context(STYLE):
        charts = [_em_by(by_method, "hops", "EM by hops"), _histogram(by_method)]
        charts.append(_em_by(by_method, "searches", "EM by the searches a question took"))
    return [chart for chart in charts if chart]


def _em_by(by_method: dict[str, Rows], key: str, title: str) -> tuple[str, str] | None:
    """Mean EM with its interval at each value of `key`, a line a method, each a little to the side."""
    figure, axes = axes_of_figure()
    drawn: set[int] = set()
    for number, (method, rows) in enumerate(by_method.items()):
        groups: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if row.get(key) is not None:
                groups[min(int(row[key]), MOST_SEARCHES)].append(row["em"])
        places = sorted(groups)
        if places:
            drawn |= set(places)
            intervals = [bootstrap(np.array(groups[place])) for place in places]
            means = [each.mean for each in intervals]
            error = [
                [each.mean - each.low for each in intervals],
                [each.high - each.mean for each in intervals],
            ]
            colour = COLOURS[number % len(COLOURS)]
            beside = [place + 0.05 * (number - (len(by_method) - 1) / 2) for place in places]
            axes.errorbar(beside, means, yerr=error, color=colour, marker="o", capsize=2, label=method)
    if not drawn:
        return None
    axes.set_ylim(-0.03, 1.03)
    return _finished(figure, axes, drawn, title)


def _histogram(by_method: dict[str, Rows]) -> tuple[str, str] | None:
    """The share of questions with so many searches."""
    title = "Searches a question"
    figure, axes = axes_of_figure()
    width, drawn = 0.8 / len(by_method), {0}
    for number, (method, rows) in enumerate(by_method.items()):
        counts = np.bincount([min(int(row["searches"]), MOST_SEARCHES) for row in rows])
        drawn.add(len(counts) - 1)
        places = np.arange(len(counts)) + (number - (len(by_method) - 1) / 2) * width
        axes.bar(places, counts / len(rows), width, color=COLOURS[number % len(COLOURS)], label=method)
    return _finished(figure, axes, drawn, title)


def _finished(figure: Figure, axes: Axes, places: set[int], title: str) -> tuple[str, str]:
    """Whole numbers below, however few, and the methods above, where they hide nothing."""
    axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
    axes.set_xticks(range(min(places), max(places) + 1))
    figure.legend(loc="outside upper center", ncols=3, fontsize=7)
    return title, svg_text(figure, title)
