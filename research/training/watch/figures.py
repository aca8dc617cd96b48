"""The curves of the report, each an SVG for the page (research/report/drawing.py)."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes

from research.environments.controls import CONTROLS
from research.environments.headline import REWARD, Chart, Headline, Result
from research.report.drawing import COLOURS, STYLE, axes_of_figure, svg_text
from research.training.run_files import History
from research.training.watch.guards import ENTROPY, ROLLOUT_DIFFERENCE

SMOOTHED = 10  # steps of the running mean over a noisy curve; drawn if there are twice as many
# Sources of the test set and of the controls: points, not curves.
NOT_VALIDATION = ("test", *CONTROLS)
PHASES = ("gen", "old_log_prob", "update_actor", "update_weights")
STEP_SECONDS = "timing_s/step"
Point = tuple[str, int, Result]
"""(source, step, result) on held-out questions, which is drawn with its interval"""


@dataclass(frozen=True)
class Drawing:
    """A chart for the page. ``svg`` is None if none of its metrics are there; ``missing`` names those."""

    title: str
    svg: Markup | None  # the one thing in the page that is not escaped
    missing: list[str]


CHARTS = (
    Chart("Questions whose samples all earned the same", {"search/equal_groups": "equal groups"}, share=True),
    Chart("Entropy", {ENTROPY: "entropy"}),
    Chart("KL", {"actor/ppo_kl": "to the policy that sampled", "actor/kl_loss": "to the reference"}),
)


def draw_charts(
    rows: History, points: Sequence[Point], difference_limit: float, headline: Headline
) -> list[Drawing]:
    """Every chart of the report, in order."""
    steps = [row for row in rows if REWARD in row]

    def difference(axes: Axes) -> None:
        _difference(axes, steps, difference_limit)

    with matplotlib.rc_context(STYLE):
        return [
            _plain(headline.training_chart, steps),
            _held_out(rows, points, headline),
            *(_plain(chart, steps) for chart in (*headline.charts, *CHARTS)),
            _drawing("|p of the rollout - p of the actor|", [ROLLOUT_DIFFERENCE], steps, difference),
            _drawing("Seconds per step", [STEP_SECONDS], steps, lambda axes: _seconds(axes, steps)),
        ]


def _drawing(title: str, keys: Iterable[str], rows: History, draw: Callable[[Axes], None]) -> Drawing:
    """A chart of these metrics; it is left out if the rows have none of them."""
    missing = [key for key in keys if not any(key in row for row in rows)]
    if missing and len(missing) == len([*keys]):
        return Drawing(title, None, missing)
    figure, axes = axes_of_figure()
    draw(axes)
    return Drawing(title, Markup(svg_text(figure, title)), missing)


def _plain(chart: Chart, rows: History) -> Drawing:
    def draw(axes: Axes) -> None:
        for number, (key, label) in enumerate(chart.curves.items()):
            _curve(axes, *_series(rows, key), number, label)
        if chart.share:
            axes.set_ylim(-0.03, 1.03)
        if len(chart.curves) > 1:
            axes.legend(fontsize=8)

    return _drawing(chart.title, chart.curves, rows, draw)


def _held_out(rows: History, points: Sequence[Point], headline: Headline) -> Drawing:
    """The measure by source: lines through validations and, dotted, the baseline; points from the table."""
    curves, baselines = _validated(rows, headline.metric), _validated(rows, headline.baseline)
    groups = sorted({_group(source) for source in [*curves, *(source for source, _, _ in points)]})
    colour = dict(zip(groups, COLOURS * (1 + len(groups) // len(COLOURS)), strict=False))

    def draw(axes: Axes) -> None:
        for source, line in curves.items():
            axes.plot(*line, color=colour[_group(source)], marker=".", linewidth=1.2)
        for source, line in baselines.items():
            axes.plot(*line, color=colour[_group(source)], linestyle=":", linewidth=1.2)
        spread = 0.01 * max((step for _, step, _ in points), default=0)
        for source, step, result in points:
            # A diamond with its interval, shifted so that sources do not hide each other.
            shift = spread * (groups.index(_group(source)) - (len(groups) - 1) / 2)
            bounds = [[abs(bound - result.value)] for bound in result.interval]
            look: dict[str, Any] = {
                "color": colour[_group(source)],
                "fmt": "D",
                "markersize": 4,
                "capsize": 2,
            }
            axes.errorbar([step + shift], [result.value], yerr=bounds, **look)
        for name in groups:
            axes.plot([], [], color=colour[name], label=name.replace("$", r"\$"))  # no formula
        if baselines:
            axes.plot([], [], color=COLOURS[-1], linestyle=":", label="the questions themselves")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(fontsize=8)

    needed = [] if groups else [f"val-aux/*/{headline.metric}/mean@1"]
    return _drawing(headline.title, needed, rows, draw)


def _validated(rows: History, metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of a metric by source of the validation questions."""
    pattern = re.compile(rf"val-aux/(.+)/{metric}/mean@1")
    keys = sorted({key for row in rows for key in row})
    sources = {match[1]: key for key in keys if (match := pattern.fullmatch(key))}
    return {s: _series(rows, key) for s, key in sources.items() if not _is_of(s, NOT_VALIDATION)}


def _is_of(source: str, splits: Iterable[str]) -> bool:
    return any(f"{source}_".startswith(f"{split}_") for split in splits)


def _difference(axes: Axes, rows: History, limit: float) -> None:
    axes.set_yscale("log")
    steps, values = _series(rows, ROLLOUT_DIFFERENCE)
    axes.plot(steps, [value if value > 0 else math.nan for value in values], COLOURS[0], marker=".")
    axes.axhline(limit, color=COLOURS[3], linestyle="--", linewidth=1)
    where = axes.get_yaxis_transform()  # x as a share of the width, y as a value
    axes.text(0.01, limit, f"warning above {limit:.0e}", transform=where, va="top", fontsize=8)


def _seconds(axes: Axes, rows: History) -> None:
    """The seconds of each step by phase, stacked; the rest belongs to no phase."""
    steps, total = _series(rows, STEP_SECONDS)
    parts = [[row.get(f"timing_s/{phase}", 0.0) for row in rows if STEP_SECONDS in row] for phase in PHASES]
    rest = [max(0.0, whole - sum(part)) for whole, *part in zip(total, *parts, strict=True)]
    edges = [step + side for step in steps for side in (-0.5, 0.5)]
    layers = [[value for value in part for _ in range(2)] for part in [*parts, rest]]
    axes.stackplot(edges, layers, labels=[*PHASES, "rest"], colors=COLOURS, alpha=0.85)
    axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1)


def _series(rows: History, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric; a value that is not finite leaves a gap."""
    measured = [row for row in rows if key in row]
    values = [row[key] if math.isfinite(row[key]) else math.nan for row in measured]
    return [row["step"] for row in measured], values


def _curve(axes: Axes, steps: list[float], values: list[float], number: int, label: str) -> None:
    """A line; a long, hence noisy one is pale, with its running mean on top."""
    if not values:
        return
    # The second line of a chart often lies on the first.
    colour, style = COLOURS[number], "--" if number else "-"
    if len(values) < 2 * SMOOTHED:
        axes.plot(steps, values, color=colour, label=label, marker=".", linewidth=1.2, linestyle=style)
        return
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    half, means = SMOOTHED // 2, []
    for index in range(len(values)):
        # Without NaN, which must not hide its neighbours.
        window = [each for each in values[max(0, index - half) : index + half + 1] if not math.isnan(each)]
        means.append(statistics.fmean(window) if window else math.nan)
    axes.plot(steps, means, color=colour, label=label, linestyle=style)


def _group(source: str) -> str:
    """``2hop`` for ``validation_2hop`` and ``test_2hop``, ``all`` for ``test``; other names stay."""
    return re.sub("^(validation|test)(_|$)", "", source) or "all"
