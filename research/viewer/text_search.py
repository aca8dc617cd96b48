"""Which trajectories hold a text. It is looked up in the files, a slice of time at a time: in gigabytes it
takes longer than a page should wait.
"""

import json
import time
from collections.abc import Iterable

from research.episode.trajectory import Trajectory
from research.viewer.files import Source
from research.viewer.rows import Row, metadata_texts


class TextSearch:
    """One text, whatever its case, in question, id, golden answers, response and reason of the reward."""

    def __init__(self, text: str) -> None:
        self._wanted = text.lower()
        self._as_json = json.dumps(self._wanted, ensure_ascii=False)[1:-1]  # how it stands in a line
        self._known: dict[Row, bool] = {}

    def advance(self, source: Source, rows: Iterable[Row], until: float) -> bool:
        """Look into those rows that were not looked into yet, until ``time.monotonic()`` passes ``until``;
        False if some are left.
        """
        for row in rows:
            if row not in self._known:
                if time.monotonic() > until:
                    return False
                self._known[row] = self._holds(source, row)
        return True

    def found(self, row: Row) -> bool:
        """Whether the text is in it; False for one that was not looked into yet."""
        return self._known.get(row, False)

    def _holds(self, source: Source, row: Row) -> bool:
        try:
            line = source.read_line(row)
            # Most lines are told by this alone. It may also be in a key or in a passage that was not shown.
            if self._as_json not in line.lower() and "\\u" not in line:
                return False
            return self._wanted in _text(Trajectory.from_json(line)).lower()
        except (OSError, ValueError):
            return False  # its file is being written anew: the next look takes in the new rows


def _text(trajectory: Trajectory) -> str:
    parts = [
        part for name in ("question", "id", "golden_answers") for part in metadata_texts(trajectory, name)
    ]
    return "\n".join([*parts, trajectory.reward_reason, trajectory.text])
