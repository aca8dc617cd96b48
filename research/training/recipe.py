"""The recipe behind `bash recipes/train_musique.sh`: prepare, build the index, serve it, train, evaluate,
export.

    bash recipes/train_musique.sh --steps 2
    bash recipes/train_musique.sh --hardware gpu --dry-run

Every piece of work is a command of its own (research/training/run/plan.py), run in order; nothing that was
started outlives it.
"""

from typing import Any

import click

from research.training.run.command_line import (
    CONTEXT,
    FILE,
    NAME,
    hardware_option,
    machine_options,
    run_options,
    run_recipe,
)


@click.command(context_settings=CONTEXT)
@hardware_option
@click.option(
    "--model",
    type=NAME,
    metavar="NAME|DIR",
    help="Policy to train: any HF causal LM. [Qwen2.5-7B-Instruct | tiny]",
)
@click.option(
    "--questions",
    type=FILE,
    help="Training questions: FlashRAG's form, the official files of MuSiQue, HotpotQA and 2Wiki, or "
    "Search-R1's parquet. [MuSiQue | mini world]",
)
@click.option("--validation", type=FILE, help="Questions that draw the curve; without, some of --questions.")
@click.option(
    "--test",
    type=FILE,
    help="Questions asked before and after training only; without, and without --validation, some of "
    "--questions are split off. [MuSiQue | mini world]",
)
@click.option(
    "--corpus",
    type=FILE,
    help='Passages, JSONL {"id","contents"}, or BEIR\'s; .gz too. [Wikipedia 2018 | mini world]',
)
@click.option(
    "--faiss-index", type=FILE, help="FAISS index of the corpus made elsewhere, adopted after a check."
)
@click.option(
    "--encoder",
    type=NAME,
    metavar="NAME|DIR",
    help="sentence-transformers model. [intfloat/e5-base-v2 | minilm]",
)
@run_options("musique", steps="2 epochs | 40")
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
@machine_options(index="flat")
@click.pass_context
def main(context: click.Context, resume: bool, only_export: bool, dry_run: bool, **values: Any) -> None:
    """Train a search agent with GRPO on veRL: prepare data, build and serve the index, train, evaluate,
    export.

    OVERRIDES are key=value words of the configuration in research/config, for example
    research.reward=f1_format or actor_rollout_ref.rollout.n=8. Unknown keys are errors.

    \b
    Examples:
      bash recipes/train_musique.sh
      bash recipes/train_musique.sh --questions my.questions.jsonl --corpus my.corpus.jsonl --steps 50
      bash recipes/train_musique.sh --resume
    """
    run_recipe(context, "musique", resume, only_export, dry_run, values)


if __name__ == "__main__":
    main()
