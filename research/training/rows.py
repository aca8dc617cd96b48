"""Questions to the parquet rows of a run: `python -m research.training.rows RUN_DIR --questions FILE
[--validation FILE]`.

Reads the prompt, the model and the lengths from RUN_DIR/config.yaml. Questions whose prompt does not fit are
taken
out and named: veRL would cut them silently. Writes RUN_DIR/data/{train,validation}.parquet.
"""

from pathlib import Path
from typing import Any

import click
from omegaconf import OmegaConf

from data import DataError
from data.questions import Question, read_questions, split_questions, write_training_rows
from research.prompts import build_prompt
from research.token_protocol import TokenProtocol
from research.training.config import ResearchConfig, read_research_config

VALIDATION_SHARE, VALIDATION_MAXIMUM = 0.1, 100


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--questions", type=click.Path(path_type=Path), required=True, help="Training questions.")
@click.option(
    "--validation", type=click.Path(path_type=Path), help="Held-out questions; else some are split off."
)
def main(run_dir: Path, questions: Path, validation: Path | None) -> None:
    """Write the parquet rows of the run in RUN_DIR."""
    write_run_rows(run_dir, questions, validation)


def write_run_rows(run_dir: Path, questions: Path, validation: Path | None) -> None:
    """Read, split if there is no validation file, drop what does not fit, write.

    Raises:
        DataError: a file is missing or a row malformed; names file and line. Or too few questions are left.
    """
    config = OmegaConf.load(run_dir / "config.yaml")
    train, held_out = read_questions(questions), read_questions(validation) if validation else []
    if not validation:
        share = max(1, min(VALIDATION_MAXIMUM, int(VALIDATION_SHARE * len(train))))
        train, held_out = split_questions(train, share, config.data.seed)
        click.echo(f"{questions.name}: {share} questions are held out for validation")
    fits = _FitsPrompt(config)
    train, held_out = fits.keep(train), fits.keep(held_out)
    if len(train) < config.data.train_batch_size:
        raise DataError(
            f"{questions}: {len(train)} questions are fewer than one batch (data.train_batch_size is "
            f"{config.data.train_batch_size})"
        )
    folder = run_dir / "data"
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", train), ("validation", held_out)):
        source = questions if split == "train" or not validation else validation
        write_training_rows(rows, folder / f"{split}.parquet", split, _source_name(source), by_hops=True)
        click.echo(f"{split}: {len(rows)} questions")
    (folder / "done").touch()


def _source_name(path: Path) -> str:
    return path.name.split(".")[0].split("_")[0] if path.name[0].isalpha() else "questions"


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
