"""Questions for a small policy: MuSiQue from the hub with its own paragraphs, or else the mini world's.

    python -m research.training cold-start questions --out DIR

Writes DIR/{train,validation,test}.questions.jsonl and DIR/corpus.jsonl.
"""

from pathlib import Path

import click

from research.datasets.flashrag import fetch
from research.datasets.mini.world import build_world
from research.datasets.musique import DEV, TRAIN
from research.datasets.questions import Question, held_out, write_questions
from research.errors import DataError, warn
from research.files import filling, require_new
from research.places import CACHE
from research.training.cold_start.corpus import write_corpus

RAW = CACHE / "musique" / "raw"
VALIDATION, TEST = 60, 200
PASSAGES, TRAINING = 6000, 1800  # of the mini world


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--seed", default=42, help="Seed of the draw.")
def questions(out: Path, seed: int) -> None:
    """Fetch MuSiQue, 60 of its dev questions for validation and 200 for the test, and its gold paragraphs.

    Without a network, the mini world's questions are used instead, in its own words.
    """
    require_new(out)
    with filling(out) as scratch:
        try:
            splits = _musique(scratch, seed)
        except DataError as error:
            warn(f"MuSiQue cannot be had ({error.format_message()}): training on the mini world's questions")
            splits = _mini_world(scratch, seed)
    click.echo(f"{out}: " + ", ".join(f"{split} {len(each):,}" for split, each in splits.items()))


def _musique(folder: Path, seed: int) -> dict[str, list[Question]]:
    """Raises DataError if it is not available."""
    train, dev = fetch(TRAIN, RAW / "train.jsonl"), fetch(DEV, RAW / "dev.jsonl")
    validation, test = held_out(dev, VALIDATION, TEST, seed)
    splits = {"train": train, "validation": validation, "test": test}
    for split, each in splits.items():
        write_questions(folder / f"{split}.questions.jsonl", each)
    write_corpus([RAW / "train.jsonl", RAW / "dev.jsonl"], folder / "corpus.jsonl")
    return splits


def _mini_world(folder: Path, seed: int) -> dict[str, list[Question]]:
    world = build_world(seed, PASSAGES, TRAINING, VALIDATION // 3, TEST // 3, (2, 3, 4))
    world.write(folder)
    return world.questions
