"""What is searched with: for each question its texts, from the question, a file or a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.datasets.bright import BrightTask
from research.datasets.json_rows import read_rows
from research.datasets.rewriting_tasks import RewritingTask
from research.episode.trajectory import well_formed
from research.evaluation.bright.config import BrightConfig
from research.evaluation.config import EvaluationError

FIELDS = ("queries", "rewrite", "query")
NAMED = 10


@dataclass(frozen=True)
class BrightQuery:
    """What one question is searched with: texts, each with the weight of its list."""

    question: RewritingTask
    texts: tuple[str, ...]
    weights: tuple[float, ...]


def query_of(question: RewritingTask, rewrites: Sequence[str], config: BrightConfig) -> BrightQuery:
    """The texts by the mode of the configuration.

    Without rewrites (none was made, or all failed) there is nothing to search with, whatever the mode: a
    question must not be scored as if it had been rewritten.
    """
    texts = tuple(rewrites)
    if config.mode == "fuse" and rewrites:
        return BrightQuery(question, (question.question, *texts), (config.weight, *[1.0] * len(texts)))
    if config.mode == "concatenate":
        texts = tuple("\n".join([question.question] * config.weight + [each]) for each in rewrites)
    return BrightQuery(question, texts, (1.0,) * len(texts))


class TextFile:
    """Texts of a JSONL or parquet file, {"id", "query"} per row; a text, or a list of texts.

    An id is TASK_ID, or ID alone beside a "task", or if only one task is asked for.
    """

    def __init__(self, path: Path, field: str | None) -> None:
        """Raises EvaluationError or DataError naming file and line."""
        self._texts: dict[tuple[str | None, str], tuple[str, ...]] = {}
        for line, row in read_rows(path):
            self._add(row, field, f"{path}:{line}")

    def _add(self, row: Any, field: str | None, where: str) -> None:
        if not isinstance(row, dict) or not isinstance(row.get("id"), str | int):
            raise EvaluationError(f'{where}: a row must be an object with an "id"')
        key = (row.get("task"), str(row["id"]))
        if key in self._texts:
            raise EvaluationError(f'{where}: "id" {key[1]!r} is there twice')
        self._texts[key] = _texts(row, field, where)

    def of(self, task: BrightTask, alone: bool) -> dict[str, tuple[str, ...]]:
        """The file's texts for a task by question id; `alone`: no other task is asked for."""
        texts = {}
        for name in (each.id for each in task.questions):
            keys = [(task.name, name), (None, f"{task.name}_{name}")] + [(None, name)] * alone
            if key := next((key for key in keys if key in self._texts), None):
                texts[name] = self._texts[key]
        return texts


def named(ids: Sequence[str]) -> str:
    """Some ids for people."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def _texts(row: dict[str, Any], field: str | None, where: str) -> tuple[str, ...]:
    name = field or next((each for each in FIELDS if each in row), None)
    if name is None or name not in row:
        others = ", ".join(key for key in row if key not in ("id", "task"))
        raise EvaluationError(f"{where}: which field has the text? Say it with --field; there are: {others}")
    value = [row[name]] if isinstance(row[name], str) else row[name]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise EvaluationError(f'{where}: "{name}" must be a text or a list of texts')
    return tuple(map(well_formed, value))
