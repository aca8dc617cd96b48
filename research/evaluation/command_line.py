"""How the command lines of the evaluations end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from research.errors import DataError
from research.evaluation.config import EvaluationError
from research.processes import Terminated, raise_on_terminate


@contextmanager
def ending_well(run_dir: Path) -> Iterator[None]:
    """Errors as one line, and after ctrl-C how to resume; exit codes as in a shell."""
    raise_on_terminate()
    try:
        yield
    except (EvaluationError, DataError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; what is finished is kept. Resume with --out {run_dir}", err=True)
        sys.exit(130)
    except Terminated:
        sys.exit(143)
