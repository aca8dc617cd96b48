"""Evaluation questions by name, in FlashRAG's files on the hub.

    python -m research.datasets.flashrag --out DIR --datasets hotpotqa,bamboogle

Writes DIR/NAME.questions.jsonl, in this project's form (research/datasets/questions.py).
"""

from pathlib import Path
from typing import NamedTuple

import click

from research.datasets.hub import download
from research.datasets.questions import hop_counts, read_questions, write_questions
from research.errors import DataError

REPO = "RUC-NLPIR/FlashRAG_datasets"


class QuestionSet(NamedTuple):
    """A file on the hub, and how many questions the published set has."""

    file: str
    questions: int


# The four of ReSearch, then the others of the Search-R1 papers' seven.
SETS = {
    "hotpotqa": QuestionSet("hotpotqa/dev.jsonl", 7_405),
    "2wiki": QuestionSet("2wikimultihopqa/dev.jsonl", 12_576),
    "musique": QuestionSet("musique/dev.jsonl", 2_417),
    "bamboogle": QuestionSet("bamboogle/test.jsonl", 125),
    "nq": QuestionSet("nq/test.jsonl", 3_610),
    "triviaqa": QuestionSet("triviaqa/test.jsonl", 11_313),
    "popqa": QuestionSet("popqa/test.jsonl", 14_267),
}


def prepare(name: str, folder: Path, revision: str | None = None) -> Path:
    """The question file of the set `name`, fetched if it is not there. Raises DataError."""
    target = folder / f"{name}.questions.jsonl"
    if target.exists():
        return target
    questions = read_questions(download(REPO, [SETS[name].file], folder / f"{name}.hub.jsonl", revision))
    if len(questions) != SETS[name].questions:
        warning = (
            f"WARNING: {name}: {len(questions):,} questions; the published set has {SETS[name].questions:,}."
        )
        click.secho(warning, fg="red", bold=True, err=True)
    write_questions(target, questions)
    click.echo(f"{target}: {len(questions):,} questions ({hop_counts(questions)})", err=True)
    return target


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--datasets", default=",".join(SETS), show_default=True, help="Names, with commas between.")
@click.option("--revision", help="Branch, tag or commit of the hub's dataset.  [default: main]")
def main(out: Path, datasets: str, revision: str | None) -> None:
    """Fetch question sets for evaluation.

    Example: python -m research.datasets.flashrag --out cache/flashrag --datasets hotpotqa,bamboogle
    """
    names = datasets.split(",")
    if unknown := [name for name in names if name not in SETS]:
        raise click.BadParameter(f"no set is called {', '.join(unknown)}; there are: {', '.join(SETS)}")
    try:
        for name in names:
            prepare(name, out, revision)
    except DataError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
