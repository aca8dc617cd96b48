"""research/training/rows.py: question files to the parquet rows of a run."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from research.datasets.mini.tokenizer import train_tokenizer
from research.datasets.mini.world import build_world
from research.datasets.questions import Question, write_questions
from research.errors import DataError
from research.training.rows import settle, total_steps, write_run_rows
from research.training.run.plan import CONFIG_DIR

SPLITS = ("train", "validation", "test")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A prepared run folder with the questions of a small world beside it."""
    world = build_world(seed=3, passages=600, train=30, validation=4, test=5)
    for split, questions in world.questions.items():
        write_questions(tmp_path / f"{split}.jsonl", questions)
    train_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def configure(run_dir: Path, **research: object) -> None:
    files = (CONFIG_DIR / name for name in ("common.yaml", "train_musique.yaml"))
    config = OmegaConf.merge(*map(OmegaConf.load, files))
    section = config.research
    section.protocol = OmegaConf.load(CONFIG_DIR / "protocol" / "research.yaml")
    section.run_dir, section.retriever.url, section.prompt = str(run_dir), "http://127.0.0.1:1", "question"
    section.limits.turn_tokens = section.limits.response_tokens = 100
    section.update(research)
    data = {"seed": 1, "train_batch_size": 8, "max_prompt_length": 64}
    model = {"model": {"path": str(run_dir.parent / "model")}}
    whole = OmegaConf.create({"research": section, "data": data, "actor_rollout_ref": model})
    OmegaConf.save(whole, run_dir / "config.yaml")


def rows(run_dir: Path, split: str) -> list[dict]:
    return pq.read_table(run_dir / "data" / f"{split}.parquet").to_pylist()


def write(run_dir: Path) -> None:
    write_run_rows(run_dir, *(run_dir.parent / f"{split}.jsonl" for split in ("train", "validation", "test")))


def test_each_test_question_comes_once_more_for_each_control(run_dir: Path) -> None:
    configure(run_dir, controls=["closed_book", "shuffled"])
    write(run_dir)
    test = rows(run_dir, "test")
    assert len(test) == 3 * 15 and len(rows(run_dir, "validation")) == 12
    assert {row["extra_info"]["control"] for row in test[:15]} == {""}
    for control in ("closed_book", "shuffled"):
        asked = [row for row in test if row["extra_info"]["control"] == control]
        assert [row["extra_info"]["id"] for row in asked] == [row["extra_info"]["id"] for row in test[:15]]
        assert {row["data_source"] for row in asked} == {f"{control}_{hops}hop" for hops in (2, 3, 4)}
        for row in asked:
            decoys = row["extra_info"]["decoys"]
            assert len(decoys) == 4 == len(set(decoys)) and row["extra_info"]["question"] not in decoys


def test_questions_that_did_not_draw_the_curve_are_split_off(run_dir: Path) -> None:
    configure(run_dir, controls=["shuffled"])
    write_run_rows(run_dir, run_dir.parent / "train.jsonl", None)
    asked = {split: {row["extra_info"]["id"] for row in rows(run_dir, split)} for split in SPLITS}
    assert {split: len(ids) for split, ids in asked.items()} == {"train": 24, "validation": 3, "test": 3}
    assert len(set.union(*asked.values())) == 30 and len(rows(run_dir, "test")) == 2 * 3
    config = OmegaConf.load(run_dir / "config.yaml")
    config.trainer, config.data.val_files = {"total_training_steps": 5}, []
    settle(config, run_dir)
    assert [Path(file).stem for file in config.data.val_files] == ["validation", "test"]
    shutil.rmtree(run_dir / "data")
    write_run_rows(run_dir, run_dir.parent / "train.jsonl", run_dir.parent / "validation.jsonl")
    settle(config, run_dir)
    assert len(rows(run_dir, "train")) == 30 and len(config.data.val_files) == 1


def test_decoys_are_found_among_many_questions_of_one_text(run_dir: Path) -> None:
    questions = [Question(str(number), "Who?", ("a",)) for number in range(30)]
    write_questions(run_dir.parent / "test.jsonl", [*questions, Question("x", "Where?", ("b",))])
    configure(run_dir, controls=["shuffled"])
    write(run_dir)
    decoys = [row["extra_info"]["decoys"] for row in rows(run_dir, "test")[31:]]
    assert decoys == [["Where?"]] * 30 + [["Who?"]]


@pytest.mark.parametrize("count", [1, 7])
def test_controls_that_cannot_be_made_are_told_when_rows_are_written(run_dir: Path, count: int) -> None:
    questions = [Question(str(number), "Who?", ("a",)) for number in range(count)]
    write_questions(run_dir.parent / "test.jsonl", questions)
    configure(run_dir, controls=["closed_book", "shuffled"])
    with pytest.raises(DataError, match=r"test.jsonl: the control shuffled .*controls=\[closed_book\]"):
        write(run_dir)
    configure(run_dir, controls=["closed_book"])
    write(run_dir)
    assert len(rows(run_dir, "test")) == 2 * count


def test_epochs_come_to_steps_by_the_rows_that_fill_a_batch(run_dir: Path) -> None:
    configure(run_dir)
    trainer = {"total_training_steps": None, "total_epochs": 3}
    config = OmegaConf.create({"trainer": trainer, "data": {"train_batch_size": 8, "train_max_samples": -1}})
    assert total_steps(config, run_dir) is None
    write(run_dir)  # 30 rows to train on
    assert total_steps(config, run_dir) == 3 * 3
    config.data.train_max_samples = 16
    assert total_steps(config, run_dir) == 3 * 2
    config.trainer.total_training_steps = 50
    assert total_steps(config, run_dir) == 50


def test_training_can_be_kept_to_some_hop_counts(run_dir: Path) -> None:
    configure(run_dir, train_hops=[2])
    write(run_dir)
    assert [row["extra_info"]["hops"] for row in rows(run_dir, "train")] == [2] * 18
    assert {row["extra_info"]["hops"] for row in rows(run_dir, "validation")} == {2, 3, 4}
    configure(run_dir, train_hops=[5])
    with pytest.raises(DataError, match="0 questions are fewer than one batch"):
        write(run_dir)
