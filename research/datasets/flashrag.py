"""Evaluation questions by name, from FlashRAG's files on the hub.

    python -m research.datasets.flashrag --out DIR --datasets hotpotqa,bamboogle

Writes DIR/NAME.questions.jsonl, in this project's form (research/datasets/questions.py).
"""

from pathlib import Path
from typing import NamedTuple

import click

from research.datasets.hub import download
from research.datasets.questions import Question, hop_counts, read_questions, write_questions
from research.errors import warn

REPO = "RUC-NLPIR/FlashRAG_datasets"


class QuestionSet(NamedTuple):
    """A file on the hub, and how many questions the published set has."""

    file: str
    questions: int


# ReSearch's four, then the others of the seven in the Search-R1 papers.
SETS = {
    "hotpotqa": QuestionSet("hotpotqa/dev.jsonl", 7_405),
    "2wiki": QuestionSet("2wikimultihopqa/dev.jsonl", 12_576),
    "musique": QuestionSet("musique/dev.jsonl", 2_417),
    "bamboogle": QuestionSet("bamboogle/test.jsonl", 125),
    "nq": QuestionSet("nq/test.jsonl", 3_610),
    "triviaqa": QuestionSet("triviaqa/test.jsonl", 11_313),
    "popqa": QuestionSet("popqa/test.jsonl", 14_267),
}


def fetch(published: QuestionSet, target: Path, revision: str | None = None) -> list[Question]:
    """The questions of a file, downloaded to `target`; warns if some are missing. Raises DataError."""
    questions = read_questions(download(REPO, [published.file], target, revision))
    if len(questions) != published.questions:
        warn(f"{target}: {len(questions):,} questions; the published set has {published.questions:,}.")
    return questions


def question_set(name: str, folder: Path, revision: str | None = None) -> Path:
    """The question file of the set `name`, fetched if it is not there. Raises DataError."""
    target = folder / f"{name}.questions.jsonl"
    if not target.exists():
        questions = fetch(SETS[name], folder / f"{name}.hub.jsonl", revision)
        write_questions(target, questions)
        click.echo(f"{target}: {len(questions):,} questions ({hop_counts(questions)})", err=True)
    return target


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--datasets", default=",".join(SETS), show_default=True, help="Names, separated by commas.")
@click.option("--revision", help="Branch, tag or commit of the hub's dataset.  [default: a pinned commit]")
def main(out: Path, datasets: str, revision: str | None) -> None:
    """Fetch question sets for evaluation.

    Example: python -m research.datasets.flashrag --out cache/flashrag --datasets hotpotqa,bamboogle
    """
    names = datasets.split(",")
    if unknown := [name for name in names if name not in SETS]:
        raise click.BadParameter(f"no set is called {', '.join(unknown)}; there are: {', '.join(SETS)}")
    for name in names:
        question_set(name, out, revision)


if __name__ == "__main__":
    main()
