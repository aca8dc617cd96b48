"""The examples of docs/extending.md train for a real step of GRPO; that of an environment does in
test_installed.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from stack import ROOT, RecipeRun

from research.datasets.questions import read_questions
from research.training.run_files import read_trajectories, trajectory_path

EXAMPLES = ROOT / "examples"
ONE_STEP = ("--steps", "1", "trainer.val_before_train=false", "trainer.save_freq=-1", "--index", "bm25")


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


@pytest.mark.launch
def test_data_reward_and_tool_of_ones_own(policy: str, tmp_path: Path) -> None:
    mine = '{exact_match: 1.0, "few_searches:score": {weight: 0.2, most: 6}}'
    words = [f"research.reward={mine}", 'research.tools={search: {}, "calculator:calculate": {digits: 6}}']
    words += [f"research.prompt={EXAMPLES / 'your_tool/calculator.txt'}"]
    trained = train(policy, tmp_path, *convert(tmp_path / "handbook"), *words)
    assert all("calculate_calls" in each.metrics for each in trained)
    assert all("few_searches:score" in each.reward_reason for each in trained)


@pytest.mark.launch
def test_fact_verification_on_the_mini_world(policy: str, tmp_path: Path) -> None:
    world = tmp_path / "world"
    sizes = ("--passages", "600", "--train", "8", "--validation", "2", "--test", "2")
    module = [sys.executable, "-m", "research.datasets.mini.claims", "--out", world, *sizes]
    subprocess.run(module, check=True, cwd=ROOT)
    files = {"--questions": "train.claims", "--validation": "validation.claims", "--corpus": "corpus"}
    words = [word for name, file in files.items() for word in (name, str(world / f"{file}.jsonl"))]
    trained = train(policy, tmp_path, *words, "research.environment=fact_verification")
    assert {each.metadata["data_source"] for each in trained} <= {
        "train_supported",
        "train_refuted",
        "train_not_enough_info",
    }


def train(policy: str, folder: Path, *words: str) -> list:
    """The trajectories of one step, started from a folder that holds the examples."""
    with RecipeRun(folder / "run", "--model", policy, *ONE_STEP, *words) as run:
        assert run.wait() == 0, run.text()
        run.assert_nothing_left()
        assert list(run.step_rows()) == [1]
    return list(read_trajectories(trajectory_path(folder / "run", 1, "train")))
