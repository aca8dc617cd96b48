"""NQ and HotpotQA, the training questions of Search-R1, from the hub (FlashRAG's form).

    python -m research.datasets.nq_hotpotqa --out DIR

Writes DIR/train.questions.jsonl, both training sets, and DIR/validation.questions.jsonl and
DIR/test.questions.jsonl, two disjoint draws from NQ's test and HotpotQA's dev questions, equally many of
each.
"""

from dataclasses import replace
from pathlib import Path

import click

from research.datasets.flashrag import SETS, QuestionSet, fetch
from research.datasets.questions import Question, held_out, hop_counts, write_questions

TRAIN = {"nq": QuestionSet("nq/train.jsonl", 79_168), "hotpotqa": QuestionSet("hotpotqa/train.jsonl", 90_447)}


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--validation", default=100, show_default=True, metavar="N", help="Of each set, to draw.")
@click.option("--test", default=500, show_default=True, metavar="N", help="Others of each set, to draw.")
@click.option("--seed", default=42, show_default=True, help="Seed of these draws.")
@click.option("--revision", help="Branch, tag or commit of the hub's dataset.  [default: a pinned commit]")
def main(out: Path, validation: int, test: int, seed: int, revision: str | None) -> None:
    """Make Search-R1's training, validation and test question files.

    Example: python -m research.datasets.nq_hotpotqa --out cache/nq_hotpotqa
    """
    splits: dict[str, list[Question]] = {"train": [], "validation": [], "test": []}
    for name, published in TRAIN.items():
        splits["train"] += _named(name, fetch(published, out / "raw" / f"{name}.train.jsonl", revision))
        others = _named(name, fetch(SETS[name], out / "raw" / f"{name}.held_out.jsonl", revision))
        validating, testing = held_out(others, validation, test, seed)
        splits["validation"] += validating
        splits["test"] += testing
    for split, questions in splits.items():
        path = out / f"{split}.questions.jsonl"
        write_questions(path, questions)
        click.echo(f"{path}: {len(questions):,} questions ({hop_counts(questions)})")


def _named(name: str, questions: list[Question]) -> list[Question]:
    """Rename the questions: both sets count from train_0, and samples are grouped by id."""
    return [replace(each, id=f"{name}_{each.id}") for each in questions]


if __name__ == "__main__":
    main()
