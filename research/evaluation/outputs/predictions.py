"""predictions.jsonl: the trajectory of each question as soon as it is finished, and in the end all of them in
the order of the questions.

What depends on the clock stands in timings.jsonl beside it, so that the same evaluation gives the same file.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from research.episode.trajectory import Search, Trajectory
from research.evaluation.config import EvaluationError
from research.files import atomic_path, cut_half_line

PREDICTIONS, TIMINGS = "predictions.jsonl", "timings.jsonl"


class Key(NamedTuple):
    """What a prediction is of."""

    dataset: str
    method: str
    id: str


def key_of(trajectory: Trajectory) -> Key:
    """The key of a trajectory that an evaluation made."""
    return Key(*(str(trajectory.metadata[name]) for name in Key._fields))


def read_predictions(run_dir: Path) -> Iterator[Trajectory]:
    """The predictions of a run so far; a last line that is not whole is left out. Raises EvaluationError."""
    path = run_dir / PREDICTIONS
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            trajectory = Trajectory.from_json(line)
            key_of(trajectory)
        except (ValueError, KeyError, TypeError) as error:
            message = f"{path}:{number} is no prediction; remove the line, and its question is asked again"
            raise EvaluationError(message) from error
        yield trajectory


def failures(run_dir: Path) -> list[tuple[str, int, list[str]]]:
    """Of the questions and of the searches of a run: their number, and those that failed, with the reason."""
    counts, questions, searches = Counter[str](), list[str](), list[str]()
    for trajectory in read_predictions(run_dir):
        name = " ".join(key_of(trajectory))
        counts["questions"] += 1
        counts["searches"] += sum(bool(search.query) for search in trajectory.searches)
        if "error" in trajectory.metadata:
            questions.append(f"{name} ({trajectory.metadata['error']})")
        searches += [f"{name} ({search.error})" for search in failed_searches(trajectory)]
    return [
        ("questions", counts["questions"], questions),
        ("searches", counts["searches"], searches),
    ]


def failed_searches(trajectory: Trajectory) -> list[Search]:
    """Those that failed for good, not for want of a query."""
    return [search for search in trajectory.searches if search.query and search.error is not None]


class Predictions:
    """The two files of one run, to append to. One process at a time."""

    def __init__(self, run_dir: Path) -> None:
        """Goes on with the files that are there; a half-written last line, left by a kill, is taken off.

        `done` lacks what failed, a question or a search of it: that is asked again. Raises EvaluationError.
        """
        self._run_dir = run_dir
        self.done: dict[Key, dict[str, float]] = {}
        for name in (PREDICTIONS, TIMINGS):
            cut_half_line(run_dir / name)
        for trajectory in read_predictions(run_dir):
            if "error" in trajectory.metadata or failed_searches(trajectory):
                self.done.pop(key_of(trajectory), None)
            else:
                self.done[key_of(trajectory)] = trajectory.metrics

    def add(self, trajectory: Trajectory, seconds: float) -> None:
        """Append a finished question, with the seconds it took."""
        times = {
            "key": key_of(trajectory),
            "seconds": round(seconds, 4),
            "generate_seconds": round(trajectory.generate_seconds, 4),
            "search_seconds": round(trajectory.search_seconds, 4),
        }
        _append(self._run_dir / TIMINGS, json.dumps(times))
        _append(self._run_dir / PREDICTIONS, _timeless(trajectory).to_json())
        self.done[key_of(trajectory)] = trajectory.metrics

    def sort(self, order: Iterable[Key]) -> None:
        """Bring the predictions into the order of the questions, all at once or not at all."""
        lines = {_line_key(line): line for line in _whole_lines(self._run_dir / PREDICTIONS)}
        path = self._run_dir / PREDICTIONS
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines[key] for key in order if key in lines)
            file.flush()
            os.fsync(file.fileno())

    def timings(self) -> list[dict[str, Any]]:
        """The rows of timings.jsonl, the last one of each question."""
        rows = map(json.loads, _whole_lines(self._run_dir / TIMINGS))
        return [*{tuple(row["key"]): row for row in rows}.values()]


def _timeless(trajectory: Trajectory) -> Trajectory:
    """Without what differs from run to run: times, and scores, whose last digit hangs on the retriever's
    batches.
    """
    searches = [
        replace(search, seconds=0.0, passages=[replace(passage, score=None) for passage in search.passages])
        for search in trajectory.searches
    ]
    return replace(trajectory, searches=searches, generate_seconds=0.0)


def _line_key(line: str) -> Key:
    metadata = json.loads(line)["metadata"]
    return Key(*(str(metadata[name]) for name in Key._fields))


def _whole_lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            yield from (line for line in lines if line.endswith("\n"))


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
