"""The parquet rows of a run: `python -m research.training.rows RUN_DIR --questions FILE`.

Reads the environment, the prompt, the model and the lengths from RUN_DIR/config.yaml. Questions whose prompt
does not fit are left out and named: veRL would cut them silently. Writes
RUN_DIR/data/{train,validation,test}.parquet; the last has what is asked before the first step and after the
last one, with each of `research.controls`.
"""

from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from research.datasets.questions import split_questions, write_rows
from research.environments import BaseEnvironment, read_items
from research.episode.prompts import build_prompt
from research.episode.tokens import TokenProtocol
from research.errors import DataError
from research.training.config import read_research_config

SHOWN = 20  # items that are named where many do not fit
HELD_OUT_SHARE, HELD_OUT_MAXIMUM = 0.1, 100
QUESTION_FILE = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--questions", type=QUESTION_FILE, required=True, help="To train on.")
@click.option("--validation", type=QUESTION_FILE, help="Held-out questions; without it, some are split off.")
@click.option(
    "--test",
    type=QUESTION_FILE,
    help="Questions asked before and after; without it and --validation, some are split off.",
)
def main(run_dir: Path, questions: Path, validation: Path | None, test: Path | None) -> None:
    """Write the parquet rows of the run in RUN_DIR."""
    write_run_rows(run_dir, questions, validation, test)


def write_run_rows(run_dir: Path, questions: Path, validation: Path | None, test: Path | None = None) -> None:
    """Read the files, split off missing held-out questions, leave out what does not fit, write the rows.

    Raises:
        DataError: a file is missing or a row malformed; names file and line. Or too few questions are left,
            or a task lacks what its reward needs.
    """
    config = OmegaConf.load(run_dir / "config.yaml")
    environment, seed = read_research_config(config.research).environment, config.data.seed
    files = {"train": questions, "validation": validation, "test": test}
    splits = {split: read_items(environment, path, split) for split, path in files.items() if path}
    _split_off(splits, questions, seed)
    rows = environment.rows(_fitting(splits, config, environment), seed, questions)
    require_batch(len(rows["train"]), config, questions)
    for split, each in rows.items():
        write_rows(each, run_dir / "data" / f"{split}.parquet", environment.schema)
        click.echo(f"{split}: {sum(not row['extra_info']['control'] for row in each)} questions")
    (run_dir / "data" / "done").touch()


def total_steps(config: Any, run_dir: Path) -> int | None:
    """The run's steps: as configured, or those of its epochs; None until its rows are written."""
    steps, path = config.trainer.total_training_steps, run_dir / "data" / "train.parquet"
    if steps is not None or not path.exists():
        return steps
    rows, most = pq.read_metadata(path).num_rows, config.data.train_max_samples
    rows = min(rows, most) if most > 0 else rows
    return rows // config.data.train_batch_size * int(config.trainer.total_epochs)


def settle(config: Any, run_dir: Path) -> None:
    """Fill in what depends on the rows that were written: the steps, and the held-out files."""
    config.trainer.total_training_steps = total_steps(config, run_dir)
    files = (run_dir / "data" / f"{split}.parquet" for split in ("validation", "test"))
    config.data.val_files = [str(path) for path in files if path.exists()]


def _split_off(splits: dict[str, list[Any]], file: Path, seed: int) -> None:
    """Take a validation split, and a test split if there is neither, from the training questions."""
    if "validation" in splits:
        return
    missing = ["validation", "test"] if splits.keys() == {"train"} else ["validation"]
    share = max(1, min(HELD_OUT_MAXIMUM, int(HELD_OUT_SHARE * len(splits["train"]))))
    for split in missing:
        if split == "test" and share < 2:
            continue  # one question shows nothing, and the control shuffled needs a second
        splits["train"], splits[split] = split_questions(splits["train"], share, seed)
        click.echo(f"{file.name}: {share} questions are held out for {split}")


def require_batch(count: int, config: Any, file: Path, which: str = "") -> None:
    """Raises DataError if there are fewer training questions than a batch; `which` describes them."""
    batch = config.data.train_batch_size
    if count < batch:
        raise DataError(
            f"{file}: {count} questions{which} are fewer than one batch (data.train_batch_size is {batch})"
        )


def _fitting(splits: dict[str, list[Any]], config: Any, environment: BaseEnvironment) -> dict[str, list[Any]]:
    """The items whose prompt has at most ``data.max_prompt_length`` tokens, in order; names the others."""
    from transformers import AutoTokenizer

    model, prompt = config.actor_rollout_ref.model.path, environment.settings.prompt
    tokenizer, maximum = AutoTokenizer.from_pretrained(model), config.data.max_prompt_length
    try:
        tokens = TokenProtocol(tokenizer, environment.protocol, environment.tools)
        build_prompt(prompt, "", tokens)
    except ValueError as error:
        raise DataError(f"{model}: {error}") from error
    fitting: dict[str, list[Any]] = {split: [] for split in splits}
    left_out: list[tuple[str, int]] = []
    for split, items in splits.items():
        for item in items:
            length = len(build_prompt(prompt, item.question, tokens))
            if length <= maximum:
                fitting[split].append(item)
            else:
                left_out.append((item.id, length))
    _name_left_out(left_out, maximum)
    return fitting


def _name_left_out(left_out: list[tuple[str, int]], maximum: int) -> None:
    """Say which items were left out, and which bound would keep them."""
    for name, length in left_out[:SHOWN]:
        click.echo(f"left out {name}: its prompt has {length} tokens")
    if left_out:
        longest = max(length for _, length in left_out)
        click.echo(
            f"{len(left_out)} left out: data.max_prompt_length is {maximum}; {longest} would keep them all"
        )


if __name__ == "__main__":
    main()
