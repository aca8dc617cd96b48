"""A corpus for rewriting tasks that have none: their positives become its passages and the gold ones.

For tasks such as those of prepare.py. Writes corpus.jsonl and SPLIT.tasks.jsonl, the same tasks with the ids
of their positives as `gold_ids`:

    python data/positives.py --out DIR --train train.parquet --validation dev.parquet
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from research.datasets.json_rows import write_splits
from research.datasets.rewriting_tasks import read_tasks
from research.errors import DataError

FILE = click.Path(path_type=Path)


def passage_id(text: str) -> str:
    """Equal for equal texts, so a text that several tasks share is one passage."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def write_positives(out: Path, files: dict[str, Path]) -> int:
    """Write the folder from the task file of each split; the number of passages. Raises DataError."""
    passages: dict[str, str] = {}
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, path in files.items():
        tasks = read_tasks(path)
        if bare := next((task.id for task in tasks if not task.positives), None):
            raise DataError(f'{path}: task {bare} has no "positives" to make a corpus of')
        passages |= {passage_id(text): text for task in tasks for text in task.positives}
        # Their excluded ids are of another corpus.
        gold = [
            replace(task, gold_ids=tuple(map(passage_id, task.positives)), excluded_ids=()) for task in tasks
        ]
        splits[split] = [vars(task) for task in gold]
    write_splits(out, "tasks", splits, [{"id": name, "contents": text} for name, text in passages.items()])
    return len(passages)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=FILE, required=True, help="New folder.")
@click.option("--train", type=FILE, required=True, help="Tasks (research/datasets/rewriting_tasks.py).")
@click.option("--validation", type=FILE, help="More of them.")
@click.option("--test", type=FILE, help="More of them.")
def main(out: Path, **files: Path | None) -> None:
    """Write a corpus of the tasks' positives, and the tasks with the ids of these."""
    count = write_positives(out, {split: path for split, path in files.items() if path})
    click.echo(f"{count} passages, written to {out}")


if __name__ == "__main__":
    main()
