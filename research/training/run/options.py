"""The recipes' command line as an object, and the commands that a run is made of."""

import hashlib
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from research.places import PACKAGE

# Environment variable with the retrieval server's token: of the recipe's server, its checks, and all clients.
TOKEN = "RETRIEVER_TOKEN"
FILES = ("questions", "validation", "test", "corpus", "faiss_index")  # options that name a file


class OptionsError(ValueError):
    """A recipe.json cannot be read; the message names it, and is for the user."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is no recipe.json of this version ({why}); start another --run-dir")


def read_saved(path: Path) -> dict[str, Any]:
    """The values of a recipe.json, of any version. Raises OptionsError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OptionsError(path, f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise OptionsError(path, "not an object")
    return values


@dataclass(frozen=True)
class Options:
    """The recipe's command line; saved as ``recipe.json`` in the run folder. None: by the hardware
    profile.
    """

    hardware: str
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

    def save(self, path: Path) -> None:
        """Write as JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        path.write_text(json.dumps(values, default=str, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Options":
        """The inverse of :meth:`save`. Raises OptionsError for a file that is not of this version."""
        values = read_saved(path)
        kinds = get_type_hints(cls) | {"overrides": tuple}
        try:
            for name in ("run_dir", *FILES):
                values[name] = Path(values[name]) if values.get(name) else None
            values["overrides"] = tuple(map(str, values["overrides"]))
            options = cls(**values)
        except (KeyError, TypeError) as error:
            raise OptionsError(path, str(error).replace("Options.__init__() ", "")) from error
        for name, value in values.items():
            if not isinstance(value, kinds[name]):
                raise OptionsError(path, f"{name} is {value!r}")
        if options.hardware not in ("cpu", "gpu"):
            raise OptionsError(path, f"hardware is {options.hardware!r}")
        return options


@dataclass(frozen=True)
class Command:
    """One process of the recipe. If ``creates`` exists, the command has been run and is skipped."""

    what: str
    argv: list[str]
    creates: Path | None = None


def module_command(what: str, module: str, *arguments: Any, creates: Path | None = None) -> Command:
    """The command that runs a Python module of ours."""
    return Command(what, [sys.executable, "-m", module, *map(str, arguments)], creates)


def key_of(*parts: Any) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


def generators() -> list[str]:
    """Digests of the code that generates worlds, for their keys."""
    paths = sorted((PACKAGE / "datasets").glob("mini*/*.py"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
