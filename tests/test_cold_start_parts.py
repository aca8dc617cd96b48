"""What the cold start takes of the questions, and what is made again when they change."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_recipe_options import compose, options

from research.datasets.question_forms import Question
from research.errors import DataError
from research.training.cold_start.demonstrations import demonstrations
from research.training.cold_start.split import parts_of
from research.training.run.execute import _forget_other_preparations
from research.training.run.plan import make_plan
from research.training.run.preflight import file_problems


def questions(count: int) -> list[Question]:
    step: list[dict[str, Any]] = [{"question": "capital of X", "answer": "Y"}] * 2
    metadata = {"question_decomposition": step}
    return [Question(f"q{number}", f"What is {number}?", ["Y"], metadata) for number in range(count)]


def written(path: Path, count: int) -> Path:
    rows = [
        {
            "id": each.id,
            "question": each.question,
            "golden_answers": each.golden_answers,
            "metadata": each.metadata,
        }
        for each in questions(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_no_question_is_in_two_parts_and_none_is_lost() -> None:
    parts = parts_of(questions(80), Path("some.jsonl"), validation=60)
    assert [len(part) for part in parts] == [40, 10, 30]
    assert len({each.id for part in parts for each in part}) == 80


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_are_told_by_the_users_file(count: int) -> None:
    with pytest.raises(
        DataError, match=f"some.jsonl: {count} questions, {count} of them with a decomposition"
    ):
        parts_of(questions(count), Path("some.jsonl"), validation=60)


def test_what_is_left_for_grpo_is_counted_before_the_cold_start(tmp_path: Path) -> None:
    """24 questions are more than a batch of 16, but 9 are left."""
    file = written(tmp_path / "few.jsonl", 24)
    plan = make_plan(options(tmp_path, policy="smollm2", questions=file, corpus=Path("dataset")))
    (fault,) = file_problems(plan, compose(tmp_path, "cpu", policy="smollm2", questions=file))
    assert "9 questions left of 24 after the cold start's are fewer than one batch" in fault


@pytest.mark.parametrize("change", ["options", "file"])
def test_what_was_made_of_other_questions_is_made_again(tmp_path: Path, change: str) -> None:
    file = written(tmp_path / "mine.jsonl", 40)
    made = tmp_path / "run/cold_start/parts"
    made.mkdir(parents=True)

    def forget(seed: int = 1) -> bool:
        corpus = tmp_path / "corpus.jsonl"
        given = options(tmp_path, policy="smollm2", questions=file, corpus=corpus, seed=seed)
        _forget_other_preparations(make_plan(given))
        return not made.exists()

    assert forget(), "nobody knows what it was made of"
    made.mkdir()
    assert not forget()
    if change == "file":
        written(file, 41)
    assert forget(2 if change == "options" else 1)


def test_a_missing_corpus_is_one_line(tmp_path: Path) -> None:
    words = ["--questions", str(written(tmp_path / "q.jsonl", 4)), "--corpus", str(tmp_path / "none")]
    done = CliRunner().invoke(
        demonstrations, [*words, "--model", "m", "--out", str(tmp_path / "out.parquet")]
    )
    assert "--corpus: there is no file" in str(done.output) + str(done.exception)
    assert isinstance(done.exception, SystemExit | DataError)
