"""Questions or rewriting tasks to the parquet rows of a run: `python -m research.training.rows RUN_DIR
--questions FILE`.

Reads the prompt, the model, the lengths and which of both it is from RUN_DIR/config.yaml. Those whose prompt
does not fit are taken out and named: veRL would cut them silently. Writes
RUN_DIR/data/{train,validation,test}.parquet; the last is what is asked before the first step and after the
last one, with each of `research.controls`.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from research.datasets.questions import (
    TRAINING_SCHEMA,
    Question,
    Row,
    read_questions,
    split_questions,
    training_rows,
    write_rows,
)
from research.datasets.rewriting_tasks import TASK_SCHEMA, RewritingTask, read_tasks, task_rows
from research.environments.controls import CLOSED_BOOK, SHUFFLED
from research.episode.prompts import build_prompt
from research.episode.tokens import TokenProtocol
from research.errors import DataError
from research.rewards.rewriting import reward_weights
from research.training.config import ResearchConfig, read_research_config

HELD_OUT_SHARE, HELD_OUT_MAXIMUM = 0.1, 100
DECOYS = 4


class Asked(Protocol):
    """A question or a rewriting task."""

    @property
    def id(self) -> str: ...
    @property
    def question(self) -> str: ...


Item = TypeVar("Item", bound=Asked)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--questions", type=click.Path(path_type=Path), required=True, help="To train on.")
@click.option(
    "--validation", type=click.Path(path_type=Path), help="Held-out questions; else some are split off."
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    help="Questions asked before and after; without, and without --validation, some are split off.",
)
def main(run_dir: Path, questions: Path, validation: Path | None, test: Path | None) -> None:
    """Write the parquet rows of the run in RUN_DIR."""
    write_run_rows(run_dir, questions, validation, test)


def write_run_rows(run_dir: Path, questions: Path, validation: Path | None, test: Path | None = None) -> None:
    """Read, split if there is no validation file, drop what does not fit, write.

    Raises:
        DataError: a file is missing or a row malformed; names file and line. Or too few questions are left,
        or a task lacks what its reward needs.
    """
    config = OmegaConf.load(run_dir / "config.yaml")
    research = read_research_config(config.research)
    files = {"train": questions, "validation": validation, "test": test}
    given = {split: path for split, path in files.items() if path}
    if research.rewriting:
        tasks = {split: read_run_tasks(path, research) for split, path in given.items()}
        found = _fitting_splits(tasks, questions, config, research)
        rows = {split: task_rows(each, split) for split, each in found.items()}
    else:
        asked = {split: read_questions(path) for split, path in given.items()}
        fitting = _fitting_splits(asked, questions, config, research)
        require_controls(fitting.get("test", []), research.controls, test or questions)
        rows = _question_rows(fitting, config, research)
    require_batch(len(rows["train"]), config, questions)
    for split, each in rows.items():
        path = run_dir / "data" / f"{split}.parquet"
        write_rows(each, path, TASK_SCHEMA if research.rewriting else TRAINING_SCHEMA)
        click.echo(f"{split}: {sum(not row['extra_info']['control'] for row in each)} questions")
    (run_dir / "data" / "done").touch()


def total_steps(config: Any, run_dir: Path) -> int | None:
    """The steps of the run: as configured, or what its epochs come to; None until its rows are written."""
    steps, path = config.trainer.total_training_steps, run_dir / "data" / "train.parquet"
    if steps is not None or not path.exists():
        return steps
    rows, most = pq.read_metadata(path).num_rows, config.data.train_max_samples
    rows = min(rows, most) if most > 0 else rows
    return rows // config.data.train_batch_size * int(config.trainer.total_epochs)


def settle(config: Any, run_dir: Path) -> None:
    """Fill in what follows from the rows that were written: the steps, and the held-out files."""
    config.trainer.total_training_steps = total_steps(config, run_dir)
    files = (run_dir / "data" / f"{split}.parquet" for split in ("validation", "test"))
    config.data.val_files = [str(path) for path in files if path.exists()]


def _fitting_splits(
    splits: dict[str, list[Item]], file: Path, config: Any, research: ResearchConfig
) -> dict[str, list[Item]]:
    """The splits, with a validation one, without what does not fit."""
    drawn = ["validation", "test"] if splits.keys() == {"train"} else ["validation"]
    share = max(1, min(HELD_OUT_MAXIMUM, int(HELD_OUT_SHARE * len(splits["train"]))))
    for split in drawn if "validation" not in splits else ():
        if split == "test" and share < 2:
            continue  # one question shows nothing, and the control shuffled needs a second
        splits["train"], splits[split] = split_questions(splits["train"], share, config.data.seed)
        click.echo(f"{file.name}: {share} questions are held out for {split}")
    fits = _FitsPrompt(config, research)
    return {split: fits.keep(each) for split, each in splits.items()}


def _question_rows(
    splits: dict[str, list[Question]], config: Any, research: ResearchConfig
) -> dict[str, list[Row]]:
    hops = research.train_hops
    splits["train"] = [question for question in splits["train"] if not hops or question.hops in hops]
    rows = {split: training_rows(each, split, split, by_hops=True) for split, each in splits.items()}
    if "test" in splits:
        rows["test"] += _control_rows(splits["test"], research.controls, config.data.seed)
    return rows


def _control_rows(questions: list[Question], controls: Sequence[str], seed: int) -> list[Row]:
    """The same questions once more for each control, with texts of other questions as decoys."""
    rng, texts = random.Random(seed), list(dict.fromkeys(each.question for each in questions))
    rows = []
    for control in controls:
        for row in training_rows(questions, "test", control, by_hops=True):
            others = rng.sample(texts, min(DECOYS + 1, len(texts)))
            decoys = [text for text in others if text != row["extra_info"]["question"]][:DECOYS]
            row["extra_info"] |= {"control": control, "decoys": decoys}
            rows.append(row)
    return rows


def require_batch(count: int, config: Any, file: Path) -> None:
    """Raises DataError for fewer training questions than one batch."""
    batch = config.data.train_batch_size
    if count < batch:
        raise DataError(
            f"{file}: {count} questions are fewer than one batch (data.train_batch_size is {batch})"
        )


def require_controls(questions: list[Question], controls: Sequence[str], file: Path) -> None:
    """Raises DataError if the control shuffled has no other question to search for."""
    if SHUFFLED in controls and len({each.question for each in questions}) == 1:
        raise DataError(
            f"{file}: the control shuffled searches for another question, and all test questions are one "
            f"text; give others, or research.controls=[{CLOSED_BOOK}]"
        )


def read_run_tasks(path: Path, research: ResearchConfig, gold: bool = True) -> list[RewritingTask]:
    """Each must have gold passages, by which every run is measured, or positives to make them of, and what
    its reward needs. Raises DataError.
    """
    tasks = read_tasks(path)
    needed = {"gold_ids": "to be measured by"} if gold else {"positives": "to make a corpus of"}
    if "embedding_gain" in reward_weights(research.reward):
        needed["positives"] = "which the reward embedding_gain needs"
    for name, why in needed.items():
        for task in tasks:
            if not getattr(task, name):
                raise DataError(f'{path}: task {task.id} has no "{name}", {why}')
    return tasks


class _FitsPrompt:
    """Keeps questions whose prompt has at most ``data.max_prompt_length`` tokens; names the others."""

    def __init__(self, config: Any, research: ResearchConfig) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
        self.prompt = research.prompt
        try:
            self.tokens = TokenProtocol(tokenizer, research.protocol)
            build_prompt(self.prompt, "", self.tokens)
        except ValueError as error:
            raise DataError(f"{config.actor_rollout_ref.model.path}: {error}") from error
        self.maximum = config.data.max_prompt_length

    def keep(self, questions: list[Item]) -> list[Item]:
        """The questions that fit, in order."""
        lengths = [len(build_prompt(self.prompt, each.question, self.tokens)) for each in questions]
        for question, length in zip(questions, lengths, strict=True):
            if length > self.maximum:
                why = f"its prompt has {length} tokens, data.max_prompt_length is {self.maximum}"
                click.echo(f"left out {question.id}: {why}")
        return [q for q, length in zip(questions, lengths, strict=True) if length <= self.maximum]


if __name__ == "__main__":
    main()
