"""The recipe behind `bash recipes/train_rqr.sh`: as research/training/recipe.py, for query reasoners.

bash recipes/train_rqr.sh --steps 2
bash recipes/train_rqr.sh --hardware gpu --tasks train.parquet --dry-run
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
    "--tasks",
    "questions",
    type=FILE,
    help="Rewriting tasks to train on (datasets/rewriting_tasks.py). [cache/rqr/train.parquet | mini world]",
)
@click.option("--validation", type=FILE, help="Tasks that draw the curve; without, some of --tasks.")
@click.option(
    "--test",
    type=FILE,
    help="Tasks asked before and after training only; without, and without --validation, some of --tasks are "
    "split off. [none | mini world]",
)
@click.option(
    "--corpus",
    type=FILE,
    help='Passages that gold_ids name, JSONL {"id","contents"}. [the tasks\' positives | mini world]',
)
@click.option(
    "--encoder",
    type=NAME,
    metavar="NAME|DIR",
    help="sentence-transformers model of embedding_gain, and of a dense index. "
    "[BAAI/bge-base-en-v1.5 | the mini world's, or minilm]",
)
@run_options("rqr", steps="150 | 40")
@machine_options(index="bm25")
@click.pass_context
def main(context: click.Context, resume: bool, only_export: bool, dry_run: bool, **values: Any) -> None:
    """Train a query reasoner (TongSearch-QR) with GRPO on veRL: a policy that rewrites a hard question into a
    text that retrieves well, rewarded by what the text brings.

    OVERRIDES are key=value words of the configuration in research/config, for example
    research.reward=embedding_gain or research.rewriting.length_penalty=0.001. Unknown keys are errors.

    \b
    Examples:
      bash recipes/train_rqr.sh
      bash recipes/train_rqr.sh --tasks my.tasks.jsonl --corpus my.corpus.jsonl --steps 50
      bash recipes/train_rqr.sh 'research.reward={retrieval_gain: 1.0, embedding_gain: 0.1}'
      bash recipes/train_rqr.sh --resume
    """
    run_recipe(context, "rqr", resume, only_export, dry_run, values)


if __name__ == "__main__":
    main()
