"""Charts for pages: SVG whose text stays text, in the page's own colour, readable on light and dark.

Imports matplotlib, which takes a second.
"""

import io
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#010203"  # stands for the page's text colour
COLOURS = ("#3b82f6", "#e8890c", "#10a37f", "#d6457a", "#8b5cf6", "#94a3b8")
STYLE: Any = {  # matplotlib types each key as a literal
    "svg.fonttype": "none",
    "svg.hashsalt": "research",  # the same run gives the same page
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "grid.alpha": 0.15,
    "savefig.transparent": True,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor", "titlecolor")},
}


def axes_of_figure() -> tuple[Figure, Axes]:
    """A figure in the size of the pages, to be drawn on within `matplotlib.rc_context(STYLE)`."""
    figure = Figure(figsize=(4.8, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.grid(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    return figure, axes


def svg_text(figure: Figure, title: str) -> str:
    """The bare <svg> element, without unused ids, which would repeat within the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :]).replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
