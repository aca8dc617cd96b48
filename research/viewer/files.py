"""The files of trajectories to look at.

They may be gigabytes, and grow meanwhile: each byte is scanned once, and only a summary of each trajectory is
kept.
"""

import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, with_config
from yaml import YAMLError

from research.episode.protocol import Protocol
from research.episode.trajectory import Trajectory
from research.training.run_files import TRAJECTORY_FILE
from research.validation import checked
from research.viewer.rows import Row, make_row

PREDICTIONS = "predictions.jsonl"  # of an evaluation
TAIL_BYTES = 64
REASON_CHARACTERS = 200
_PROTOCOL = TypeAdapter(with_config(ConfigDict(extra="forbid"))(Protocol))


class TrajectoryFile:
    """One file: its rows so far, and a message for each line that is no trajectory."""

    def __init__(self, path: Path, protocol: Protocol) -> None:
        name = TRAJECTORY_FILE.fullmatch(path.name)
        self.path, self.protocol = path, protocol
        self.split = (name[1] or "train") if name else ""
        self.order = (int(name[2]) if name else 0, path.name)
        self.rows: list[Row] = []
        self._faults: list[str] = []
        self._pending = ""  # what is wrong with an incomplete last line
        self.size, self.scanned, self._lines = path.stat().st_size, 0, 0
        self._tail = b""

    def replaced(self) -> bool:
        """Whether this is another file than the scanned one: a resumed training rewrites later steps."""
        self.size = self.path.stat().st_size
        if self.size == self.scanned:
            self._pending = ""  # half a line that was cut off
            return False
        with self.path.open("rb") as data:
            data.seek(self.scanned - len(self._tail))
            return data.read(len(self._tail)) != self._tail

    def scan(self, until: float) -> bool:
        """Scan lines, at least one, until ``time.monotonic()`` passes ``until``; False if none was left.

        The last line of a file may be complete without a line end.
        """
        before, self._pending = self.scanned, ""
        with self.path.open("rb") as data:
            data.seek(self.scanned)
            for line in data:
                if not line.endswith(b"\n") and not _is_json(line):
                    self._pending = self._fault(self._lines + 1, "cut off, or still being written")
                    break
                self._take(line)
                if time.monotonic() > until:
                    break
        return self.scanned > before

    def _take(self, line: bytes) -> None:
        if line.strip() or self._tail[-1:] in (b"", b"\n"):  # else it is the end that the last line lacked
            self._lines += 1
        if line.strip():
            try:
                trajectory = Trajectory.from_json(line.decode())
                place = {"file": self.path.name, "line": self._lines, "offset": self.scanned}
                self.rows.append(make_row(trajectory, self.protocol, **place, split=self.split))
            except ValueError as error:
                self._faults.append(self._fault(self._lines, str(error)))
        self.scanned += len(line)
        self._tail = (self._tail + line)[-TAIL_BYTES:]

    def _fault(self, line: int, reason: str) -> str:
        return f"{self.path.name}, line {line} is no trajectory: {reason}"

    @property
    def faults(self) -> list[str]:
        """One message for each line that is left out."""
        return [*self._faults, self._pending] if self._pending else self._faults


class Source:
    """What one path names: a training run, an evaluation, or a file; ``version`` grows with each change.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: the folder is neither a training run nor an evaluation.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.resolve().name
        self.protocol, self.notice = _protocol(path)
        self.version = 0
        self._files: dict[str, TrajectoryFile] = {}
        if not self._paths() and not (path / "config.yaml").exists():
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file or folder")
            raise ValueError(f"{path}: no trajectories: neither trajectories/*.jsonl nor {PREDICTIONS} in it")

    def refresh(self, seconds: float) -> bool:
        """Scan newly written lines, for about so many seconds; False if there is more to do."""
        until = time.monotonic() + seconds
        self._find_files()
        for file in self._files.values():
            while file.scanned < file.size and file.scan(until):
                self.version += 1
                if time.monotonic() > until:
                    return False
        return True

    def _find_files(self) -> None:
        """Drop files that are gone or were replaced, and add new ones, in the order of their steps."""
        paths = {path.name: path for path in self._paths()}
        kept = {name: file for name, file in self._files.items() if name in paths and not file.replaced()}
        new = [TrajectoryFile(path, self.protocol) for name, path in paths.items() if name not in kept]
        if new or len(kept) < len(self._files):
            files = sorted([*kept.values(), *new], key=lambda file: file.order)
            self._files = {file.path.name: file for file in files}
            self.version += 1

    def _paths(self) -> list[Path]:
        if self.path.is_dir():
            paths = [*self.path.glob("trajectories/*step_*.jsonl"), *self.path.glob(PREDICTIONS)]
            return [path for path in paths if path.is_file()]
        return [self.path] if self.path.exists() else []

    @property
    def rows(self) -> list[Row]:
        """All rows, by step and then as they were written."""
        return [row for file in self._files.values() for row in file.rows]

    @property
    def faults(self) -> list[str]:
        """One message for each line that could not be read."""
        return [fault for file in self._files.values() for fault in file.faults]

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes scanned, and bytes in all."""
        files = self._files.values()
        return sum(file.scanned for file in files), sum(file.size for file in files)

    def read_line(self, row: Row) -> str:
        """The line of a row, as in its file."""
        with self._files[row.file].path.open("rb") as data:
            data.seek(row.offset)
            return data.readline().decode()

    def read(self, key: str) -> tuple[Row, Trajectory]:
        """One trajectory by the key of its row. Raises LookupError, also if its file was rewritten."""
        row = next((row for row in self._files[key.rpartition(":")[0]].rows if row.key == key), None)
        if row is None:
            raise KeyError(key)
        try:
            return row, Trajectory.from_json(self.read_line(row))
        except (OSError, ValueError) as error:
            raise LookupError(key) from error


def _is_json(line: bytes) -> bool:
    """Whether nothing is missing: a part of a JSON object is none."""
    try:
        json.loads(line)
    except ValueError:
        return False
    except RecursionError:
        pass  # reported when the line is read
    return True


def _protocol(path: Path) -> tuple[Protocol, str]:
    """The protocol of the run that a path belongs to, else the default; and what is wrong with its config."""
    for folder in (path, path.parent, path.parent.parent):
        config = folder / "config.yaml"
        if config.exists():
            try:
                return _configured(config), ""
            except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
                reason = " ".join(str(error).split())[:REASON_CHARACTERS]
                return Protocol(), f"{config} names no protocol, so the default one is taken: {reason}"
    return Protocol(), ""


def _configured(config: Path) -> Protocol:
    """The protocol of a training's section `research`, or of an evaluation's configuration itself."""
    values: Any = OmegaConf.load(config)
    evaluation = isinstance(values, DictConfig) and "research" not in values
    for name in ["protocol"] if evaluation else ["research", "protocol"]:
        if not isinstance(values, DictConfig):
            raise ValueError(f"there is no section for {name}")
        values = values.get(name)
        if values is None:
            return Protocol()
    return checked(_PROTOCOL, OmegaConf.to_container(values, resolve=True))
