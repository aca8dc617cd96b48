"""MuSiQue, questions that take 2 to 4 passages to answer: training, validation and test questions.

    python -m research.datasets.musique --out DIR    from the hub (FlashRAG's form)
    python -m research.datasets.musique --out DIR --train train.jsonl --dev dev.jsonl   from your own files

Writes DIR/train.questions.jsonl, all training questions, and DIR/validation.questions.jsonl and
DIR/test.questions.jsonl, two disjoint draws from the dev questions, all in this project's form
(research/datasets/questions.py); the recipe turns them into training rows.
"""

from pathlib import Path

import click

from research.datasets.flashrag import SETS, QuestionSet, fetch
from research.datasets.questions import held_out, hop_counts, read_questions, write_questions

TRAIN, DEV = QuestionSet("musique/train.jsonl", 19_938), SETS["musique"]


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--train", type=click.Path(path_type=Path), help="Question file instead of the hub's.")
@click.option("--dev", type=click.Path(path_type=Path), help="Question file instead of the hub's.")
@click.option("--validation", default=100, show_default=True, metavar="N", help="Dev questions to draw.")
@click.option("--test", default=500, show_default=True, metavar="N", help="Others to draw, at most.")
@click.option("--seed", default=42, show_default=True, help="Seed of these draws.")
@click.option("--revision", help="Branch, tag or commit of the hub's dataset.  [default: a pinned commit]")
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
    training = read_questions(train) if train else fetch(TRAIN, out / "raw" / "train.jsonl", revision)
    rest = read_questions(dev) if dev else fetch(DEV, out / "raw" / "dev.jsonl", revision)
    validating, testing = held_out(rest, validation, test, seed)
    for split, questions in (("train", training), ("validation", validating), ("test", testing)):
        if questions:  # --validation may take all of dev
            path = out / f"{split}.questions.jsonl"
            write_questions(path, questions)
            click.echo(f"{path}: {len(questions)} questions ({hop_counts(questions)})")


if __name__ == "__main__":
    main()
