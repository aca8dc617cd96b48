"""The recipes' command line as an object, the commands that a run consists of, and the error that ends it."""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import ConfigDict, TypeAdapter

from research.places import PACKAGE
from research.training.run_files import foreign_recipe, read_recipe
from research.validation import checked


class RunFailed(click.ClickException):
    """The run cannot start or continue; the message, for the user, is one line."""


@dataclass(frozen=True)
class RecipeOptions:
    """The recipe's command line, saved as ``recipe.json`` in the run folder. None: by the hardware."""

    hardware: Literal["cpu", "gpu"]
    run_dir: Path
    recipe: str = "musique"
    model: str | None = None
    questions: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    corpus: Path | None = None
    faiss_index: Path | None = None
    encoder: str | None = None
    index: str | None = None
    build_args: str = ""
    serve_args: str = ""
    retriever_url: str | None = None
    retriever_host: str = "127.0.0.1"
    retriever_port: int = 0
    steps: int | None = None
    nodes: int = 1
    gpus: int | None = None
    seed: int = 42
    passages: int = 20000
    test_questions: int = 500
    supervised_control: bool = False
    overrides: tuple[str, ...] = ()

    __pydantic_config__ = ConfigDict(extra="forbid")

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), default=str, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "RecipeOptions":
        """The inverse of :meth:`save`. Raises DamagedFile for a file that is not of this version."""
        values = read_recipe(path)
        try:
            return checked(TypeAdapter(cls), values)
        except ValueError as error:
            raise foreign_recipe(path, str(error)) from error


@dataclass(frozen=True)
class Command:
    """One process of the recipe, which does a task. If ``creates`` exists, it is done already."""

    task: str
    argv: list[str]
    creates: Path | None = None


def module_command(task: str, module: str, *arguments: Any, creates: Path | None = None) -> Command:
    """The command that runs a Python module of ours."""
    return Command(task, [sys.executable, "-m", module, *map(str, arguments)], creates)


def cache_key(*parts: Any) -> str:
    """A name for what is made from these parts, the same in each process."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


def generators() -> list[str]:
    """Digests of the code that generates worlds, for their keys."""
    paths = sorted((PACKAGE / "datasets").glob("mini*/*.py"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
