"""The table of questions of docs/extending.md, with which test_rehearsal.py trains; the other examples train
in test_installed.py.
"""

import subprocess
import sys
from pathlib import Path

from stack import ROOT

from research.datasets.questions import read_questions

EXAMPLES = ROOT / "examples"


def convert(folder: Path) -> list[str]:
    """The words by which a recipe takes the converted table."""
    command = [sys.executable, EXAMPLES / "your_data/convert.py", EXAMPLES / "your_data/handbook.csv"]
    subprocess.run([*command, "--out", folder], check=True)
    return ["--questions", str(folder / "questions.jsonl"), "--corpus", str(folder / "corpus.jsonl")]


def test_the_table_becomes_questions(tmp_path: Path) -> None:
    convert(tmp_path)
    questions = read_questions(tmp_path / "questions.jsonl")
    assert len(questions) == 8 and questions[0].golden_answers == ("30 days",)
    assert questions[3].supporting_ids == ["p3"]
