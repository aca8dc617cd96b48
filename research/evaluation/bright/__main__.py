"""Command line: `python -m research.evaluation.bright run|score --help`."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from research.errors import DataError
from research.evaluation.bright.config import MODES, compose_bright
from research.evaluation.bright.fusion import FUSIONS
from research.evaluation.command_line import ending_well
from research.evaluation.config import EvaluationError
from research.evaluation.outputs.folder import own_folder
from research.overrides import quoted
from research.places import RUNS

PATH = click.Path(path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
# Options of the command line that are keys of the configuration.
KEYS = {
    "model": "engine.model",
    "tokenizer": "engine.tokenizer",
    "queries": "queries",
    "field": "field",
    "retriever": "retriever.kind",
    "data": "data",
    "mode": "mode",
    "weight": "weight",
    "fusion": "fusion",
    "samples": "rewriting.samples",
    "prompt": "rewriting.prompt",
}
FLAGS = ("long", "allow_missing")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """How well the questions of BRIGHT are searched with: nDCG@10 and recall, by task and in the mean.

    \b
    Examples:
      python -m research.evaluation.bright run --queries original --tasks biology,pony
      python -m research.evaluation.bright run --model runs/mine/policy --retriever bm25 --samples 4
      python -m research.evaluation.bright run --queries texts.jsonl --mode concatenate --weight 3
      python -m research.evaluation.bright score biology.trec --qrels biology.examples.jsonl
    """


@main.command()
@click.option(
    "--queries", metavar="original|FILE", help='Search with the questions, or {"id", "query"} a line.'
)
@click.option("--model", metavar="DIR|NAME|URL", help="Or with what a model writes: vLLM here, or a server.")
@click.option(
    "--retriever", metavar="KIND", help="bm25, bm25_query_weighted (BRIGHT's), dense:ENCODER, hybrid."
)
@click.option("--tasks", metavar="A,B", help="Names of tasks.  [default: all 12]")
@click.option("--data", type=FOLDER, help="Folder with files of tasks.  [default: from the hub]")
@click.option("--long", is_flag=True, default=None, help="Whole pages in place of passages.")
@click.option("--field", help="Of --queries FILE: where the text, or the list of texts, stands.")
@click.option("--allow-missing", is_flag=True, default=None, help="Questions without a text count as 0.")
@click.option(
    "--mode", type=click.Choice(MODES), help="What a text does to the question.  [default: replace]"
)
@click.option("--weight", type=click.IntRange(1), help="Of the question, beside a text.  [default: 1]")
@click.option("--fusion", type=click.Choice(FUSIONS), help="Several lists to one.  [default: sum]")
@click.option("--samples", type=click.IntRange(1), help="Texts of the model a question.  [default: 1]")
@click.option("--prompt", help="A file of research/prompts.  [default: the model's run's, else rqr]")
@click.option("--tokenizer", help="Where it is, if neither with the model nor where the server says.")
@click.option("--out", type=PATH, help="Folder; one that is begun goes on.  [default: runs/bright-TIME]")
@click.argument("overrides", nargs=-1)
def run(out: Path | None, tasks: str | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Search, and write rewrites.jsonl, runs/TASK.trec, scores.jsonl and metrics.json into a folder.

    OVERRIDES are key=value words of research/config/eval_bright.yaml, for example sampling.temperature=0.
    """
    from research.evaluation.bright.run import run as evaluate

    run_dir = out or RUNS / f"bright-{datetime.now():%Y%m%d-%H%M%S}"
    with ending_well(run_dir):
        own_folder(run_dir)
        words = [f"{key}={quoted(options[name])}" for name, key in KEYS.items() if options[name] is not None]
        words += [f"{name}=true" for name in FLAGS if options[name]]
        words += [f"tasks={quoted(tasks.split(','))}"] if tasks else []
        config = compose_bright([*words, *overrides], options["model"])
        click.echo(evaluate(config, run_dir))
        click.echo(f"\n{run_dir}: metrics.json  scores.jsonl  runs/")


@main.command()
@click.argument("run_file", type=FILE)
@click.option(
    "--qrels", type=FILE, required=True, help="Judgements in TREC's form, or questions with gold ids."
)
@click.option("--task", help="The questions of this task, if the file has several.")
@click.option("--long", is_flag=True, help="By the gold ids of the long form.")
def score(run_file: Path, qrels: Path, task: str | None, long: bool) -> None:
    """Score a run file in TREC's form; questions that are missing there are named."""
    from research.evaluation.bright.score import score as scored

    try:
        click.echo(scored(run_file, qrels, task, long))
    except (EvaluationError, DataError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
