"""Tasks of query rewriting: a question that is hard to search for, and what a search for it should find.

    {"id", "question", "positives": [text, ...], "gold_ids": [id, ...], "excluded_ids": [id, ...], "source"}

in each row of .jsonl, .jsonl.gz or .parquet; all but the first two are optional. `positives` are relevant
texts (for the reward embedding_gain), `gold_ids` the ids of relevant passages of a corpus (for
retrieval_gain), `excluded_ids` those of passages that do not count, as in BRIGHT. Repetitions in a list count
once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from research.datasets.json_rows import (
    KINDS,
    check_storable,
    id_of,
    read_objects,
    text_of,
    texts_of,
    write_json_rows,
)
from research.datasets.question_forms import named_fields
from research.datasets.questions import TEXTS, TRAINING_SCHEMA, Row, training_row, write_rows
from research.errors import DataError

LISTS = ("positives", "gold_ids", "excluded_ids")
_FIELDS = {"id": pa.string(), "question": pa.string(), **dict.fromkeys(LISTS, TEXTS)}
SCHEMA = pa.schema({**_FIELDS, "source": pa.string()})
_INFO = {"index": pa.int64(), "split": pa.string(), "control": pa.string(), **_FIELDS}
# As that of questions, except for the extra_info and without a reward_model.
TASK_SCHEMA = pa.schema(
    [
        *(field for field in TRAINING_SCHEMA if field.name not in ("reward_model", "extra_info")),
        pa.field("extra_info", pa.struct(_INFO)),
    ]
)


@dataclass(frozen=True)
class RewritingTask:
    """See the module; metrics are reported for each `source`."""

    id: str
    question: str
    positives: tuple[str, ...] = ()
    gold_ids: tuple[str, ...] = ()
    excluded_ids: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for name in LISTS:
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))


def read_tasks(path: str | Path) -> list[RewritingTask]:
    """The tasks of a file, in its order. Raises DataError naming file, row and field."""
    rows = read_objects(Path(path), "task")
    return distinct(path, ((where, task_of_row(row, where)) for where, row in rows))


def distinct(path: str | Path, placed: Iterable[tuple[str, RewritingTask]]) -> list[RewritingTask]:
    """The tasks of (place, task) pairs. Raises DataError for a repeated id, and if there are no tasks."""
    tasks: dict[str, RewritingTask] = {}
    for where, task in placed:
        if task.id in tasks:
            raise DataError(f'{where}: "id" {task.id!r} was given already')
        tasks[task.id] = task
    if not tasks:
        raise DataError(f"{path}: holds no tasks")
    return list(tasks.values())


def write_tasks(path: str | Path, tasks: Iterable[RewritingTask]) -> None:
    """Write .parquet or else JSONL, whole or not at all. Raises DataError."""
    rows = [vars(task) for task in tasks]
    if Path(path).suffix == ".parquet":
        write_rows(rows, path, SCHEMA)
    else:
        write_json_rows(Path(path), rows)


def task_rows(tasks: Iterable[RewritingTask], split: str) -> list[Row]:
    """Rows for veRL's RLHFDataset, see TASK_SCHEMA; veRL reports each source, as `{split}_{source}`."""
    rows = []
    for index, task in enumerate(tasks):
        info = {"index": index, "split": split, "control": "", **vars(task)}
        del info["source"]
        data_source = f"{split}_{task.source}" if task.source else split
        rows.append(training_row(data_source, task.question, "rewriting", info))
    return rows


def task_of_row(row: Row, where: str, question: str = "question") -> RewritingTask:
    """The task of a row, whose question is in the field `question`; checks all fields. Raises DataError."""
    if not {"id", question} & row.keys():
        form = f'{{"id", "{question}", ...}}'
        raise DataError(f"{where}: an object with {named_fields(row)} is no task, {form}: {KINDS}")
    name, text = id_of(row.get("id"), where), text_of(row.get(question), question, where)
    texts = {each: texts_of(row.get(each), each, where) for each in LISTS}
    if both := sorted({*texts["gold_ids"]}.intersection(texts["excluded_ids"])):
        raise DataError(f'{where}: {both[0]!r} is in "gold_ids" and in "excluded_ids": take it out of one')
    source = row.get("source") or ""
    if not isinstance(source, str):
        raise DataError(f'{where}: "source" must be a string')
    task = RewritingTask(name, text, **texts, source=source)
    check_storable(vars(task), where)
    return task
