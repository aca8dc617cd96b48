"""How surely changed questions of BRIGHT are found again, and others are not; the table of
docs/query_reasoners_data.md.

    python -m benchmarks.bright_duplicates ../shared/data

Each of the real questions is changed as a post and BRIGHT's copy of it may differ, and looked up.
Bar: at the default of prepare_rqr, 0.3, at least 0.9 of every change, and at most 1% of other texts.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import click

from research.datasets.stack_exchange.near_duplicates import KnownTexts, jaccard

THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
DEFAULT, LEAST_FOUND, MOST_STRANGERS = 0.3, 0.9, 0.01
SITES = (
    *("biology", "earth_science", "economics", "psychology"),
    *("robotics", "stackoverflow", "sustainable_living"),
)
STRANGERS = ("musique", "hotpotqa", "2wiki")
PASSAGES = 3000
Change = Callable[[str], str]


class Changes:
    """Ways to change a text, with words and texts that others wrote."""

    def __init__(self, others: list[str], seed: int = 1) -> None:
        self._draw, self._others = random.Random(seed), others
        self._words = [word for text in others[:50] for word in text.split()]

    def edit(self, text: str, share: float) -> str:
        """A share of the words is left out, replaced, or followed by another one."""
        draw, edited = self._draw, []
        for word in text.split():
            other = draw.choice(self._words)
            changed = draw.choice(([], [other], [word, other])) if draw.random() < share else [word]
            edited += changed
        return " ".join(edited)

    def cut(self, text: str, share: float) -> str:
        """A stretch of the text."""
        words = text.split()
        length = max(int(len(words) * share), 1)
        start = self._draw.randrange(len(words) - length + 1)
        return " ".join(words[start : start + length])

    def foreign(self, length: int) -> str:
        """The first words of another text."""
        return " ".join(self._draw.choice(self._others).split()[:length])

    def all(self) -> dict[str, Change]:
        """Every change by name."""
        return {
            "10% of the words edited": lambda text: self.edit(text, 0.1),
            "20%": lambda text: self.edit(text, 0.2),
            "30%": lambda text: self.edit(text, 0.3),
            "a half kept": lambda text: self.cut(text, 0.5),
            "a quarter kept": lambda text: self.cut(text, 0.25),
            "300 words appended": lambda text: f"{text}\n{self.foreign(300)}",
            "body only": _body,
            "another title": lambda text: f"{self.foreign(10)}\n{_body(text)}",
            "10% edited, between 300 and 300": lambda text: " ".join(
                (self.foreign(300), self.edit(text, 0.1), self.foreign(300))
            ),
            "a half, 10% edited, 100 appended": lambda text: " ".join(
                (self.edit(self.cut(text, 0.5), 0.1), self.foreign(100))
            ),
        }


def _body(text: str) -> str:
    """Without the title, where what follows is long enough to be a question."""
    _, _, body = text.partition("\n")
    return body if len(body.split()) >= 8 else text


def _line(name: str, values: list[float]) -> str:
    shares = (sum(each >= bar for each in values) / len(values) for bar in THRESHOLDS)
    return f"{name:36}" + "".join(f"{share:8.3f}" for share in shares)


def overlaps(known: KnownTexts, texts: list[str]) -> list[float]:
    """The largest overlap of each text."""
    matches = [known.most_like(text) for text in texts]
    return [match.overlap if match else 0.0 for match in matches]


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


@click.command()
@click.argument("shared", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(shared: Path) -> None:
    """Measure on the real rows in the folder SHARED."""
    questions = {row["id"]: row["question"] for row in _rows(shared / "bright.questions.jsonl")}
    answers = [row["contents"] for row in _rows(shared / "bright_answers.corpus.jsonl")]
    known, failed = KnownTexts(questions), False
    bars = "".join(f"{bar:8}" for bar in THRESHOLDS)
    click.echo(f"{'found again, by overlap':36}{bars}   Jaccard 0.5")
    for name, change in Changes(answers).all().items():
        changed = {each: change(text) for each, text in questions.items()}
        found = overlaps(known, list(changed.values()))
        near = sum(jaccard(changed[each], questions[each]) >= 0.5 for each in questions) / len(questions)
        click.echo(f"{_line(name, found)}{near:10.3f}")
        failed |= sum(each >= DEFAULT for each in found) < LEAST_FOUND * len(found)
    others = {
        "questions of the sites, one another": _one_another(questions),
        "texts of other data sets": overlaps(known, _strangers(shared)),
    }
    for name, values in others.items():
        click.echo(_line(f"{name} ({len(values):,})", values))
        failed |= sum(each >= DEFAULT for each in values) > MOST_STRANGERS * len(values)
    sys.exit("the bar is missed" if failed else 0)


def _one_another(questions: dict[str, str]) -> list[float]:
    sites = [each for each in questions if each.startswith(SITES)]
    found = []
    for name in sites:
        rest = {each: questions[each] for each in sites if each != name}
        found += overlaps(KnownTexts(rest), [questions[name]])
    return found


def _strangers(shared: Path) -> list[str]:
    texts = []
    for name in STRANGERS:
        texts += [row["question"] for row in _rows(shared / f"{name}.questions.jsonl")]
        texts += [row["contents"] for row in _rows(shared / f"{name}.corpus.jsonl")[:PASSAGES]]
    return texts


if __name__ == "__main__":
    main()
