"""What the terminal shows at the end of a run: table, paired tests, warnings, where everything is."""

import shlex
import sys
from pathlib import Path

import click

from research.errors import warn
from research.training.run.options import RunFailed
from research.training.run_files import read_metrics
from research.training.watch import paired
from research.training.watch.table import (
    HeldOut,
    as_text,
    failures_warning,
    header_of,
    table_rows,
    untaught_warning,
)
from research.training.watch.validations import provenance


def print_summary(run_dir: Path) -> None:
    """Print it, and write the report.

    Raises:
        RunFailed: a file of the run is damaged; names it.
    """
    try:
        rows, held_out, compared = table_rows(run_dir), HeldOut(run_dir), paired.comparisons(run_dir)
    except ValueError as error:
        raise RunFailed(f"the run is finished, but has no table: {error}") from error
    if any(row.after for row in rows):
        table = as_text(header_of(held_out.headline), [row.cells() for row in rows])
        click.echo(f"\n{table}{held_out.remark}")
    else:
        click.echo("\nno table: nothing was evaluated after the training (trainer.test_freq=-1)")
    if line := provenance(read_metrics(run_dir), held_out.headline.label):
        click.echo(line)
    if compared:
        click.echo("\n" + as_text(paired.HEADER, [one.cells() for one in compared]))
    for warning in (failures_warning(rows, held_out.headline), untaught_warning(read_metrics(run_dir))):
        if warning:
            click.echo(warning, err=True)
    click.echo(f"\nrun folder: {run_dir}")
    click.echo("  config.yaml  metrics.jsonl  trajectories/  checkpoints/  tensorboard/  logs/  policy/")
    try:
        # Here: matplotlib takes a second to import.
        from research.training.watch.report import write_training_report

        click.echo(f"report: {write_training_report(run_dir)}")
    except Exception as error:  # whatever it is, the training is kept
        again = shlex.join([sys.executable, "-m", "research.training.watch.report", str(run_dir)])
        warn(f"no report was written: {type(error).__name__}: {error}; after fixing that, run: {again}")
