"""Part the training questions: some for the cold start, the others for reinforcement learning.

    python -m research.training cold-start split --questions train.questions.jsonl --out DIR

On questions whose answers it was shown a policy is right at once, and nothing is left to learn. So no
question of the one part is in the other.
"""

from pathlib import Path

import click

from research.datasets.questions import hop_counts, read_questions, split_questions, write_questions
from research.errors import DataError
from research.files import filling
from research.training.cold_start.hops import hops_of

DEMONSTRATED, REST = "demonstrated.questions.jsonl", "rest.questions.jsonl"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--questions", required=True, type=click.Path(path_type=Path), help="With decompositions.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--most", default=600, type=click.IntRange(1), help="Questions for the cold start, at most.")
@click.option("--share", default=0.75, type=click.FloatRange(0, 1), help="And this share of those that fit.")
@click.option("--seed", default=42, help="Of the draw.")
def split(questions: Path, out: Path, most: int, share: float, seed: int) -> None:
    """Write DIR/demonstrated.questions.jsonl and DIR/rest.questions.jsonl."""
    asked = read_questions(questions)
    fit = [each for each in asked if hops_of(each)]
    if not fit:
        raise DataError(
            f"{questions}: no question says how it is answered step by step: question_decomposition "
            "(MuSiQue), evidences (2Wiki) or supporting_facts (HotpotQA); without them there is no cold start"
        )
    _, drawn = split_questions(fit, min(most, int(share * len(fit))), seed)
    names = {each.id for each in drawn}
    rest = [each for each in asked if each.id not in names]
    with filling(out) as scratch:
        write_questions(scratch / DEMONSTRATED, drawn)
        write_questions(scratch / REST, rest)
    click.echo(f"{out}: {len(drawn)} questions for the cold start, {len(rest)} others ({hop_counts(rest)})")
