"""The files that a training run appends to: ``metrics.jsonl`` and ``trajectories/``. See
docs/architecture.md.
"""

import json
import numbers
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.trajectory import Trajectory


class MetricsFile:
    """One JSON line a step: ``{"step": 3, "critic/score/mean": 0.41, ...}``. Has the form of a veRL
    logger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, data: dict[str, Any], step: int) -> None:
        """Append the numbers among ``data``."""
        append_line(self.path, json.dumps(metrics_row(data, step)))

    def finish(self) -> None:
        """Nothing is kept open."""


def metrics_row(data: dict[str, Any], step: int) -> dict[str, float]:
    """What stands in ``metrics.jsonl`` of the metrics of a step: its numbers."""
    row = {key: float(value) for key, value in data.items() if isinstance(value, numbers.Real)}
    return {"step": step, **row}


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, so that several workers may append to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = memoryview(line.encode() + b"\n")
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


TRAJECTORY_FILE = re.compile(r"(?:(\w+)_)?step_(\d+)(?:\..+)?\.jsonl")
"""(split, none for training; step) of a file's name"""


def trajectory_path(run_dir: Path, step: int, split: str, writer: str = "") -> Path:
    """``trajectories/step_3.jsonl`` for training, ``trajectories/validation_step_3.jsonl`` for validation;
    with a writer of several ``step_3.WRITER.jsonl``.
    """
    stem = f"step_{step}" if split == "train" else f"{split}_step_{step}"
    return run_dir / "trajectories" / f"{stem}{f'.{writer}' if writer else ''}.jsonl"


def trajectory_writer(nodes: int) -> str:
    """On several nodes each process writes files of its own: an append over NFS is not one piece."""
    return f"{socket.gethostname()}-{os.getpid()}" if nodes > 1 else ""


def write_trajectory(run_dir: Path, step: int, split: str, trajectory: Trajectory, writer: str = "") -> None:
    """Append a trajectory to the file of its step."""
    append_line(trajectory_path(run_dir, step, split, writer), trajectory.to_json())


def read_step(run_dir: Path, step: int, split: str) -> Iterator[Trajectory]:
    """The trajectories of a step, of all writers; none if there is no file."""
    path = trajectory_path(run_dir, step, split)
    for file in sorted({*path.parent.glob(path.name), *path.parent.glob(f"{path.stem}.*.jsonl")}):
        yield from read_trajectories(file)


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """The trajectories of a file, in order; a last line that is still being written is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield Trajectory.from_json(line)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All rows of ``metrics.jsonl``; an unfinished last line (a killed run) is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def forget_steps_after(run_dir: Path, step: int) -> None:
    """Drop what a killed run wrote after the checkpoint of ``step``: those steps are about to be run
    again.
    """
    rows = [row for row in read_metrics(run_dir) if row["step"] <= step]
    if (run_dir / "metrics.jsonl").exists():
        temporary = run_dir / "metrics.jsonl.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        temporary.replace(run_dir / "metrics.jsonl")
    for path in (run_dir / "trajectories").glob("*step_*.jsonl"):
        found = TRAJECTORY_FILE.fullmatch(path.name)
        if found and int(found[2]) > step:
            path.unlink()


def latest_checkpoint(run_dir: Path) -> int | None:
    """The step of the newest whole checkpoint, or None. veRL writes the tracker file last."""
    tracker = run_dir / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text().strip()) if tracker.exists() else None
