"""The files of a run folder: recipe.json, metrics.jsonl, trajectories/, checkpoints/."""

import json
import numbers
import os
import re
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from research.episode.trajectory import Trajectory
from research.errors import DataError
from research.files import append_line, cut_half_line, write_atomically
from research.places import PACKAGE

Line = TypeVar("Line")
StepMetrics = Mapping[str, float]
"""The metrics of a step, a line of metrics.jsonl: ``{"step": 3, "critic/score/mean": 0.41, ...}``"""
History = Sequence[StepMetrics]
"""The steps of a run, in order"""
TRAJECTORY_FILE = re.compile(r"(?:(\w+)_)?step_(\d+)(?:\..+)?\.jsonl")
"""(split, none for training; step) of a file's name"""


class DamagedFile(DataError):
    """A file of the run is damaged; the message, for the user, names it and says what to do."""


class MetricsFile:
    """metrics.jsonl as one of veRL's loggers, one line per step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Append the numbers among ``data``."""
        append_line(self.path, json.dumps(metrics_row(data, step)))


def metrics_row(data: Mapping[str, Any], step: int) -> dict[str, float]:
    """The line of metrics.jsonl for a step: the numbers among its metrics."""
    row = {key: float(value) for key, value in data.items() if isinstance(value, numbers.Real)}
    return {"step": step, **row}


def rollout_error(run_dir: Path) -> Path:
    """The file that says in one line why the first failed episode failed."""
    return run_dir / "logs" / "rollout_error.txt"


def trajectory_path(run_dir: Path, step: int, split: str, writer: str = "") -> Path:
    """``trajectories/step_3.jsonl`` of training, ``validation_step_3.jsonl``, ``step_3.WRITER.jsonl``."""
    stem = f"step_{step}" if split == "train" else f"{split}_step_{step}"
    return run_dir / "trajectories" / f"{stem}{f'.{writer}' if writer else ''}.jsonl"


def trajectory_writer(nodes: int) -> str:
    """On several nodes each process writes its own files: appends over NFS are not atomic."""
    return f"{socket.gethostname()}-{os.getpid()}" if nodes > 1 else ""


def write_trajectory(run_dir: Path, step: int, split: str, trajectory: Trajectory, writer: str = "") -> None:
    """Append a trajectory to the file of its step."""
    append_line(trajectory_path(run_dir, step, split, writer), trajectory.to_json())


def read_step(run_dir: Path, step: int, split: str) -> Iterator[Trajectory]:
    """The trajectories of a step by all writers; none if there is no file."""
    path = trajectory_path(run_dir, step, split)
    for file in sorted({*path.parent.glob(path.name), *path.parent.glob(f"{path.stem}.*.jsonl")}):
        yield from read_trajectories(file)


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """The trajectories of a file, in order. Raises DamagedFile for a line that is not one."""
    return _read_lines(path, Trajectory.from_json, "no trajectory")


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All rows of ``metrics.jsonl``. Raises DamagedFile for a line that is not the row of a step."""
    path = run_dir / "metrics.jsonl"
    return list(_read_lines(path, _row, "no JSON with the numbers of a step")) if path.exists() else []


def _row(line: str) -> dict[str, float]:
    row = json.loads(line)
    if not isinstance(row, dict) or "step" not in row or {*map(type, row.values())} - {int, float}:
        raise ValueError(line[:100].strip())
    return row


def _read_lines(path: Path, read: Callable[[str], Line], fault: str) -> Iterator[Line]:
    """The lines of a file without a last one that is unfinished: being written, or left by a killed run.

    Raises:
        DamagedFile: a line cannot be read; names file and line.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                value = read(line)
            except (ValueError, RecursionError) as error:
                place = f"{path}, line {number}"
                raise DamagedFile(f"{place}: {fault} ({error}); remove that line and run again") from error
            yield value


def note_trained(run_dir: Path, row: StepMetrics) -> None:
    """Keep the metrics of a step while it is validated: its row is written only after that."""
    write_atomically(run_dir / "trained.json", json.dumps(row) + "\n")


def read_trained(run_dir: Path, step: int) -> dict[str, float]:
    """What `note_trained` kept of this step; empty if that was another one."""
    path = run_dir / "trained.json"
    row = _row(path.read_text(encoding="utf-8")) if path.exists() else {}
    return row if row.get("step") == step else {}


def forget_steps_after(run_dir: Path, step: int) -> None:
    """Drop what a killed run wrote after the checkpoint of ``step``: those steps will run again.

    The files that are kept lose an unfinished last line, which the next one would be appended to.
    """
    rows = [row for row in read_metrics(run_dir) if row["step"] <= step]
    if (run_dir / "metrics.jsonl").exists():
        write_atomically(run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for path in (run_dir / "trajectories").glob("*step_*.jsonl"):
        match = TRAJECTORY_FILE.fullmatch(path.name)
        if match and int(match[2]) > step:
            path.unlink()
        elif match:
            cut_half_line(path)


def record_revision(run_dir: Path) -> None:
    """Add to ``revision.txt`` the versions that the run continues with, unless they are its last line."""
    said = f"research-rl {version('research-rl')}{_commit()}, veRL {version('verl')}"
    if said not in read_revisions(run_dir)[-1:]:
        append_line(run_dir / "revision.txt", said)


def read_revisions(run_dir: Path) -> list[str]:
    """What the run was made with, in order; empty for an older run."""
    path = run_dir / "revision.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _commit() -> str:
    """The commit of the checkout that this is, and whether it was changed; empty for an installed package."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:  # there is no git
        return ""
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe.json of any version. Raises DamagedFile."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise foreign_recipe(path, f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise foreign_recipe(path, "not an object")
    return values


def foreign_recipe(path: Path, reason: str) -> DamagedFile:
    """The error for a recipe.json that cannot be resumed from."""
    return DamagedFile(f"{path} is no recipe.json of this version ({reason}); choose another --run-dir")


def latest_checkpoint(run_dir: Path) -> int | None:
    """The step of the newest whole checkpoint, or None.

    veRL writes the tracker file last; if a crash left no checkpoint's number in it, the folders decide.
    """
    tracker = _tracker(run_dir)
    if not tracker.exists():
        return None
    step = _tracked_step(tracker)
    return max(_whole_checkpoints(tracker.parent), default=None) if step is None else step


def mend_tracker(run_dir: Path) -> str | None:
    """Make veRL's tracker file, which veRL reads too, name the newest whole checkpoint if it names none.

    Returns:
        A line about it for the user, or None if nothing was wrong.

    Raises:
        DamagedFile: there is no whole checkpoint to name.
    """
    tracker = _tracker(run_dir)
    if not tracker.exists() or _tracked_step(tracker) is not None:
        return None
    step = latest_checkpoint(run_dir)
    if step is None:
        raise DamagedFile(
            f"{tracker} names no checkpoint, and none beside it is whole; remove it to start the run anew"
        )
    write_atomically(tracker, str(step))
    return f"WARNING: {tracker} named no checkpoint; it now names the newest whole one, of step {step}"


def _tracker(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "latest_checkpointed_iteration.txt"


def _tracked_step(tracker: Path) -> int | None:
    """None if it is no number, or one without a folder, with which veRL would start anew."""
    text = tracker.read_text(encoding="utf-8", errors="replace").strip()
    is_step = text.isascii() and text.isdigit() and (tracker.parent / f"global_step_{int(text)}").is_dir()
    return int(text) if is_step else None


def _whole_checkpoints(folder: Path) -> Iterator[int]:
    """The steps whose files are complete. veRL writes data.pt last, and each file as a zip archive."""
    for path in folder.glob("global_step_*"):
        _, _, step = path.name.rpartition("_")
        files = [path / "data.pt", *path.glob("actor/*.pt")]
        if step.isdecimal() and len(files) > 1 and all(map(zipfile.is_zipfile, files)):
            yield int(step)
