"""What the command lines of the recipes have in common: options, errors, and how a run goes on."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from research.places import RUNS
from research.processes import Terminated
from research.training.run.execute import RunFailed, execute, export, show
from research.training.run.hardware import gpu_memory
from research.training.run.options import FILES, Options, OptionsError
from research.training.run.plan import ConfigurationError, make_plan
from research.training.run.retriever_keeper import RetrieverFailed
from research.training.run_files import DamagedFile, latest_checkpoint
from research.values import is_url
from retriever_server.indexes import KINDS

# What may differ when a run goes on; everything else belongs to what is being trained.
FREE_ON_RESUME = {"run_dir", "steps", "nodes", "gpus", "supervised_control"}
FREE_ON_RESUME |= {"serve_args", "retriever_url", "retriever_host", "retriever_port"}
FILE = click.Path(path_type=Path)


class _Url(click.ParamType):
    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_url(value):
            self.fail(f"{value!r} is no address like http://127.0.0.1:8000", param, ctx)
        return str(value)


class _Name(click.ParamType):
    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("is empty", param, ctx)
        return str(value)


class _Words(click.ParamType):
    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            shlex.split(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        return str(value)


NAME = _Name()
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

Function = TypeVar("Function", bound=Callable[..., Any])


def hardware_option(function: Function) -> Function:
    """--hardware"""
    profiles = click.Choice(["cpu", "gpu"])
    option = click.option(
        "--hardware", type=profiles, default=_detected, help="Profile; default: what is there."
    )
    return option(function)


def _detected() -> str:
    return "gpu" if gpu_memory() else "cpu"


def run_options(recipe: str, steps: str) -> Callable[[Function], Function]:
    """The options about the run itself. `steps` says how many there are by default."""
    where = f"Run folder; one with a checkpoint goes on. [runs/train_{recipe}-TIME]"
    return _all_of(
        click.option("--steps", type=click.IntRange(1), help=f"GRPO steps. [{steps}]"),
        click.option("--run-dir", type=FILE, help=where),
        click.option("--resume", is_flag=True, help="Go on with --run-dir, or with the newest run."),
        click.option(
            "--export",
            "only_export",
            is_flag=True,
            help="Only write the checkpoint that research.keep names as RUN_DIR/policy.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**31 - 1),
            default=42,
            show_default=True,
            help="Of the world, the data order, the sampling.",
        ),
    )


def machine_options(index: str) -> Callable[[Function], Function]:
    """The options about machines and servers, and the overrides; `index` is the default kind."""
    return _all_of(*_index_options(index), *_server_options(), click.argument("overrides", nargs=-1))


def _index_options(index: str) -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "--index", metavar="KIND", type=NAME, help=f"Kind of the index, of {', '.join(KINDS)}. [{index}]"
        ),
        click.option(
            "--build-args",
            type=_Words(),
            default="",
            help="More options of `retriever_server build`: '--index-option M=48 --device cuda'.",
        ),
        click.option(
            "--serve-args",
            type=_Words(),
            default="",
            help="More options of `retriever_server serve`: '--threads 4 --index-device auto'.",
        ),
    ]


def _server_options() -> list[Callable[[Any], Any]]:
    return [
        click.option("--gpus", type=click.IntRange(1), help="GPUs a node. [all]"),
        click.option(
            "--nodes",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Over 1: joins a Ray cluster.",
        ),
        click.option(
            "--retriever-url",
            type=_Url(),
            help="A retrieval server that is running; without, one is started.",
        ),
        click.option(
            "--retriever-host",
            type=NAME,
            default="127.0.0.1",
            show_default=True,
            help="Address the started one binds.",
        ),
        click.option(
            "--retriever-port", type=click.IntRange(0, 65535), default=0, help="Its port. [a free one]"
        ),
        click.option(
            "--dry-run", is_flag=True, help="Print the configuration and every command; run nothing."
        ),
    ]


def _all_of(*options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """The options in the order in which --help shows them."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def run_recipe(
    context: click.Context,
    recipe: str,
    resume: bool,
    only_export: bool,
    dry_run: bool,
    values: dict[str, Any],
) -> None:
    """Do what the command line asks for; what goes wrong is one line and exit code 1."""
    given = {name for name in values if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    try:
        options = resolve_options({"recipe": recipe, **values}, given, resume or only_export)
        if dry_run:
            show(make_plan(options))
        elif only_export:
            export(options.run_dir)
        else:
            execute(make_plan(options))
    except (ConfigurationError, OptionsError, DamagedFile, RunFailed, RetrieverFailed, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        context.exit(130)
    except Terminated:
        context.exit(143)


def resolve_options(values: dict[str, Any], given: set[str], resume: bool) -> Options:
    """The options of a new run, or those saved with a run that goes on, updated by what was given.

    Raises:
        RunFailed: there is nothing to resume, the folder is no run folder, or an option contradicts the saved
        ones.
    """
    recipe = values.get("recipe", "musique")
    run_dir = (values["run_dir"] or _default_run_dir(recipe, resume)).absolute()
    for name in FILES:
        values[name] = values[name].absolute() if values.get(name) else None
    for name in ("model", "encoder"):  # a folder, from wherever the run is resumed
        if values.get(name) and values[name] != "minilm" and Path(values[name]).exists():
            values[name] = str(Path(values[name]).absolute())
    options = Options(**{**values, "run_dir": run_dir})
    if (run_dir / "recipe.json").exists():
        if latest_checkpoint(run_dir) is None and not resume:
            return options  # nothing was trained yet, so nothing ties the folder to its old options
        return _continued(Options.load(run_dir / "recipe.json"), options, given)
    if resume:
        raise RunFailed(f"{run_dir} is not a run folder: there is no recipe.json in it")
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise RunFailed(f"{run_dir} exists and is not a run folder; choose another --run-dir")
    return options


def _default_run_dir(recipe: str, resume: bool) -> Path:
    if not resume:
        return RUNS / f"train_{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    runs = sorted(RUNS.glob("*/recipe.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    newest = next((path for path in runs if Options.load(path).recipe == recipe), None)
    if newest is None:
        raise RunFailed(f"there is no run of train_{recipe} in {RUNS} to go on with; name one with --run-dir")
    return newest.parent


def _continued(saved: Options, asked: Options, given: set[str]) -> Options:
    """The saved options with those that may change and were given."""
    if saved.recipe != asked.recipe:
        raise RunFailed(
            f"{asked.run_dir} is a run of recipes/train_{saved.recipe}.sh; go on with it by that one"
        )
    changed = {field.name for field in fields(Options) if field.name in given and field.name != "run_dir"}
    for name in sorted(changed - FREE_ON_RESUME):
        if getattr(saved, name) != getattr(asked, name):
            raise RunFailed(
                f"{asked.run_dir} was started with {name}={_word(getattr(saved, name))}, not "
                f"{_word(getattr(asked, name))}; choose another --run-dir for another run"
            )
    updates = {name: getattr(asked, name) for name in changed & FREE_ON_RESUME}
    return replace(saved, run_dir=asked.run_dir, **updates)


def _word(value: Any) -> str:
    return " ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
