"""An environment of your own: multiple choice, from a CSV file, answered by a letter.

cd examples/your_environment
bash ../../recipes/train_musique.sh research.environment=multiple_choice:MultipleChoice \\
    research.prompt=multiple_choice.txt --questions choices.csv --corpus choices.corpus.jsonl
"""

import csv
from dataclasses import replace
from pathlib import Path

from research.datasets.questions import Question
from research.environments.question_answering import HEADLINE, Environment
from research.episode.protocol import extract_answer
from research.episode.trajectory import Trajectory
from research.errors import DataError
from research.rewards import Reference

COLUMNS = {"question", "A", "B", "C", "right"}


class MultipleChoice(Environment):
    """Question answering over rows of a CSV file: question, A, B, C, right."""

    headline = replace(HEADLINE, label="accuracy", title="Accuracy on held-out questions")

    def questions(self, path: Path) -> list[Question]:
        """One question a row. Raises DataError for a file of other columns."""
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not rows[0].keys() >= COLUMNS:
            raise DataError(f"{path}: the columns must be {', '.join(sorted(COLUMNS))}")
        return [self.question(number, row) for number, row in enumerate(rows)]

    def question(self, number: int, row: dict[str, str]) -> Question:
        """The choices are part of the text; the right letter is the answer."""
        choices = "\n".join(f"{letter}: {row[letter]}" for letter in "ABC")
        return Question(str(number), f"{row['question']}\n{choices}", (row["right"],))

    def measure(self, trajectory: Trajectory, reference: Reference) -> dict[str, float]:
        """Also whether the answer is a letter at all."""
        answer = extract_answer(trajectory.model_turns, reference.protocol) or ""
        letter = float(answer.strip().upper() in ("A", "B", "C"))
        return {**super().measure(trajectory, reference), "is_letter": letter}
