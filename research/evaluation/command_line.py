"""What the command lines of the evaluations share: types, options as overrides, and how they end."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from research.evaluation.outputs.folder import own_folder
from research.overrides import quoted
from research.places import RUNS
from research.processes import Terminated, raise_on_terminate
from research.tools.service import Service
from retriever_server.indexes import KINDS, index_class

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
PATH = click.Path(path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class NameList(click.ParamType):
    """Names or files between commas; an existing file may have commas in its name."""

    name = "a,b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """See click."""
        parts, names = str(value).split(","), list[str]()
        while parts:
            heads = (",".join(parts[:count]) for count in range(len(parts), 0, -1))
            names.append(next((head for head in heads if os.path.isfile(head)), parts[0]))
            parts = parts[names[-1].count(",") + 1 :]
        return names


NAMES = NameList()


def as_overrides(options: Mapping[str, Any]) -> list[str]:
    """The given options as key=value overrides; the option `judge__model` sets the key judge.model."""
    given = {name: value for name, value in options.items() if value is not None}
    return [f"{name.replace('__', '.')}={quoted(value)}" for name, value in given.items()]


def service_of(
    corpus: Path | None, encoder: str | None, index: str | None, trained: Mapping[str, Any]
) -> Service | None:
    """What to serve: as in the training, unless told otherwise. UsageError for options without effect."""
    if corpus is None:
        if given := [name for name, value in (("--encoder", encoder), ("--index", index)) if value]:
            raise click.UsageError(f"{', '.join(given)}: only for an index of --corpus")
        return None
    if index is None and trained:
        click.echo(f"index: {trained['index']}, as in the training of the policy", err=True)
    index = index or trained.get("index", "flat")
    if encoder and index in KINDS and not index_class(index).dense:
        raise click.UsageError(f"--encoder: an index of kind {index} has none; choose another --index")
    return Service(corpus, encoder or trained.get("encoder") or "minilm", index)


@contextmanager
def run_folder(out: Path | None, kind: str) -> Iterator[Path]:
    """The folder of an evaluation, given or named after its `kind` and the time.

    Errors in it end in one line, ctrl-C in one that says how to resume; exit codes are as in a shell.
    """
    run_dir = out or RUNS / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    raise_on_terminate()
    try:
        own_folder(run_dir)
        yield run_dir
    except OSError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; what is finished is kept. Resume with --out {run_dir}", err=True)
        sys.exit(130)
    except Terminated:
        sys.exit(143)
