"""Split the training questions: some for the cold start, validation and test, the others for GRPO.

    python -m research.training cold-start split --questions train.questions.jsonl --out DIR --comparisons 400

A policy is right at once on questions whose answers it was shown, which leaves nothing to learn. So no
question is in two parts. Comparisons are made only from facts of GRPO's questions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from research.datasets.question_forms import Question
from research.datasets.questions import (
    held_out,
    hop_counts,
    read_questions,
    split_questions,
    write_questions,
)
from research.errors import DataError
from research.files import filling, require_new
from research.metrics.answers import normalize_answer
from research.training.cold_start.comparisons import comparisons_of
from research.training.cold_start.hops import hops_of
from research.values import Number

MOST, SHARE = 600, 0.5
USES = ("the cold start", "validation", "the test", "GRPO")


class Parts(NamedTuple):
    """Questions for the cold start, for validation and test, and for GRPO; each has a file of its name."""

    demonstrated: list[Question]
    validation: list[Question]
    test: list[Question]
    rest: list[Question]

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """Where the parts are written, in order."""
        return [folder / f"{part}.questions.jsonl" for part in cls._fields]


def parts_of(
    asked: Sequence[Question],
    file: Path,
    most: int = MOST,
    share: float = SHARE,
    validation: int = 0,
    test: int = 0,
    comparisons: int = 0,
    seed: int = 42,
    held_out_elsewhere: Sequence[Question] = (),
) -> Parts:
    """The parts of the questions that were `asked`; the arguments are those of the command.

    Raises:
        DataError: a part would be empty, or there is nothing to compare; `file` is where they come from.
    """
    fit = [each for each in asked if hops_of(each)]
    if not fit:
        raise DataError(
            f"{file}: no question says how it is answered step by step: question_decomposition "
            "(MuSiQue), evidences (2Wiki) or supporting_facts (HotpotQA); without them there is no cold start"
        )
    _, drawn = split_questions(fit, min(most, int(share * len(fit))), seed)
    others = _without(drawn, asked)
    quarter = len(others) // 4
    validating, testing = held_out(others, min(validation, quarter), min(test, quarter), seed)
    testing = _without(validating, testing)
    rest = _without([*validating, *testing], others)
    if not drawn or not rest or (validation and not validating) or (test and not testing):
        raise DataError(
            f"{file}: {len(asked)} questions, {len(fit)} of them with a decomposition, are too few for a "
            f"cold start (at most a share of {share:.3g} of these), validation, test and training"
        )
    made = comparisons_of(rest, comparisons, seed, [*asked, *held_out_elsewhere])
    if comparisons and not made:
        raise DataError(
            f"{file}: nothing to compare: it has no two dates or countries among 2Wiki's evidences"
        )
    return Parts(drawn, validating, testing, rest + made)


def _without(taken: Sequence[Question], asked: Sequence[Question]) -> list[Question]:
    """Questions with other words: a file may have a question twice, under two ids."""
    texts = {normalize_answer(each.question) for each in taken}
    return [each for each in asked if normalize_answer(each.question) not in texts]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--questions", required=True, type=click.Path(path_type=Path), help="With decompositions.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--most", default=MOST, type=click.IntRange(1), help="Most questions for the cold start.")
@click.option(
    "--share",
    default=SHARE,
    type=Number(0, 1, min_open=True),
    help="Largest share of those with a decomposition.",
)
@click.option(
    "--validation",
    default=0,
    type=click.IntRange(0),
    help="Validation questions, at most a quarter of the rest.",
)
@click.option(
    "--test", default=0, type=click.IntRange(0), help="Test questions, at most a quarter of the rest."
)
@click.option(
    "--comparisons", default=0, type=click.IntRange(0), help="Questions made of facts, added for GRPO."
)
@click.option("--seed", default=42, help="Seed for drawing the parts.")
@click.option(
    "--held-out",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Questions that no comparison may repeat; may be given several times.",
)
def split(questions: Path, out: Path, held_out: tuple[Path, ...], **how: Any) -> None:
    """Write DIR/{demonstrated,validation,test,rest}.questions.jsonl: for cold start, curve, test and GRPO."""
    require_new(out)
    elsewhere = [each for file in held_out for each in read_questions(file)]
    parts = parts_of(read_questions(questions), questions, **how, held_out_elsewhere=elsewhere)
    with filling(out) as scratch:
        for file, part in zip(Parts.files(scratch), parts, strict=True):
            write_questions(file, part)
    counts = ", ".join(f"{len(part)} for {use}" for part, use in zip(parts, USES, strict=True) if part)
    click.echo(f"{out}: {counts} ({hop_counts(parts.rest)})")
