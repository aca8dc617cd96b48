"""From a recipe's command line to its options: of a new run, or the saved ones of a run that resumes."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from research.places import RUNS
from research.processes import Terminated
from research.training.run.execute import execute, export, show
from research.training.run.options import RecipeOptions, RunFailed, gpu_memory
from research.training.run.plan import make_plan
from research.training.run_files import latest_checkpoint

# What may change when a run resumes; everything else belongs to what is being trained.
FREE_ON_RESUME = {"run_dir", "steps", "nodes", "gpus", "supervised_control"}
FREE_ON_RESUME |= {"serve_args", "retriever_url", "retriever_host", "retriever_port"}


def run_recipe(context: click.Context, values: dict[str, Any]) -> None:
    """Do what the command line of a recipe says; an error is one line and exit code 1."""
    resume, only_export, dry_run = (values.pop(name) for name in ("resume", "export", "dry_run"))
    explicit = {name for name in values if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    values["recipe"] = context.command.name
    values["hardware"] = values["hardware"] or ("gpu" if gpu_memory() else "cpu")
    try:
        options = resolve_options(values, explicit, resume or only_export)
        if only_export and not dry_run:
            export(options.run_dir)
        else:
            (show if dry_run else execute)(make_plan(options))
    except OSError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        context.exit(130)
    except Terminated:
        context.exit(143)


def resolve_options(values: dict[str, Any], explicit: set[str], resume: bool) -> RecipeOptions:
    """The options of a new run, or those saved with a run that resumes, updated by the `explicit` ones.

    Raises:
        RunFailed: there is nothing to resume, the folder is no run folder, or an option contradicts the saved
        ones.
    """
    recipe = values.get("recipe", "musique")
    run_dir = (values["run_dir"] or _default_run_dir(recipe, resume)).absolute()
    # A folder of the user's is the same one from wherever the run is resumed; other names are on the hub.
    for name in ("model", "encoder"):
        if values.get(name) and values[name] != "minilm" and Path(values[name]).exists():
            values[name] = str(Path(values[name]).absolute())
    paths = {name: value.absolute() for name, value in values.items() if isinstance(value, Path)}
    options = RecipeOptions(**{**values, **paths, "run_dir": run_dir})
    if (run_dir / "recipe.json").exists():
        if latest_checkpoint(run_dir) is None and not resume:
            return options  # nothing was trained yet, so nothing ties the folder to its old options
        return _resumed(RecipeOptions.load(run_dir / "recipe.json"), options, explicit)
    if resume:
        raise RunFailed(f"{run_dir} is not a run folder: there is no recipe.json in it")
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise RunFailed(f"{run_dir} exists and is not a run folder; choose another --run-dir")
    return options


def _default_run_dir(recipe: str, resume: bool) -> Path:
    if not resume:
        return RUNS / f"train_{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    runs = sorted(RUNS.glob("*/recipe.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    newest = next((path for path in runs if RecipeOptions.load(path).recipe == recipe), None)
    if newest is None:
        raise RunFailed(f"there is no run of train_{recipe} in {RUNS} to resume; name one with --run-dir")
    return newest.parent


def _resumed(saved: RecipeOptions, options: RecipeOptions, explicit: set[str]) -> RecipeOptions:
    """The saved options, with those that may change and are explicit."""
    run_dir = options.run_dir
    if saved.recipe != options.recipe:
        raise RunFailed(f"{run_dir} is a run of recipes/train_{saved.recipe}.sh; resume it with that one")
    given = {name: getattr(options, name) for name in sorted(explicit)} | {"run_dir": run_dir}
    for name, value in given.items():
        before = getattr(saved, name)
        if name not in FREE_ON_RESUME and value != before:
            raise RunFailed(
                f"{run_dir} was started with {name}={_text(before)}, not {_text(value)}; choose another "
                "--run-dir for another run"
            )
    return replace(saved, **given)


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
