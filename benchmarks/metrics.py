"""How long the answer metrics take: `python -m benchmarks.metrics`. 100,000 pairs on one core, under 2 s.

The pairs are made: answers of one to eight words, predictions that equal them, hold them or miss them, one to
three golden answers each.
"""

import random
import time

from research.metrics.answers import score_answer

PAIRS = 100_000
WORDS = [
    "the",
    "river",
    "Old",
    "town,",
    "Mr.",
    "1984",
    "of",
    "University",
    "a",
    "bridge",
    "Saint-Denis's",
    "north",
    "king",
    "no",
    "yes",
    "Paris",
    "film",
]


def made_pairs(count: int) -> list[tuple[str, list[str]]]:
    """Predictions with their golden answers."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))

    pairs = []
    for _ in range(count):
        goldens = [text() for _ in range(draw.randint(1, 3))]
        prediction = draw.choice([goldens[0], f"It is {goldens[-1]}.", text()])
        pairs.append((prediction, goldens))
    return pairs


def main() -> None:
    """Print the seconds for all pairs."""
    pairs = made_pairs(PAIRS)
    began = time.process_time()
    scores = [score_answer(prediction, goldens) for prediction, goldens in pairs]
    seconds = time.process_time() - began
    means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    print(
        f"{PAIRS:,} pairs in {seconds:.2f} s; EM {means[0]:.3f}, F1 {means[1]:.3f}, contained {means[2]:.3f}"
    )


if __name__ == "__main__":
    main()
