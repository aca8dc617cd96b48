"""Part the training questions: some for the cold start, some for validation, the others for GRPO.

    python -m research.training cold-start split --questions train.questions.jsonl --out DIR --comparisons 400

On questions whose answers it was shown a policy is right at once, and nothing is left to learn. So no
question is in two parts. Comparisons are made of the facts of those for GRPO alone.
"""

from collections.abc import Sequence
from pathlib import Path

import click

from research.datasets.question_forms import Question
from research.datasets.questions import hop_counts, read_questions, split_questions, write_questions
from research.errors import DataError
from research.files import filling
from research.training.cold_start.comparisons import comparisons_of
from research.training.cold_start.hops import hops_of

MOST, SHARE = 600, 0.5
DEMONSTRATED, VALIDATION, REST = (
    f"{part}.questions.jsonl" for part in ("demonstrated", "validation", "rest")
)


def parts_of(
    asked: Sequence[Question],
    file: Path,
    most: int = MOST,
    share: float = SHARE,
    validation: int = 0,
    comparisons: int = 0,
    seed: int = 42,
) -> tuple[list[Question], list[Question], list[Question]]:
    """(questions for the cold start, for validation, for GRPO); the arguments are those of the command.

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
    names = {each.id for each in drawn}
    others = [each for each in asked if each.id not in names]
    rest, validating = split_questions(others, min(validation, len(others) // 4), seed)
    if not drawn or not rest or (validation and not validating):
        raise DataError(
            f"{file}: {len(asked)} questions, {len(fit)} of them with a decomposition, are too few for a "
            "cold start, validation and training"
        )
    made = comparisons_of(rest, comparisons, seed)
    if comparisons and not made:
        raise DataError(
            f"{file}: nothing to compare: it has no two dates or countries among 2Wiki's evidences"
        )
    return drawn, validating, rest + made


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--questions", required=True, type=click.Path(path_type=Path), help="With decompositions.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--most", default=MOST, type=click.IntRange(1), help="Questions for the cold start, at most.")
@click.option("--share", default=SHARE, type=click.FloatRange(0, 1), help="And this share of those that fit.")
@click.option("--validation", default=0, type=click.IntRange(0), help="Of the others, at most a quarter.")
@click.option("--comparisons", default=0, type=click.IntRange(0), help="Made of facts, added to the others.")
@click.option("--seed", default=42, help="Of the draw.")
def split(
    questions: Path, out: Path, most: int, share: float, validation: int, comparisons: int, seed: int
) -> None:
    """Write DIR/demonstrated.questions.jsonl, DIR/validation.questions.jsonl and DIR/rest.questions.jsonl."""
    asked = read_questions(questions)
    drawn, validating, rest = parts_of(asked, questions, most, share, validation, comparisons, seed)
    with filling(out) as scratch:
        for name, part in zip((DEMONSTRATED, VALIDATION, REST), (drawn, validating, rest), strict=True):
            write_questions(scratch / name, part)
    click.echo(
        f"{out}: {len(drawn)} questions for the cold start, {len(validating)} for validation, "
        f"{len(rest)} for GRPO ({hop_counts(rest)})"
    )
