"""The command lines of the trainings; an installed package has them as `research-train`.

    python -m research.training musique --steps 2
    python -m research.training rqr --hardware gpu --tasks train.parquet --dry-run
    python -m research.training cold-start --help

In a checkout, recipes/train_musique.sh and recipes/train_rqr.sh also set up the environment. All work is done
by separate commands (run/plan.py), run in order; nothing that was started outlives the run.
"""

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import click
from click.core import ParameterSource

from research.places import RUNS
from research.processes import Terminated
from research.training.cold_start.commands import cold_start
from research.training.run.execute import execute, show
from research.training.run.export import export
from research.training.run.hub import push, push_policy
from research.training.run.options import CORPUS_WORDS, RecipeOptions, RunFailed, gpu_memory
from research.training.run.plan import make_plan
from research.training.run.sources import RECIPES
from research.training.run_files import DamagedFile, latest_checkpoint, read_recipe

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
SWITCHES = {
    "resume": "Resume the run of --run-dir, or the newest one.",
    "export": "Only write the checkpoint that research.keep names as RUN_DIR/policy.",
    "dry_run": "Print the configuration and every command; run nothing.",
}
# What may change when a run resumes; everything else belongs to what is being trained.
FREE_ON_RESUME = {"run_dir", "steps", "nodes", "gpus", "supervised_control", "track", "push_to_hub"}
FREE_ON_RESUME |= {"gpu_memory", "serve_args", "retriever_url", "retriever_host", "retriever_port"}


def parameters(recipe: str) -> list[click.Parameter]:
    """The options of a recipe's command line, and the overrides."""
    hints = get_type_hints(RecipeOptions, include_extras=True)
    options = {name: hint.__metadata__ for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    options |= {name: (click.BOOL, text) for name, text in SWITCHES.items()}
    found = [_option(recipe, name, *texts) for name, texts in options.items() if recipe != "rqr" or texts[-1]]
    return [*found, click.Argument(["overrides"], nargs=-1)]


def _option(recipe: str, name: str, kind: Any, *texts: str) -> click.Option:
    text = texts[-1 if recipe == "rqr" else 0].replace("RECIPE", recipe)
    for words in RECIPES[recipe].help_words:
        text = text.replace(*words)
    default = getattr(RecipeOptions, name, None)  # of those without one the recipe chooses
    return click.Option(
        [RECIPES[recipe].questions_option if name == "questions" else f"--{name.replace('_', '-')}", name],
        type=kind,
        is_flag=kind is click.BOOL,
        multiple=isinstance(default, tuple),
        default=default,
        show_default=bool(default) and "[" not in text,
        help=text,
    )


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Train language models with GRPO on veRL: search agents (musique, search_r1), query reasoners (rqr)."""
    os.environ["PYTHONSAFEPATH"] = "1"  # for a run's commands: the user's folders must not hide a package


@main.command(context_settings=CONTEXT, params=parameters("musique"))
@click.pass_context
def musique(context: click.Context, **values: Any) -> None:
    """Train a search agent with GRPO on veRL.

    Prepares data, builds and serves the index, trains, evaluates, exports. OVERRIDES are key=value pairs of
    the configuration in research/config, for example research.reward=f1_format or
    actor_rollout_ref.rollout.n=8. Unknown keys are errors.

    \b
    Examples:
      bash recipes/train_musique.sh
      bash recipes/train_musique.sh --questions my.questions.jsonl --corpus my.corpus.jsonl --steps 50
      bash recipes/train_musique.sh --resume
    """
    run_recipe(context, values)


@main.command("search_r1", context_settings=CONTEXT, params=parameters("search_r1"))
@click.pass_context
def search_r1(context: click.Context, **values: Any) -> None:
    """Train a search agent as Search-R1 did, with GRPO on veRL.

    Its protocol, reward and hyper-parameters of v0.3, on NQ and HotpotQA; on a CPU in the mini world.
    OVERRIDES are key=value pairs of the configuration in research/config. Unknown keys are errors.

    \b
    Examples:
      bash recipes/train_search_r1.sh
      bash recipes/train_search_r1.sh --hardware gpu --model Qwen/Qwen2.5-7B --dry-run
    """
    run_recipe(context, values)


@main.command(context_settings=CONTEXT, params=parameters("rqr"))
@click.pass_context
def rqr(context: click.Context, **values: Any) -> None:
    """Train a query reasoner (TongSearch-QR) with GRPO on veRL.

    It rewrites a hard question into a text that retrieves well, and is rewarded by what the text finds.
    OVERRIDES are key=value pairs of the configuration in research/config, for example
    research.reward=embedding_gain or research.rewriting.length_penalty=0.001. Unknown keys are errors.

    \b
    Examples:
      bash recipes/train_rqr.sh
      bash recipes/train_rqr.sh --tasks my.tasks.jsonl --corpus my.corpus.jsonl --steps 50
      bash recipes/train_rqr.sh 'research.reward={retrieval_gain: 1.0, embedding_gain: 0.1}'
      bash recipes/train_rqr.sh --resume
    """
    run_recipe(context, values)


main.add_command(cold_start)
main.add_command(push)


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
            if options.push_to_hub and "push_to_hub" in explicit:
                push_policy(options.run_dir, options.push_to_hub)
        else:
            (show if dry_run else execute)(make_plan(options))
    except OSError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        context.exit(130)
    except Terminated:
        context.exit(143)


def resolve_options(values: dict[str, Any], explicit: set[str], resume: bool) -> RecipeOptions:
    """The options of a new run, or those saved with a resumed run, updated by the `explicit` ones.

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
    words = [word for word in CORPUS_WORDS if not word.is_file()]
    paths = {
        name: value if name == "corpus" and value in words else value.absolute()
        for name, value in values.items()
        if isinstance(value, Path)
    }
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
    newest = next((path for path in runs if _recipe_of(path) == recipe), None)
    if newest is None:
        raise RunFailed(f"there is no run of train_{recipe} in {RUNS} to resume; name one with --run-dir")
    return newest.parent


def _recipe_of(path: Path) -> Any:
    """The recipe of a recipe.json; None if it cannot be read."""
    try:
        return read_recipe(path).get("recipe")
    except DamagedFile:
        return None


def _resumed(saved: RecipeOptions, options: RecipeOptions, explicit: set[str]) -> RecipeOptions:
    """The saved options, with those that may change and are explicit."""
    run_dir = options.run_dir
    if saved.recipe != options.recipe:
        raise RunFailed(f"{run_dir} is a run of recipes/train_{saved.recipe}.sh; resume it with that one")
    given = {name: getattr(options, name) for name in sorted(explicit)} | {"run_dir": run_dir}
    for name, value in given.items():
        before = getattr(saved, name)
        if name not in FREE_ON_RESUME and _same_place(value) != _same_place(before):
            raise RunFailed(
                f"{run_dir} was started {_as_given(name, before)}, not {_as_given(name, value)}; choose "
                "another --run-dir for another run"
            )
    return replace(saved, **given)


def _same_place(value: Any) -> Any:
    """A path however it is spelt; overrides in any order."""
    if isinstance(value, tuple):
        return sorted(value)
    return os.path.abspath(value) if isinstance(value, Path | str) and os.path.isabs(value) else value


def _as_given(name: str, value: Any) -> str:
    """How an option was given, or that it was not."""
    option = "overrides" if name == "overrides" else f"--{name.replace('_', '-')}"
    text = " ".join(value) if isinstance(value, tuple) else value
    return f"without {option}" if text in (None, "") else f"with {option} {text}"


if __name__ == "__main__":
    main()
