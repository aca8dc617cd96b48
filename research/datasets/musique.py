"""MuSiQue, questions that take 2 to 4 passages to answer: training and validation questions.

    python -m research.datasets.musique --out DIR    from the hub (FlashRAG's form)
    python -m research.datasets.musique --out DIR --train train.jsonl --dev dev.jsonl   from files of yours

Writes DIR/train.questions.jsonl, all training questions, and DIR/validation.questions.jsonl and
DIR/test.questions.jsonl, two draws from the dev questions that share none, all in this project's form
(research/datasets/questions.py); the recipe makes its rows from them.
"""

from pathlib import Path

import click

from research.datasets.hub import download
from research.datasets.questions import Question, hop_counts, read_questions, split_questions, write_questions

REPO = "RUC-NLPIR/FlashRAG_datasets"
# Answerable questions of the published sets.
FULL_TRAIN, FULL_DEV = 19_938, 2_417


def fetch(split: str, folder: Path, revision: str | None = None) -> Path:
    """Download the question file of `split` ("train" or "dev") into `folder`. Raises DataError."""
    return download(REPO, [f"musique/{split}.jsonl"], folder / f"{split}.jsonl", revision)


def warn_unless_full(path: Path, questions: list[Question], full: int) -> None:
    """Say loudly that the hub's file is not the set that published results were made with."""
    if len(questions) != full:
        warning = f"WARNING: {path} holds {len(questions):,} questions; the full MuSiQue file holds {full:,}."
        click.secho(warning, fg="red", bold=True, err=True)


def prepare(
    train: list[Question], dev: list[Question], out: Path, validation: int, test: int, seed: int
) -> None:
    """Write the files into `out`, with `validation` and at most `test` questions of `dev` drawn by `seed`.

    Raises DataError: `dev` holds fewer than `validation` questions.
    """
    rest, drawn = split_questions(dev, validation, seed)
    _, asked = split_questions(rest, min(test, len(rest)), seed)
    for split, questions in (("train", train), ("validation", drawn), ("test", asked)):
        if not questions:
            continue  # the validation took all
        path = out / f"{split}.questions.jsonl"
        write_questions(path, questions)
        click.echo(f"{path}: {len(questions)} questions ({hop_counts(questions)})")


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--train", type=click.Path(path_type=Path), help="Question file instead of the hub's.")
@click.option("--dev", type=click.Path(path_type=Path), help="Question file instead of the hub's.")
@click.option("--validation", default=100, show_default=True, metavar="N", help="Dev questions to draw.")
@click.option("--test", default=500, show_default=True, metavar="N", help="Others of them, at most.")
@click.option("--seed", default=42, show_default=True, help="Seed of these draws.")
@click.option("--revision", help="Branch, tag or commit of the hub's dataset.  [default: main]")
def main(
    out: Path,
    train: Path | None,
    dev: Path | None,
    validation: int,
    test: int,
    seed: int,
    revision: str | None,
) -> None:
    """Make MuSiQue's training, validation and test question files.

    Example: python -m research.datasets.musique --out data/musique
    """
    if (train is None) != (dev is None):
        raise click.UsageError("--train and --dev go together.")
    train_file = train or fetch("train", out / "raw", revision)
    dev_file = dev or fetch("dev", out / "raw", revision)
    train_set, dev_set = read_questions(train_file), read_questions(dev_file)
    if train is None:
        warn_unless_full(train_file, train_set, FULL_TRAIN)
        warn_unless_full(dev_file, dev_set, FULL_DEV)
    prepare(train_set, dev_set, out, validation, test, seed)


if __name__ == "__main__":
    main()
