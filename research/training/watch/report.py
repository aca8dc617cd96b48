"""The report of a run, finished or not, as one page that needs no network: the table, the warnings, the
curves (figures.py), and episodes before and after (episodes.py).

    python -m research.training.watch.report RUN_DIR      # writes RUN_DIR/report.html
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from research.environments.headline import Headline
from research.episode.pieces import pieces
from research.episode.protocol import Protocol
from research.files import write_atomically
from research.training.config import headline_of, load_config, read_section
from research.training.run.options import read_saved
from research.training.run_files import read_metrics
from research.training.watch.episodes import choose_pairs
from research.training.watch.figures import Drawing, Point, draw_all
from research.training.watch.guards import REWARD, GuardConfig, Rows, alarms
from research.training.watch.table import (
    NO_TEST,
    TableRow,
    failures_warning,
    header_of,
    held_out_split,
    step_after,
    table_rows,
)
from research.training.watch.validations import provenance

EPISODES = 10


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Also write the held-out curve as an SVG file."
)
def main(run_dir: Path, picture: Path | None) -> None:
    """Write RUN_DIR/report.html from what the run has written so far."""
    try:
        click.echo(write_report(run_dir))
        if picture:
            write_picture(run_dir, picture)
    except OmegaConfBaseException as error:
        raise click.ClickException(f"{run_dir / 'config.yaml'}: {str(error).splitlines()[0]}") from error
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def write_report(run_dir: Path) -> Path:
    """Write the page and return its path.

    Raises:
        FileNotFoundError: the folder is not that of a run.
        ValueError: a file of the run is not as it should be; names it.
    """
    for name in ("recipe.json", "config.yaml"):
        if not (run_dir / name).exists():
            raise FileNotFoundError(f"{run_dir} is not a run folder: there is no {name} in it")
    environment = Environment(
        loader=PackageLoader("research", ""),
        autoescape=True,  # questions, passages and responses may hold any HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("training/watch/report.html.j2").render(_contents(run_dir.absolute()))
    target = run_dir / "report.html"
    write_atomically(target, page)
    return target


def write_picture(run_dir: Path, target: Path) -> None:
    """The curve of the measure on held-out questions as a picture of its own, black on white.

    Raises:
        ValueError: nothing held out was evaluated yet.
    """
    drawings = {drawing.title: drawing.svg for drawing in _contents(run_dir)["drawings"]}
    svg = drawings[headline_of(run_dir).title]
    if svg is None:
        raise ValueError(f"{run_dir}: no held-out questions were evaluated yet")
    # As plain text: the page's svg is marked as safe, and would escape what is put into it.
    style = '<svg style="background: white; color: #222; font-family: sans-serif" '
    target.write_text(str(svg).replace("<svg ", style, 1) + "\n", encoding="utf-8")


def _contents(run_dir: Path) -> dict[str, Any]:
    config = load_config(run_dir / "config.yaml")
    guards, protocol = _guard_config(config), read_section(Protocol, config.research.protocol)
    rows, table = read_metrics(run_dir), table_rows(run_dir)
    split, headline = held_out_split(run_dir), headline_of(run_dir)
    return {
        "heading": _heading(run_dir, config, rows),
        "options": _options(run_dir),
        "header": header_of(headline),
        "note": headline.note + (NO_TEST if split != "test" else ""),
        "table": [row.cells() for row in table],
        "provenance": provenance(rows, headline.label),
        "failures": failures_warning(table, headline),
        "split": split,
        "alarms": alarms(rows, guards),
        "old_run": "guards" not in config.research,
        "drawings": _drawings(rows, table, step_after(run_dir, split), guards, headline),
        "pairs": choose_pairs(run_dir, EPISODES),
        "pieces": lambda trajectory: pieces(trajectory, protocol),
    }


def _guard_config(config: DictConfig) -> GuardConfig:
    """The thresholds of the run; the default ones for a run from before there were guards."""
    return read_section(GuardConfig, config.research.get("guards", {}))


@dataclass(frozen=True)
class _Heading:
    name: str
    model: str
    steps: str
    finished: bool
    date: str
    written: str


def _heading(run_dir: Path, config: DictConfig, rows: Rows) -> _Heading:
    steps = [int(row["step"]) for row in rows if REWARD in row]
    done, total = max(steps, default=0), config.trainer.total_training_steps
    newest = run_dir / "metrics.jsonl" if rows else run_dir / "config.yaml"
    return _Heading(
        name=run_dir.name,
        model=config.actor_rollout_ref.model.path,
        steps=f"{done} of {total}" if total else str(done),
        finished=total is not None and done >= total,
        date=f"{datetime.fromtimestamp(newest.stat().st_mtime):%Y-%m-%d %H:%M}",
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
    )


def _options(run_dir: Path) -> dict[str, str]:
    """The options of the command line that have a value."""
    saved = read_saved(run_dir / "recipe.json")
    return {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in saved.items()
        if value not in (None, [], "")
    }


def _drawings(
    rows: Rows, table: list[TableRow], last: int | None, guards: GuardConfig, headline: Headline
) -> list[Drawing]:
    """The charts, their SVG marked as ours: it is the one thing of the page that is not escaped."""
    searched = [row for row in table if row.control == ""]
    points = [Point(row.name, 0, row.before) for row in searched if row.before]
    points += [Point(row.name, last, row.after) for row in searched if row.after and last]
    drawings = draw_all(rows, points, guards.rollout_difference, headline)
    return [
        Drawing(drawing.title, Markup(drawing.svg) if drawing.svg else None, drawing.missing)
        for drawing in drawings
    ]


if __name__ == "__main__":
    main()
