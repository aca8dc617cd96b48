"""The model card of an exported policy, made from the files of its run."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import ModelCardData
from omegaconf import DictConfig

from research.training.config import load_config
from research.training.run_files import read_metrics, read_revisions
from research.training.watch import paired, table
from research.training.watch.validations import provenance

# An absolute path up to its last part: where files lay is nobody else's business.
FOLDERS = re.compile(r"(?:^|(?<=[\s='\"\[{(,]))/(?:[^/\s'\",)\]}]+/)*")
TAGS = ["reinforcement-learning", "agentic-search", "research-rl"]


def without_folders(text: str) -> str:
    """The text with each absolute path cut to its last part."""
    return FOLDERS.sub("", text)


def model_card(run_dir: Path, name: str, command: str) -> str:
    """README.md of the policy: its start, its questions, its results, and the command that made it.

    Raises:
        ValueError: a file of the run is damaged; names it.
    """
    config = load_config(run_dir / "config.yaml")
    parts = [
        _front(config, name),
        *_training(run_dir, config),
        *_results(run_dir),
        *_making(run_dir, command),
    ]
    return "\n\n".join(parts) + "\n"


def _front(config: DictConfig, name: str) -> str:
    model = str(config.actor_rollout_ref.model.path)
    tags = [*TAGS, str(config.algorithm.adv_estimator)]
    data = ModelCardData(
        base_model=None if model.startswith("/") else model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {name.rpartition('/')[2]}"


def _training(run_dir: Path, config: DictConfig) -> Iterator[str]:
    research, rollout = config.research, config.actor_rollout_ref.rollout
    rank = config.actor_rollout_ref.model.get("lora_rank", 0)
    model, step = without_folders(str(config.actor_rollout_ref.model.path)), _step(run_dir)
    estimator = str(config.algorithm.adv_estimator).upper()
    yield (
        f"`{model}`, trained with {estimator} to search: the policy of step {step} of "
        f"{config.trainer.total_training_steps}. Its license is that of `{model}`."
    )
    yield "## What it was trained on"
    yield _markdown(("split", "data", "rows"), list(_counts(run_dir)))
    yield "\n".join(
        f"- {what}: `{without_folders(' '.join(str(value).split()))}`"
        for what, value in {
            "reward": research.get("reward"),
            "tools": research.get("tools", "search"),
            "questions a step": config.data.train_batch_size,
            "samples a question": rollout.n,
            "longest response, tokens": config.data.max_response_length,
            **({"LoRA rank, with the adapter in lora_adapter": rank} if rank else {}),
            "learning rate": config.actor_rollout_ref.actor.optim.lr,
            "tags": ", ".join(
                str(research.protocol.get(tag)) for tag in ("think", "search", "result", "answer")
            ),
        }.items()
    )


def _counts(run_dir: Path) -> Iterator[tuple[str, ...]]:
    """(split, data source, rows) of the rows that were written for the training."""
    for split in ("train", "validation", "test"):
        path = run_dir / "data" / f"{split}.parquet"
        sources = (
            pq.read_table(path, columns=["data_source"])["data_source"].to_pylist() if path.exists() else []
        )
        for source, count in sorted(Counter(sources).items()):
            yield split, source, str(count)


def _step(run_dir: Path) -> str:
    """The step of the policy that was exported. Raises ValueError if none was."""
    path = run_dir / "policy" / "step.txt"
    if not path.exists():
        raise ValueError(f"{run_dir} has no policy yet: export it first (--export --run-dir {run_dir})")
    return path.read_text(encoding="utf-8").strip().rpartition("_")[2]


def _results(run_dir: Path) -> Iterator[str]:
    rows, held_out = table.table_rows(run_dir), table.HeldOut(run_dir)
    yield "## Results"
    if not rows:
        yield "Nothing was evaluated."
        return
    yield _markdown(table.header_of(held_out.headline), [row.cells() for row in rows])
    notes = (
        held_out.headline.note + held_out.remark,
        provenance(read_metrics(run_dir), held_out.headline.label),
        table.failures_warning(rows, held_out.headline),
    )
    yield from filter(None, notes)
    if compared := paired.comparisons(run_dir):
        yield _markdown(paired.HEADER, [one.cells() for one in compared])
        yield paired.NOTE


def _making(run_dir: Path, command: str) -> Iterator[str]:
    yield "## How it was made"
    yield f"```bash\n{without_folders(command)}\n```"
    revisions = read_revisions(run_dir)
    yield "\n".join(f"- {each}" for each in revisions) if revisions else "Its revision was not recorded."


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
