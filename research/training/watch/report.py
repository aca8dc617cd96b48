"""The report of a run, finished or not, as one page that needs no network.

    python -m research.training.watch.report RUN_DIR      # writes RUN_DIR/report.html

It shows the table, the warnings, the curves (figures.py), and episodes before and after (episodes.py).
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import click
from omegaconf.errors import OmegaConfBaseException

from research.environments.headline import REWARD
from research.episode.pieces import pieces
from research.episode.protocol import Protocol
from research.report.page import write_page
from research.training.config import GuardConfig, headline_of, load_config, read_section
from research.training.run_files import read_metrics, read_recipe
from research.training.watch import paired, table
from research.training.watch.episodes import choose_pairs
from research.training.watch.figures import draw_charts
from research.training.watch.guards import GuardWatch
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
        click.echo(write_training_report(run_dir))
        if picture:
            write_picture(run_dir, picture)
    except OmegaConfBaseException as error:
        raise click.ClickException(f"{run_dir / 'config.yaml'}: {str(error).splitlines()[0]}") from error
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def write_training_report(run_dir: Path) -> Path:
    """Write the page and return its path.

    Raises:
        FileNotFoundError: the folder is not that of a run.
        ValueError: a file of the run is damaged; names it.
    """
    for name in ("recipe.json", "config.yaml"):
        if not (run_dir / name).exists():
            raise FileNotFoundError(f"{run_dir} is not a run folder: there is no {name} in it")
    return write_page(run_dir, "training/watch/report.html.j2", _contents(run_dir.absolute()))


def write_picture(run_dir: Path, target: Path) -> None:
    """The curve of the measure on held-out questions as an SVG file, black on white.

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
    # Runs from before there were guards have no such section: the default thresholds.
    guards = read_section(GuardConfig, config.research.get("guards", {}))
    protocol = read_section(Protocol, config.research.protocol)
    history, results, held_out = read_metrics(run_dir), table.table_rows(run_dir), table.HeldOut(run_dir)
    headline, last = held_out.headline, held_out.after
    searched = [row for row in results if row.control == ""]
    points = [(row.name, 0, row.before) for row in searched if row.before]
    points += [(row.name, last, row.after) for row in searched if row.after and last]
    done = max((int(row["step"]) for row in history if REWARD in row), default=0)
    total = config.trainer.total_training_steps
    newest = run_dir / "metrics.jsonl" if history else run_dir / "config.yaml"
    return {
        "name": run_dir.name,
        "model": config.actor_rollout_ref.model.path,
        "steps": f"{done} of {total}" if total else str(done),
        "finished": total is not None and done >= total,
        "date": f"{datetime.fromtimestamp(newest.stat().st_mtime):%Y-%m-%d %H:%M}",
        # Those of the command line that have a value.
        "options": {
            name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
            for name, value in read_recipe(run_dir / "recipe.json").items()
            if value not in (None, [], "")
        },
        "header": table.header_of(headline),
        "note": headline.note + held_out.remark,
        "results": [row.cells() for row in results],
        "paired_header": paired.HEADER,
        "paired_note": paired.NOTE,
        "paired": [one.cells() for one in paired.comparisons(run_dir)],
        "provenance": provenance(history, headline.label),
        "failures": table.failures_warning(results, headline),
        "split": held_out.split,
        "alarms": GuardWatch(guards, history).alarms,
        "old_run": "guards" not in config.research,
        "drawings": draw_charts(history, points, guards.rollout_difference, headline),
        "pairs": choose_pairs(run_dir, EPISODES),
        "pieces": lambda trajectory: pieces(trajectory, protocol),
    }


if __name__ == "__main__":
    main()
