"""predictions.jsonl: the trajectory of each question as soon as it is finished, and in the end all of them in
the order of the questions.

What depends on the clock stands in timings.jsonl beside it, so that the same evaluation gives the same file.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from research.trajectory import Trajectory

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
    """The predictions of a run so far; a last line that is not whole is left out."""
    for line in _whole_lines(run_dir / PREDICTIONS):
        yield Trajectory.from_json(line)


class Predictions:
    """The two files of one run, to append to. One process at a time."""

    def __init__(self, run_dir: Path) -> None:
        """Goes on with the files that are there; a half-written last line, left by a kill, is taken off."""
        self._run_dir = run_dir
        self.done: dict[Key, dict[str, float]] = {}
        for name in (PREDICTIONS, TIMINGS):
            _cut_half_line(run_dir / name)
        for trajectory in read_predictions(run_dir):
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
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines[key] for key in order if key in lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def timings(self) -> list[dict[str, Any]]:
        """The rows of timings.jsonl."""
        return [json.loads(line) for line in _whole_lines(self._run_dir / TIMINGS)]


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


def _cut_half_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
