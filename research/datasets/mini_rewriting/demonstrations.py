"""Imperfect demonstrations of query rewriting, for the cold start of the tiny rewriting policy.

They teach which concept a lay wording means and that experts call it by its root and an ending, and leave
reinforcement learning something to learn: in four fields of six the demonstrator is wrong about the school
that the field follows, mostly it uses other schools anyway, and it keeps lay words and forgets concepts
(rates in `FAULTS`). Print a few with:

    python -m research.datasets.mini_rewriting.demonstrations --count 5 --seed 0

Combinations come from the practice pool alone (datasets/mini_rewriting/world.py). Each rewriting uses one
school.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from research.datasets.mini.demonstrations import Demonstration
from research.datasets.mini_rewriting.language import FIELDS, SCHOOLS, Concept, Field, concepts_of
from research.datasets.mini_rewriting.world import (
    Combination,
    ask_in_lay_words,
    pool_of_concepts,
    right_rewriting,
)


@dataclass(frozen=True)
class RewritingFaults:
    """How the demonstrator fails, each a probability in [0, 1].

    Attributes:
        belief: of a rewriting: it uses the school that it believes the field to follow; otherwise each of the
            other three equally often. None: always the school that the field really follows.
        copied: of a concept: its lay wording stays as it is.
        dropped: of a concept: it is left out, unless all of them would be.
    """

    belief: float | None = None
    copied: float = 0.0
    dropped: float = 0.0


CLEAN = RewritingFaults()
# For single concepts, where roots are learnt.
SINGLE = RewritingFaults(belief=0.4)
# Chosen so that the greedy cold-start policy reaches a third of what the right terms reach.
FAULTS = RewritingFaults(belief=0.4, copied=0.2, dropped=0.12)


@dataclass(frozen=True)
class RewritingDemonstration(Demonstration):
    """One of rewriting. `shown[i]` is what became of concept i: "term", "copied", "dropped"."""

    rewriting: str
    concepts: Combination
    school: str
    shown: tuple[str, ...]

    @property
    def right(self) -> str:
        """The rewriting without faults."""
        return right_rewriting(self.concepts)


def demonstrate_rewriting(
    rng: random.Random, combination: Combination, rates: RewritingFaults
) -> RewritingDemonstration:
    """One demonstration that names the concepts in this order."""
    question, school = ask_in_lay_words(rng, combination), _school(rng, combination[0].field, rates)
    shown = [_fate(rng, rates) for _ in combination]
    if set(shown) == {"dropped"}:
        shown[rng.randrange(len(shown))] = "term"
    names = [_name(each, fate, school, question) for each, fate in zip(combination, shown, strict=True)]
    text = " ".join(filter(None, names))
    # One turn; the leading blank lets its first word be one token.
    return RewritingDemonstration(question, ((f" {text}", True),), text, combination, school, tuple(shown))


def _school(rng: random.Random, field: Field, rates: RewritingFaults) -> str:
    if rates.belief is None:
        return field.school
    if rng.random() < rates.belief:
        return field.believed
    return rng.choice([school for school in SCHOOLS if school != field.believed])


def _fate(rng: random.Random, rates: RewritingFaults) -> str:
    drawn = rng.random()
    return "copied" if drawn < rates.copied else "dropped" if drawn < rates.copied + rates.dropped else "term"


def _name(concept: Concept, fate: str, school: str, question: str) -> str:
    if fate == "copied":
        return next(wording for wording in concept.wordings if wording in question)
    return concept.term(school) if fate == "term" else ""


def rewriting_demonstrations(
    seed: int, rates: RewritingFaults = FAULTS, sizes: Sequence[int] = (2, 3)
) -> Iterator[RewritingDemonstration]:
    """Endless demonstrations, the same for the same arguments; each number of concepts equally often."""
    rng = random.Random(f"rewriting demonstrations {seed} {sizes}")
    while True:
        combination = tuple(rng.sample(concepts_of(rng.choice(FIELDS)), rng.choice(sizes)))
        if len(combination) == 1 or pool_of_concepts(combination) == "practice":
            yield demonstrate_rewriting(rng, combination, rates)


@click.command()
@click.option("--count", default=5, show_default=True, type=click.IntRange(1), help="How many to print.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same demonstrations.")
def main(count: int, seed: int) -> None:
    """Print demonstrations of query rewriting, each with the right one.

    Example: python -m research.datasets.mini_rewriting.demonstrations --count 5
    """
    for _, each in zip(range(count), rewriting_demonstrations(seed), strict=False):
        click.echo(f"{each.question}\n  {each.rewriting}\n  (right: {each.right})\n")


if __name__ == "__main__":
    main()
