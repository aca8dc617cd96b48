"""The cold start of the tiny rewriting policy: a Qwen2 model trained on imperfect demonstrations, for RL.

Plain torch on a CPU, about a minute on two cores; saves an ordinary Hugging Face folder. Its prompt is the
question alone, its answer the rewritten query in plain words:

    python -m research.datasets.mini_rewriting.policy --out DIR --seed 0

Model and training are those of mini/policy.py. The tokenizer keeps a lay wording, a root and the ending of a
school as one token each, so that rewriting is to look up a root for a token and to choose an ending. It is
the same whatever the seed; the policy serves worlds of all seeds.
"""

import re
from itertools import islice
from pathlib import Path

import click
from transformers import Qwen2Tokenizer

from research.datasets.mini.policy import Size, Training, check_options, make_policy
from research.datasets.mini.tokenizer import tokenizer_of
from research.datasets.mini_rewriting.demonstrations import CLEAN, FAULTS, SINGLE, rewriting_demonstrations
from research.datasets.mini_rewriting.language import FIELDS, QUESTIONS, SCHOOLS, concepts
from research.values import Number

DEFAULT_STEPS = 500
SIZE = Size(hidden=128, layers=2, feed_forward=256)
# What has to be learnt is a dictionary, which is stored in the embeddings: these learn fast.
ADAM_RATE = 1e-2
SINGLE_CONCEPTS = 0.3  # of the training, at its beginning


def single_tokens() -> list[str]:
    """Texts of one token: scenes, the words between a question's concepts, wordings, roots and endings."""
    patterns = "{x}".join(text for texts in QUESTIONS.values() for text in texts)
    parts = re.split(r" ?\{\w\}", patterns)
    groups = [scene + "," for field in FIELDS for scene in field.scenes]
    groups += [f" {part.strip()}" for part in parts if " " in part.strip()]
    names = [f" {name}" for concept in concepts() for name in (*concept.wordings, concept.root)]
    return [*dict.fromkeys(groups), *names, *SCHOOLS]


def rewriting_tokenizer() -> Qwen2Tokenizer:
    """The same tokenizer at every call."""
    shown = islice(rewriting_demonstrations(seed=0, sizes=(1, 2, 3)), 1000)
    texts = (text for each in shown for text in (f"user\n{each.question}", "assistant\n"))
    return tokenizer_of(texts, single_tokens())


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder.")
@click.option("--seed", default=0, show_default=True, help="Same seed and steps, same weights.")
@click.option("--steps", type=click.IntRange(1), help=f"Training steps.  [default: {DEFAULT_STEPS}]")
@click.option("--seconds", type=Number(0, min_open=True), help="Train by the clock instead.")
@click.option("--clean", is_flag=True, help="Demonstrations without faults: a supervised baseline for RL.")
def main(out: Path, seed: int, steps: int | None, seconds: float | None, clean: bool) -> None:
    """Train the tiny rewriting policy from scratch and save it as a Hugging Face folder.

    Example: python -m research.datasets.mini_rewriting.policy --out cache/rewriting_policy
    """
    check_options(out, steps, seconds)
    first = rewriting_demonstrations(seed, CLEAN if clean else SINGLE, (1,))
    then = rewriting_demonstrations(seed, CLEAN if clean else FAULTS, (2, 3))
    stages = ((SINGLE_CONCEPTS, first), (1.0, then))
    training = Training(stages, seed, steps or DEFAULT_STEPS, seconds, ADAM_RATE)
    make_policy(out, rewriting_tokenizer(), SIZE, training)


if __name__ == "__main__":
    main()
