"""Command line: `python -m research.evaluation.bright run|score --help`."""

from pathlib import Path
from typing import Any

import click

from research.evaluation import command_line as cli
from research.evaluation.bright.config import MODES, compose_bright
from research.evaluation.bright.fusion import FUSIONS


@click.group(context_settings=cli.SETTINGS)
def main() -> None:
    """How well BRIGHT's questions retrieve: nDCG@10 and recall, by task and on average.

    \b
    Examples:
      python -m research.evaluation.bright run --queries original --tasks biology,pony
      python -m research.evaluation.bright run --model runs/mine/policy --retriever bm25 --samples 4
      python -m research.evaluation.bright run --queries texts.jsonl --mode concatenate --weight 3
      python -m research.evaluation.bright score biology.trec --qrels biology.examples.jsonl
    """


@main.command("run")
@click.option("--queries", metavar="original|FILE", help='The questions, or rows {"id", "query"}.')
@click.option(
    "--model", "engine__model", metavar="DIR|NAME|URL", help="Or a model's texts: for vLLM, or a server."
)
@click.option("--retriever", "retriever__kind", help="bm25, bm25_query_weighted, dense:ENCODER, hybrid.")
@click.option("--tasks", type=cli.NAMES, metavar="A,B", help="Names of tasks.  [default: all 12]")
@click.option("--data", type=cli.FOLDER, help="Folder with files of tasks.  [default: from the hub]")
@click.option("--long", is_flag=True, default=None, help="Whole pages instead of passages.")
@click.option("--field", help="For --queries FILE: the field with the text, or the list of texts.")
@click.option("--allow-missing", is_flag=True, default=None, help="Questions without a text count as 0.")
@click.option("--mode", type=click.Choice(MODES), help="How a text is used.  [default: replace]")
@click.option("--weight", type=click.IntRange(1), help="Weight of the question beside a text.  [default: 1]")
@click.option("--fusion", type=click.Choice(FUSIONS), help="How several lists become one.  [default: sum]")
@click.option(
    "--samples", "rewriting__samples", type=click.IntRange(1), help="Texts per question.  [default: 1]"
)
@click.option("--prompt", "rewriting__prompt", help="Name or file.  [default: the model's run's, else rqr]")
@click.option("--tokenizer", "engine__tokenizer", help="Folder or name, if not the model's.")
@click.option(
    "--out", type=cli.PATH, help="Folder; one that was begun is resumed.  [default: runs/bright-TIME]"
)
@click.argument("overrides", nargs=-1)
def run_bright(out: Path | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Search, and write rewrites.jsonl, runs/TASK.trec, scores.jsonl and metrics.json into a folder.

    OVERRIDES are key=value pairs of research/config/eval_bright.yaml, for example sampling.temperature=0.
    """
    from research.evaluation.bright.run import evaluate_bright

    with cli.run_folder(out, "bright") as run_dir:
        config = compose_bright([*cli.as_overrides(options), *overrides], options["engine__model"])
        click.echo(evaluate_bright(config, run_dir))
        click.echo(f"\n{run_dir}: metrics.json  scores.jsonl  runs/")


@main.command("score")
@click.argument("run_file", type=cli.FILE)
@click.option(
    "--qrels", type=cli.FILE, required=True, help="Judgements in TREC's form, or questions with gold ids."
)
@click.option("--task", help="The questions of this task, if the file has several.")
@click.option("--long", is_flag=True, help="By the gold ids of the long form.")
def score_file(run_file: Path, qrels: Path, task: str | None, long: bool) -> None:
    """Score a run file in TREC's form; questions that are missing there are named."""
    from research.evaluation.bright.score import score_run

    click.echo(score_run(run_file, qrels, task, long))


if __name__ == "__main__":
    main()
