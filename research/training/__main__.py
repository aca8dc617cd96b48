"""The command lines of the trainings; an installed package has them as `research-train`.

    python -m research.training musique --steps 2
    python -m research.training rqr --hardware gpu --tasks train.parquet --dry-run

In a checkout, recipes/train_musique.sh and recipes/train_rqr.sh also set up the environment. All work is done
by separate commands (run/plan.py), run in order; nothing that was started outlives the run.
"""

import os
from typing import Any, get_type_hints

import click

from research.training.run.command_line import run_recipe
from research.training.run.options import RecipeOptions
from research.training.run.sources import RECIPES
from retriever_server.indexes import KINDS

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
TYPES = get_type_hints(RecipeOptions, include_extras=True)
KIND_TEXT = f"Kind of the index, of {', '.join(KINDS)}."
# (a field of RecipeOptions or a switch, its help) in the order of --help. Where there are two, they are
# those of musique and rqr; the latter lacks the empty ones. In brackets what holds without the option.
OPTIONS: tuple[tuple[str, ...], ...] = (
    ("hardware", "Profile. [what this machine has]"),
    ("model", "Policy to train: any HF causal LM. [Qwen2.5-7B-Instruct | tiny]"),
    (
        "questions",
        "Training questions: FlashRAG's form, the official files of MuSiQue, HotpotQA and 2Wiki, or "
        "Search-R1's parquet. [MuSiQue | mini world]",
        "Rewriting tasks to train on (datasets/rewriting_tasks.py). [cache/rqr/train.parquet | mini world]",
    ),
    (
        "validation",
        "Questions that draw the curve; without it, some of --questions.",
        "Tasks that draw the curve; without it, some of --tasks.",
    ),
    (
        "test",
        "Questions asked only before and after training; without it and --validation, some of --questions. "
        "[MuSiQue | mini world]",
        "Tasks used only before and after training; without it and --validation, some of --tasks. "
        "[none | mini world]",
    ),
    (
        "corpus",
        'Passages, JSONL {"id","contents"}, or BEIR\'s; .gz too. [Wikipedia 2018 | mini world]',
        'Passages that gold_ids name, JSONL {"id","contents"}. [the tasks\' positives | mini world]',
    ),
    ("faiss_index", "FAISS index of the corpus made elsewhere, adopted after a check.", ""),
    (
        "encoder",
        "sentence-transformers model. [intfloat/e5-base-v2 | minilm]",
        "sentence-transformers model of embedding_gain, and of a dense index. "
        "[BAAI/bge-base-en-v1.5 | the mini world's, or minilm]",
    ),
    ("steps", "GRPO steps. [2 epochs | 40]", "GRPO steps. [150 | 40]"),
    (
        "run_dir",
        "Run folder; a run with a checkpoint resumes. [runs/train_musique-TIME]",
        "Run folder; a run with a checkpoint resumes. [runs/train_rqr-TIME]",
    ),
    ("resume", "Resume the run of --run-dir, or the newest one."),
    ("export", "Only write the checkpoint that research.keep names as RUN_DIR/policy."),
    ("seed", "Of the world, the data order, the sampling."),
    ("passages", "Of the mini world.", ""),
    ("test_questions", "Of the mini world, per hop count.", ""),
    (
        "supervised_control",
        "Afterwards also train on clean demonstrations, for as long, and add that to the table.",
        "",
    ),
    ("index", f"{KIND_TEXT} [flat]", f"{KIND_TEXT} [bm25]"),
    ("build_args", "Further options of `retriever_server build`: '--index-option M=48 --device cuda'."),
    ("serve_args", "Further options of `retriever_server serve`: '--threads 4 --index-device auto'."),
    ("gpus", "GPUs per node. [all]"),
    ("nodes", "More than 1: joins a Ray cluster."),
    ("retriever_url", "A retrieval server that is already running; without it, one is started."),
    ("retriever_host", "Address that the started one binds."),
    ("retriever_port", "Its port. [a free one]"),
    ("dry_run", "Print the configuration and every command; run nothing."),
)


def parameters(recipe: str) -> list[click.Parameter]:
    """The options and arguments of a recipe's command line."""
    texts = {name: helps[-1 if recipe == "rqr" else 0] for name, *helps in OPTIONS}
    options = [_option(name, text, recipe) for name, text in texts.items() if text]
    return [*options, click.Argument(["overrides"], nargs=-1)]


def _option(name: str, text: str, recipe: str) -> click.Option:
    kind = TYPES[name].__metadata__[0] if name in TYPES else click.BOOL
    default = getattr(RecipeOptions, name, None)  # of those without one the recipe chooses
    return click.Option(
        [RECIPES[recipe].questions_option if name == "questions" else f"--{name.replace('_', '-')}", name],
        type=kind,
        is_flag=kind is click.BOOL,
        default=default,
        show_default=bool(default) and "[" not in text,
        help=text,
    )


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Train language models to search with GRPO on veRL: search agents (musique), query reasoners (rqr)."""
    os.environ["PYTHONSAFEPATH"] = "1"  # for the commands of a run: the user's folders hide no package


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


if __name__ == "__main__":
    main()
