"""Questions to the parquet rows of a run: `python -m research.training.rows RUN_DIR --questions FILE`.

Reads the prompt, the model and the lengths from RUN_DIR/config.yaml. Questions whose prompt does not fit are
taken out and named: veRL would cut them silently. Writes RUN_DIR/data/{train,validation,test}.parquet; the
last is what is asked before the first step and after the last one, with each of `research.controls`.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from omegaconf import OmegaConf

from data import DataError
from data.questions import Question, Row, read_questions, split_questions, training_rows, write_rows
from research.prompts import build_prompt
from research.token_protocol import TokenProtocol
from research.training.config import ResearchConfig, read_research_config

VALIDATION_SHARE, VALIDATION_MAXIMUM = 0.1, 100
DECOYS = 4


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--questions", type=click.Path(path_type=Path), required=True, help="Training questions.")
@click.option(
    "--validation", type=click.Path(path_type=Path), help="Held-out questions; else some are split off."
)
@click.option("--test", type=click.Path(path_type=Path), help="Questions asked before and after; else none.")
def main(run_dir: Path, questions: Path, validation: Path | None, test: Path | None) -> None:
    """Write the parquet rows of the run in RUN_DIR."""
    write_run_rows(run_dir, questions, validation, test)


def write_run_rows(run_dir: Path, questions: Path, validation: Path | None, test: Path | None = None) -> None:
    """Read, split if there is no validation file, drop what does not fit, write.

    Raises:
        DataError: a file is missing or a row malformed; names file and line. Or too few questions are left.
    """
    config = OmegaConf.load(run_dir / "config.yaml")
    splits = {"train": read_questions(questions)}
    if validation:
        splits["validation"] = read_questions(validation)
    else:
        share = max(1, min(VALIDATION_MAXIMUM, int(VALIDATION_SHARE * len(splits["train"]))))
        splits["train"], splits["validation"] = split_questions(splits["train"], share, config.data.seed)
        click.echo(f"{questions.name}: {share} questions are held out for validation")
    if test:
        splits["test"] = read_questions(test)
    fits = _FitsPrompt(config)
    splits = {split: fits.keep(each) for split, each in splits.items()}
    splits["train"] = _of_hops(splits["train"], fits.research.train_hops)
    if len(splits["train"]) < config.data.train_batch_size:
        raise DataError(
            f"{questions}: {len(splits['train'])} questions are fewer than one batch "
            f"(data.train_batch_size is {config.data.train_batch_size})"
        )
    folder = run_dir / "data"
    folder.mkdir(exist_ok=True)
    for split, each in splits.items():
        rows = training_rows(each, split, split, by_hops=True)
        if split == "test":
            rows += _control_rows(each, fits.research.controls, config.data.seed)
        write_rows(rows, folder / f"{split}.parquet")
        click.echo(f"{split}: {len(each)} questions")
    (folder / "done").touch()


def _of_hops(questions: list[Question], hops: tuple[int, ...]) -> list[Question]:
    return [question for question in questions if not hops or question.hops in hops]


def _control_rows(questions: list[Question], controls: Sequence[str], seed: int) -> list[Row]:
    """The same questions once more for each control, with texts of other questions as decoys."""
    rng = random.Random(seed)
    rows = []
    for control in controls:
        for row in training_rows(questions, "test", control, by_hops=True):
            others = [other.question for other in rng.sample(questions, min(DECOYS + 1, len(questions)))]
            decoys = [text for text in others if text != row["extra_info"]["question"]][:DECOYS]
            row["extra_info"] |= {"control": control, "decoys": decoys}
            rows.append(row)
    return rows


class _FitsPrompt:
    """Keeps questions whose prompt has at most ``data.max_prompt_length`` tokens; names the others."""

    def __init__(self, config: Any) -> None:
        from transformers import AutoTokenizer

        self.research: ResearchConfig = read_research_config(config.research)
        tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
        self.tokens = TokenProtocol(tokenizer, self.research.protocol)
        self.maximum = config.data.max_prompt_length

    def keep(self, questions: list[Question]) -> list[Question]:
        """The questions that fit, in order."""
        lengths = [len(build_prompt(self.research.prompt, q.question, self.tokens)) for q in questions]
        for question, length in zip(questions, lengths, strict=True):
            if length > self.maximum:
                why = f"its prompt has {length} tokens, data.max_prompt_length is {self.maximum}"
                click.echo(f"left out {question.id}: {why}")
        return [q for q, length in zip(questions, lengths, strict=True) if length <= self.maximum]


if __name__ == "__main__":
    main()
