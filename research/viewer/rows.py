"""The summary of a trajectory, which the list shows, filters and sorts. The rest stays in its file."""

import math
import sys
from dataclasses import dataclass
from typing import Any

from research.episode.protocol import Protocol, answer_of
from research.episode.trajectory import Trajectory


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One trajectory. ``offset`` is where its line begins in its file, in bytes; ``line`` counts from 1.

    ``right`` is None if it was not judged. Texts are empty and ``step`` is None if the file does not have
    them; ``source`` is the data source of a training or the data set of an evaluation.
    """

    file: str
    line: int
    offset: int
    id: str
    question: str
    answer: str
    split: str
    source: str
    method: str
    control: str
    finish: str
    error: str
    step: int | None
    sample: int
    right: bool | None
    reward: float | None
    searches: int
    tokens: int

    @property
    def key(self) -> str:
        """Names the trajectory within its run: ``step_3.jsonl:17``."""
        return f"{self.file}:{self.line}"


def make_row(trajectory: Trajectory, protocol: Protocol, **place: Any) -> Row:
    """The summary, with shared strings kept once; `place` has file, line, offset and split.

    Raises ValueError for a bad step or sample.
    """
    data = trajectory.metadata
    em, reward = trajectory.metrics.get("em"), trajectory.reward

    def text(*names: str) -> str:
        """The first of these that the metadata has."""
        return sys.intern(next((str(data[name]) for name in names if data.get(name) is not None), ""))

    place |= {name: text(name) for name in ("id", "question", "method", "control", "error")}
    return Row(
        **place,
        answer=sys.intern(answer_of(trajectory, protocol) or ""),
        source=text("data_source", "dataset"),
        finish=trajectory.finish_reason or "",
        step=_whole(data, "step"),
        sample=_whole(data, "sample") or 0,
        right=None if em is None else em == 1.0,
        reward=reward if reward is not None and math.isfinite(reward) else None,  # NaN has no order
        searches=len(trajectory.calls),
        tokens=trajectory.response_length,
    )


def metadata_texts(trajectory: Trajectory, name: str) -> list[str]:
    """What the metadata has under a name, as texts: none, one, or several."""
    value = trajectory.metadata.get(name)
    return [] if value is None else [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _whole(data: dict[str, Any], name: str) -> int | None:
    try:
        return None if data.get(name) is None else int(data[name])
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"metadata.{name}: {data[name]!r} is no whole number") from None
