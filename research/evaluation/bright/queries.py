"""The texts to search with for each question: from the question, a file or a model."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.datasets.bright import BrightTask
from research.datasets.json_rows import read_rows
from research.datasets.rewriting_tasks import RewritingTask
from research.episode.trajectory import well_formed
from research.errors import warn
from research.evaluation.bright.config import ORIGINAL, BrightConfig
from research.evaluation.bright.rewrite import rewrite_all, wanted
from research.evaluation.config import EvaluationError

FIELDS = ("queries", "rewrite", "query")
NAMED = 10
REWRITES = "rewrites.jsonl"

Texts = Mapping[str, tuple[str, ...]]
"""question id -> the texts to search with; several texts are several lists of passages"""


@dataclass(frozen=True)
class BrightQuery:
    """The texts to search with for one question, each with the weight of its list."""

    question: RewritingTask
    texts: tuple[str, ...]
    weights: tuple[float, ...]


def query_of(question: RewritingTask, rewrites: Sequence[str], config: BrightConfig) -> BrightQuery:
    """The texts as the configuration's mode asks for.

    Without rewrites (none was made, or all failed) there is nothing to search with in any mode: otherwise the
    question would be scored as if it had been rewritten.
    """
    texts = tuple(rewrites)
    if config.mode == "fuse" and rewrites:
        return BrightQuery(question, (question.question, *texts), (config.weight, *[1.0] * len(texts)))
    if config.mode == "concatenate":
        texts = tuple("\n".join([question.question] * config.weight + [each]) for each in rewrites)
    return BrightQuery(question, texts, (1.0,) * len(texts))


def texts_to_search(
    tasks: Sequence[BrightTask], config: BrightConfig, run_dir: Path, model: dict[str, Any]
) -> dict[str, Texts]:
    """The texts of each task by its name; warns of questions that have none. `model` is its identity."""
    if config.queries == ORIGINAL:
        return {task.name: {each.id: (each.question,) for each in task.questions} for task in tasks}
    if config.queries is None:
        return _of_model(tasks, config, run_dir, model)
    read = read_texts(Path(config.queries), config.field)
    texts = {task.name: texts_for(task, read, alone=len(tasks) == 1) for task in tasks}
    for task in tasks:
        if absent := [each.id for each in task.questions if each.id not in texts[task.name]]:
            missing = f"{len(absent)} questions of {task.name}: {named(absent)}"
            message = f"{config.queries} has no texts for {missing}"
            if not config.allow_missing:
                raise EvaluationError(f"{message}. With --allow-missing they count as 0")
            warn(f"{message}. They count as 0.")
    return texts


def _of_model(
    tasks: Sequence[BrightTask], config: BrightConfig, run_dir: Path, model: dict[str, Any]
) -> dict[str, Texts]:
    """The model's texts. A failed one is left out; a question without any counts as 0."""
    rows = asyncio.run(rewrite_all(wanted(tasks, config, model), run_dir / REWRITES, config))
    failed = [row for row in rows if row.error is not None]
    if failed and len(failed) == len(rows):
        reason = f"run again to ask again; first: {failed[0].error}"
        raise EvaluationError(f"all {len(rows)} texts failed; {reason}")
    texts: dict[str, dict[str, tuple[str, ...]]] = {task.name: {} for task in tasks}
    for row in rows:
        if row.error is None:
            texts[row.task][row.id] = (*texts[row.task].get(row.id, ()), row.text)
    empty = [row for row in rows if row.error is None and not row.text]
    ids, empty_ids = (named([f"{row.task} {row.id}" for row in some]) for some in (failed, empty))
    if failed:
        warn(f"{len(failed)} of {len(rows)} texts failed and count as 0: {ids}; first: {failed[0].error}.")
    if empty:
        warn(f"{len(empty)} of {len(rows)} texts are empty: {empty_ids}.")
    return dict(texts)


def read_texts(path: Path, field: str | None) -> dict[tuple[str | None, str], tuple[str, ...]]:
    """(task or None, id) -> texts of a JSONL or parquet file, {"id", "query"} per row; a text, or a list.

    Raises EvaluationError or DataError naming file and line.
    """
    texts: dict[tuple[str | None, str], tuple[str, ...]] = {}
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        if not isinstance(row, dict) or not isinstance(row.get("id"), str | int):
            raise EvaluationError(f'{where}: a row must be an object with an "id"')
        key = (row.get("task"), str(row["id"]))
        if key in texts:
            raise EvaluationError(f'{where}: "id" {key[1]!r} is there twice')
        texts[key] = _texts(row, field, where)
    return texts


def texts_for(task: BrightTask, read: Mapping[tuple[str | None, str], tuple[str, ...]], alone: bool) -> Texts:
    """Texts of one task. An id is TASK_ID, or ID beside a "task", or just ID if the task is `alone`."""
    texts = {}
    for name in (each.id for each in task.questions):
        keys = [(task.name, name), (None, f"{task.name}_{name}")] + [(None, name)] * alone
        if key := next((key for key in keys if key in read), None):
            texts[name] = read[key]
    return texts


def named(ids: Sequence[str]) -> str:
    """Some ids for people."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def _texts(row: dict[str, Any], field: str | None, where: str) -> tuple[str, ...]:
    name = field or next((each for each in FIELDS if each in row), None)
    if name is None or name not in row:
        others = ", ".join(key for key in row if key not in ("id", "task"))
        raise EvaluationError(f"{where}: which field has the text? Name it with --field; there are: {others}")
    value = [row[name]] if isinstance(row[name], str) else row[name]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise EvaluationError(f'{where}: "{name}" must be a text or a list of texts')
    return tuple(map(well_formed, value))
