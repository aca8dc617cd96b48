"""predictions.jsonl: each question's trajectory as soon as it is finished, in the end sorted by question.

What depends on the clock is in timings.jsonl beside it, so that the same evaluation gives the same file.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from research.episode.trajectory import Trajectory
from research.evaluation.config import EvaluationError
from research.files import append_line, atomic_path, cut_half_line, whole_lines

PREDICTIONS, TIMINGS = "predictions.jsonl", "timings.jsonl"


class PredictionKey(NamedTuple):
    """Which question, data set and method a prediction belongs to."""

    dataset: str
    method: str
    id: str


def prediction_key(trajectory: Trajectory) -> PredictionKey:
    """The key of an evaluation's trajectory."""
    return _key(trajectory.metadata)


def read_predictions(run_dir: Path) -> Iterator[Trajectory]:
    """The predictions of a run so far; an incomplete last line is left out. Raises EvaluationError."""
    path = run_dir / PREDICTIONS
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            trajectory = Trajectory.from_json(line)
            prediction_key(trajectory)
        except (ValueError, KeyError, TypeError) as error:
            message = f"{path}:{number} is not a prediction; remove the line to ask its question again"
            raise EvaluationError(message) from error
        yield trajectory


def failures(run_dir: Path) -> dict[str, list[str | None]]:
    """Why each question and each search failed, in words that name the question; None if it did not."""
    reasons: dict[str, list[str | None]] = {"questions": [], "searches": []}
    for trajectory in read_predictions(run_dir):
        name = " ".join(prediction_key(trajectory))
        searches = [search.error for search in trajectory.asked_searches]
        for what, errors in (("questions", [trajectory.metadata.get("error")]), ("searches", searches)):
            reasons[what] += [None if error is None else f"{name} ({error})" for error in errors]
    return reasons


def read_timings(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of timings.jsonl, the last one of each question."""
    rows = map(json.loads, whole_lines(run_dir / TIMINGS))
    return [*{tuple(row["key"]): row for row in rows}.values()]


class Predictions:
    """The two files of one run, to append to. One process at a time."""

    def __init__(self, run_dir: Path) -> None:
        """Resume from the files; a half-written last line, left by a kill, is cut off.

        `done` lacks questions that failed or had a failed search: they are asked again. Raises
        EvaluationError.
        """
        self._run_dir = run_dir
        self.done: dict[PredictionKey, dict[str, float]] = {}
        for name in (PREDICTIONS, TIMINGS):
            cut_half_line(run_dir / name)
        for trajectory in read_predictions(run_dir):
            failed = any(each.error is not None for each in trajectory.asked_searches)
            if "error" in trajectory.metadata or failed:
                self.done.pop(prediction_key(trajectory), None)
            else:
                self.done[prediction_key(trajectory)] = trajectory.metrics

    def add(self, trajectory: Trajectory, seconds: float) -> None:
        """Append a finished question, with the seconds it took."""
        times = {
            "key": prediction_key(trajectory),
            "seconds": round(seconds, 4),
            "generate_seconds": round(trajectory.generate_seconds, 4),
            "search_seconds": round(trajectory.call_seconds, 4),
        }
        append_line(self._run_dir / TIMINGS, json.dumps(times))
        append_line(self._run_dir / PREDICTIONS, _timeless(trajectory).to_json())
        self.done[prediction_key(trajectory)] = trajectory.metrics

    def sort(self, order: Iterable[PredictionKey]) -> None:
        """Sort the predictions into the order of the questions, all or nothing. Raises DataError."""
        path = self._run_dir / PREDICTIONS
        lines = {_key(json.loads(line)["metadata"]): line for line in whole_lines(path)}
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines[key] for key in order if key in lines)
            file.flush()
            os.fsync(file.fileno())


def _timeless(trajectory: Trajectory) -> Trajectory:
    """Without what varies between runs: times, and scores, whose last digit depends on the batch."""
    calls = [
        replace(search, seconds=0.0, passages=[replace(passage, score=None) for passage in search.passages])
        for search in trajectory.calls
    ]
    return replace(trajectory, calls=calls, generate_seconds=0.0)


def _key(metadata: Mapping[str, Any]) -> PredictionKey:
    return PredictionKey(*(str(metadata[name]) for name in PredictionKey._fields))
