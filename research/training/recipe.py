"""The recipe behind `bash recipes/train_musique.sh`: prepare, build the index, serve it, train, evaluate,
export.

    bash recipes/train_musique.sh --steps 2
    bash recipes/train_musique.sh --hardware gpu --dry-run

Every piece of work is a command of its own (research/training/plan.py); this file runs them in order and sees
that nothing it started outlives it.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from research.processes import Terminated
from research.training.plan import ROOT, ConfigurationError, Options, make_plan
from research.training.run import RunFailed, execute, export, show
from research.training.run_files import latest_checkpoint

RUNS = ROOT / "runs"
# What may differ when a run goes on; everything else belongs to what is being trained.
FREE_ON_RESUME = {"run_dir", "steps", "nodes", "gpus", "supervised_control"}
FREE_ON_RESUME |= {"retriever_url", "retriever_host", "retriever_port"}
FILE = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--hardware", type=click.Choice(["cpu", "gpu"]), default="cpu", help="Profile; default: what is there."
)
@click.option(
    "--model", metavar="NAME|DIR", help="Policy to train: any HF causal LM. [Qwen2.5-7B-Instruct | tiny]"
)
@click.option(
    "--questions", type=FILE, help="Training questions (FlashRAG's form or MuSiQue's). [MuSiQue | mini world]"
)
@click.option(
    "--validation", type=FILE, help="Held-out questions; without, some of --questions are split off."
)
@click.option("--test", type=FILE, help="Questions asked before and after training only. [none | mini world]")
@click.option("--corpus", type=FILE, help='Passages, JSONL {"id","contents"}. [Wikipedia 2018 | mini world]')
@click.option(
    "--faiss-index", type=FILE, help="FAISS index of the corpus made elsewhere, adopted after a check."
)
@click.option(
    "--encoder", metavar="NAME|DIR", help="sentence-transformers model. [intfloat/e5-base-v2 | minilm]"
)
@click.option("--steps", type=click.IntRange(1), help="GRPO steps. [2 epochs | 60]")
@click.option(
    "--run-dir", type=FILE, help="Run folder; one with a checkpoint goes on. [runs/train_musique-TIME]"
)
@click.option("--resume", is_flag=True, help="Go on with --run-dir, or with the newest run.")
@click.option(
    "--export", "only_export", is_flag=True, help="Only write the newest checkpoint as RUN_DIR/policy."
)
@click.option(
    "--seed", type=int, default=42, show_default=True, help="Of the world, the data order, the sampling."
)
@click.option(
    "--passages", type=click.IntRange(600), default=20000, show_default=True, help="Of the mini world."
)
@click.option(
    "--test-questions",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Of the mini world, for each hop count.",
)
@click.option(
    "--supervised-control",
    is_flag=True,
    help="Afterwards also train on clean demonstrations, for as long, and put it into the table.",
)
@click.option("--gpus", type=click.IntRange(1), help="GPUs a node. [all]")
@click.option(
    "--nodes", type=click.IntRange(1), default=1, show_default=True, help="Over 1: joins a Ray cluster."
)
@click.option("--retriever-url", help="A retrieval server that is running; without, one is started.")
@click.option(
    "--retriever-host", default="127.0.0.1", show_default=True, help="Address the started one binds."
)
@click.option("--retriever-port", type=click.IntRange(0, 65535), default=0, help="Its port. [a free one]")
@click.option("--dry-run", is_flag=True, help="Print the configuration and every command; run nothing.")
@click.argument("overrides", nargs=-1)
@click.pass_context
def main(context: click.Context, resume: bool, only_export: bool, dry_run: bool, **values: Any) -> None:
    """Train a search agent with GRPO on veRL: prepare data, build and serve the index, train, evaluate,
    export.

    OVERRIDES are key=value words of the configuration in recipes/config, for example
    research.reward=f1_format or actor_rollout_ref.rollout.n=8. Unknown keys are errors.

    \b
    Examples:
      bash recipes/train_musique.sh
      bash recipes/train_musique.sh --questions my.questions.jsonl --corpus my.corpus.jsonl --steps 50
      bash recipes/train_musique.sh --resume
    """
    given = {name for name in values if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    try:
        options = resolve_options(values, given, resume or only_export)
        if dry_run:
            show(make_plan(options))
        elif only_export:
            export(options.run_dir)
        else:
            execute(make_plan(options))
    except (ConfigurationError, RunFailed, OSError) as error:
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
    run_dir = (values["run_dir"] or _default_run_dir(resume)).absolute()
    for name in ("questions", "validation", "test", "corpus", "faiss_index"):
        values[name] = values[name].absolute() if values[name] else None
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


def _default_run_dir(resume: bool) -> Path:
    if not resume:
        return RUNS / f"train_musique-{datetime.now():%Y%m%d-%H%M%S}"
    runs = sorted(RUNS.glob("*/recipe.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise RunFailed(f"there is no run in {RUNS} to go on with; name one with --run-dir")
    return runs[-1].parent


def _continued(saved: Options, asked: Options, given: set[str]) -> Options:
    """The saved options with those that may change and were given."""
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


if __name__ == "__main__":
    main()
