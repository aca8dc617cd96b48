"""The curves of the report, each an SVG for the page (research/report/drawing.py)."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.environments.controls import CONTROLS
from research.environments.headline import REWARD, Chart, Headline, Result
from research.report.drawing import COLOURS, STYLE, axes_of_figure, svg_text
from research.training.run_files import History
from research.training.watch.guards import ENTROPY, ROLLOUT_DIFFERENCE

SMOOTHED = 10  # steps of the running mean over a noisy curve; drawn if there are twice as many
# Sources of the test set and of the controls: points, not curves.
NOT_VALIDATION = ("test_", *(f"{control}_" for control in CONTROLS))
PHASES = ("gen", "old_log_prob", "update_actor", "update_weights")


@dataclass(frozen=True)
class Drawing:
    """A chart for the page. ``svg`` is None if none of its metrics are there; ``missing`` names those."""

    title: str
    svg: Markup | None  # the one thing in the page that is not escaped
    missing: list[str]


@dataclass(frozen=True)
class Point:
    """A result on held-out questions, which is drawn with its interval."""

    source: str
    step: int
    result: Result


CHARTS = (
    Chart("Questions whose samples all earned the same", {"search/equal_groups": "equal groups"}, share=True),
    Chart("Entropy", {ENTROPY: "entropy"}),
    Chart("KL", {"actor/ppo_kl": "to the policy that sampled", "actor/kl_loss": "to the reference"}),
)


def draw_charts(
    rows: History, points: Sequence[Point], difference_limit: float, headline: Headline
) -> list[Drawing]:
    """Every chart of the report, in order."""
    with matplotlib.rc_context(STYLE):
        steps = [row for row in rows if REWARD in row]
        return [
            _plain(headline.training_chart, steps),
            _held_out(rows, points, headline),
            *(_plain(chart, steps) for chart in (*headline.charts, *CHARTS)),
            _difference(steps, difference_limit),
            _seconds(steps),
        ]


def _plain(chart: Chart, rows: History) -> Drawing:
    missing = _missing(rows, chart.curves)
    if len(missing) == len(chart.curves):
        return Drawing(chart.title, None, missing)
    figure, axes = axes_of_figure()
    for number, (key, label) in enumerate(chart.curves.items()):
        if key not in missing:
            _curve(axes, *_series(rows, key), number, label)
    if chart.share:
        axes.set_ylim(-0.03, 1.03)
    if len(chart.curves) > 1:
        axes.legend(fontsize=8)
    return _drawn(figure, chart.title, missing)


def _drawn(figure: Figure, title: str, missing: Sequence[str] = ()) -> Drawing:
    return Drawing(title, Markup(svg_text(figure, title)), list(missing))


def _held_out(rows: History, points: Sequence[Point], headline: Headline) -> Drawing:
    """The measure by source: lines through validations and, dotted, the baseline; points from the table."""
    title = headline.title
    curves, baselines = _validated(rows, headline.metric), _validated(rows, headline.baseline)
    if not curves and not points:
        return Drawing(title, None, [f"val-aux/*/{headline.metric}/mean@1"])
    groups = sorted({_group(source) for source in [*curves, *(point.source for point in points)]})
    colour = dict(zip(groups, COLOURS * (1 + len(groups) // len(COLOURS)), strict=False))
    figure, axes = axes_of_figure()
    for source, (steps, values) in curves.items():
        axes.plot(steps, values, color=colour[_group(source)], marker=".", linewidth=1.2)
    for source, (steps, values) in baselines.items():
        axes.plot(steps, values, color=colour[_group(source)], linestyle=":", linewidth=1.2)
    spread = 0.01 * max((point.step for point in points), default=0)
    for point in points:
        shift = spread * (groups.index(_group(point.source)) - (len(groups) - 1) / 2)
        _mark(axes, point, shift, colour[_group(point.source)])
    for name in groups:
        axes.plot([], [], color=colour[name], label=name.replace("$", r"\$"))  # no formula
    if baselines:
        axes.plot([], [], color=COLOURS[-1], linestyle=":", label="the questions themselves")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize=8)
    return _drawn(figure, title)


def _validated(rows: History, metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of a metric by source of the validation questions."""
    pattern = re.compile(rf"val-aux/(.+)/{metric}/mean@1")
    keys = sorted({key for row in rows for key in row if pattern.fullmatch(key)})
    sources = {key.split("/")[1]: key for key in keys}
    return {s: _series(rows, key) for s, key in sources.items() if not s.startswith(NOT_VALIDATION)}


def _mark(axes: Axes, point: Point, shift: float, colour: str) -> None:
    """A diamond with its interval, shifted so that sources do not hide each other."""
    result, (low, high) = point.result, point.result.interval
    bounds = [[result.value - low], [high - result.value]]
    at = [point.step + shift], [result.value]
    axes.errorbar(*at, yerr=bounds, color=colour, fmt="D", markersize=4, capsize=2)


def _difference(rows: History, limit: float) -> Drawing:
    title = "|p of the rollout - p of the actor|"
    missing = _missing(rows, [ROLLOUT_DIFFERENCE])
    if missing:
        return Drawing(title, None, missing)
    figure, axes = axes_of_figure()
    axes.set_yscale("log")
    steps, values = _series(rows, ROLLOUT_DIFFERENCE)
    axes.plot(steps, [value if value > 0 else math.nan for value in values], COLOURS[0], marker=".")
    axes.axhline(limit, color=COLOURS[3], linestyle="--", linewidth=1)
    where = axes.get_yaxis_transform()  # x as a share of the width, y as a value
    axes.text(0.01, limit, f"warning above {limit:.0e}", transform=where, va="top", fontsize=8)
    return _drawn(figure, title)


def _seconds(rows: History) -> Drawing:
    """Seconds of each step by phase, stacked; the rest is in none of them."""
    title = "Seconds per step"
    missing = _missing(rows, ["timing_s/step"])
    if missing:
        return Drawing(title, None, missing)
    figure, axes = axes_of_figure()
    steps, total = _series(rows, "timing_s/step")
    parts = [
        [row.get(f"timing_s/{phase}", 0.0) for row in rows if "timing_s/step" in row] for phase in PHASES
    ]
    rest = [max(0.0, whole - sum(part)) for whole, *part in zip(total, *parts, strict=True)]
    edges = [step + side for step in steps for side in (-0.5, 0.5)]
    layers = [[value for value in part for _ in range(2)] for part in [*parts, rest]]
    axes.stackplot(edges, layers, labels=[*PHASES, "rest"], colors=COLOURS, alpha=0.85)
    axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1)
    return _drawn(figure, title)


def _missing(rows: History, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not any(key in row for row in rows)]


def _series(rows: History, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric; a value that is not finite leaves a gap."""
    measured = [row for row in rows if key in row]
    values = [row[key] if math.isfinite(row[key]) else math.nan for row in measured]
    return [row["step"] for row in measured], values


def _curve(axes: Axes, steps: list[float], values: list[float], number: int, label: str) -> None:
    """A line; a long, hence noisy one is pale, with its running mean on top."""
    # The second line of a chart often lies on the first.
    colour, style = COLOURS[number], "--" if number else "-"
    if len(values) < 2 * SMOOTHED:
        axes.plot(steps, values, color=colour, label=label, marker=".", linewidth=1.2, linestyle=style)
        return
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    half = SMOOTHED // 2
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    axes.plot(steps, [_mean(window) for window in windows], color=colour, label=label, linestyle=style)


def _mean(window: list[float]) -> float:
    """Without NaN, which must not hide its neighbours."""
    numbers = [value for value in window if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _group(source: str) -> str:
    """``2hop`` for ``validation_2hop`` and ``test_2hop``; other names stay."""
    return re.sub("^(validation|test)_", "", source)
