"""The command lines of the trainings; an installed package has them as `research-train`.

    python -m research.training musique --steps 2
    python -m research.training rqr --hardware gpu --tasks train.parquet --dry-run

In a checkout, recipes/train_musique.sh and recipes/train_rqr.sh also set up the environment. All work is done
by separate commands (run/plan.py), run in order; nothing that was started outlives the run.
"""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click import IntRange, option

from research.training.run.command_line import run_recipe
from research.training.run.hardware import gpu_memory
from research.values import is_text, is_url
from retriever_server.indexes import KINDS

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
Decorator = Callable[[Any], Any]


class AcceptedText(click.ParamType):
    """A text that a function accepts; for others it raises ValueError."""

    def __init__(self, name: str, accept: Callable[[str], object]) -> None:
        self.name, self.accept = name, accept

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            self.accept(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        return str(value)


def _accept_name(value: str) -> None:
    if not is_text(value):
        raise ValueError("is empty")


def _accept_url(value: str) -> None:
    if not is_url(value):
        raise ValueError("is no address like http://127.0.0.1:8000")


FILE_TYPE, NAME_TYPE = click.Path(path_type=Path), AcceptedText("text", _accept_name)
URL_TYPE, ARGUMENTS_TYPE = AcceptedText("url", _accept_url), AcceptedText("text", shlex.split)


def _file(name: str, *variable: str, text: str) -> Decorator:
    return option(name, *variable, type=FILE_TYPE, help=text)


def _model(name: str, text: str) -> Decorator:
    return option(name, type=NAME_TYPE, metavar="NAME|DIR", help=text)


def _number(name: str, numbers: IntRange, default: int, text: str) -> Decorator:
    return option(name, type=numbers, default=default, show_default=True, help=text)


def _options(*options: Decorator) -> Decorator:
    """Options in the order in which --help shows them."""

    def decorate(function: Any) -> Any:
        for each in reversed(options):
            function = each(function)
        return function

    return decorate


POLICY_OPTIONS = (
    option(
        "--hardware",
        type=click.Choice(["cpu", "gpu"]),
        default=lambda: "gpu" if gpu_memory() else "cpu",
        help="Profile. [what this machine has]",
    ),
    _model("--model", "Policy to train: any HF causal LM. [Qwen2.5-7B-Instruct | tiny]"),
)


def _run_options(recipe: str, steps: str) -> tuple[Decorator, ...]:
    """The options about the run itself. `steps`: how many there are by default."""
    folder = f"Run folder; a run with a checkpoint resumes. [runs/train_{recipe}-TIME]"
    export = "Only write the checkpoint that research.keep names as RUN_DIR/policy."
    return (
        option("--steps", type=IntRange(1), help=f"GRPO steps. [{steps}]"),
        _file("--run-dir", text=folder),
        option("--resume", is_flag=True, help="Resume the run of --run-dir, or the newest one."),
        option("--export", "only_export", is_flag=True, help=export),
        _number("--seed", IntRange(0, 2**31 - 1), 42, "Of the world, the data order, the sampling."),
    )


def _machine_options(index: str) -> tuple[Decorator, ...]:
    """The options about machines and servers, and the overrides. `index`: the default kind."""
    kind = f"Kind of the index, of {', '.join(KINDS)}. [{index}]"
    build = "Further options of `retriever_server build`: '--index-option M=48 --device cuda'."
    serve = "Further options of `retriever_server serve`: '--threads 4 --index-device auto'."
    url = "A retrieval server that is already running; without it, one is started."
    host = "Address that the started one binds."
    return (
        option("--index", metavar="KIND", type=NAME_TYPE, help=kind),
        option("--build-args", type=ARGUMENTS_TYPE, default="", help=build),
        option("--serve-args", type=ARGUMENTS_TYPE, default="", help=serve),
        option("--gpus", type=IntRange(1), help="GPUs per node. [all]"),
        _number("--nodes", IntRange(1), 1, "More than 1: joins a Ray cluster."),
        option("--retriever-url", type=URL_TYPE, help=url),
        option("--retriever-host", type=NAME_TYPE, default="127.0.0.1", show_default=True, help=host),
        option("--retriever-port", type=IntRange(0, 65535), default=0, help="Its port. [a free one]"),
        option("--dry-run", is_flag=True, help="Print the configuration and every command; run nothing."),
        click.argument("overrides", nargs=-1),
    )


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Train language models to search with GRPO on veRL: search agents (musique), query reasoners (rqr)."""
    os.environ["PYTHONSAFEPATH"] = "1"  # for the commands of a run: the user's folders hide no package


@main.command(context_settings=CONTEXT)
@_options(
    *POLICY_OPTIONS,
    _file(
        "--questions",
        text="Training questions: FlashRAG's form, the official files of MuSiQue, HotpotQA and 2Wiki, or "
        "Search-R1's parquet. [MuSiQue | mini world]",
    ),
    _file("--validation", text="Questions that draw the curve; without it, some of --questions."),
    _file(
        "--test",
        text="Questions asked only before and after training; without it and --validation, some of "
        "--questions. [MuSiQue | mini world]",
    ),
    _file(
        "--corpus",
        text='Passages, JSONL {"id","contents"}, or BEIR\'s; .gz too. [Wikipedia 2018 | mini world]',
    ),
    _file("--faiss-index", text="FAISS index of the corpus made elsewhere, adopted after a check."),
    _model("--encoder", "sentence-transformers model. [intfloat/e5-base-v2 | minilm]"),
    *_run_options("musique", steps="2 epochs | 40"),
    _number("--passages", IntRange(600), 20000, "Of the mini world."),
    _number("--test-questions", IntRange(1), 500, "Of the mini world, per hop count."),
    option(
        "--supervised-control",
        is_flag=True,
        help="Afterwards also train on clean demonstrations, for as long, and add that to the table.",
    ),
    *_machine_options(index="flat"),
)
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


@main.command(context_settings=CONTEXT)
@_options(
    *POLICY_OPTIONS,
    _file(
        "--tasks",
        "questions",
        text="Rewriting tasks to train on (datasets/rewriting_tasks.py). "
        "[cache/rqr/train.parquet | mini world]",
    ),
    _file("--validation", text="Tasks that draw the curve; without it, some of --tasks."),
    _file(
        "--test",
        text="Tasks used only before and after training; without it and --validation, some of --tasks. "
        "[none | mini world]",
    ),
    _file(
        "--corpus",
        text='Passages that gold_ids name, JSONL {"id","contents"}. [the tasks\' positives | mini world]',
    ),
    _model(
        "--encoder",
        "sentence-transformers model of embedding_gain, and of a dense index. "
        "[BAAI/bge-base-en-v1.5 | the mini world's, or minilm]",
    ),
    *_run_options("rqr", steps="150 | 40"),
    *_machine_options(index="bm25"),
)
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


if __name__ == "__main__":
    main()
