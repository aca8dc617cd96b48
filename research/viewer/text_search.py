"""Which trajectories contain a text: a search in the files, a slice of time at a time.

In gigabytes it takes longer than a page should wait.
"""

import json
import time
from collections.abc import Iterable

from research.episode.trajectory import Trajectory
from research.viewer.files import Source
from research.viewer.rows import Row, metadata_texts


class TextSearch:
    """One text, ignoring case, in question, id, golden answers, response and reason of the reward."""

    def __init__(self, text: str) -> None:
        self._wanted = text.lower()
        self._as_json = json.dumps(self._wanted, ensure_ascii=False)[1:-1]  # as in a line of the file
        self._known: dict[Row, bool] = {}

    def advance(self, source: Source, rows: Iterable[Row], until: float) -> bool:
        """Search further rows until ``time.monotonic()`` passes ``until``; False if some are left."""
        for row in rows:
            if row not in self._known:
                if time.monotonic() > until:
                    return False
                self._known[row] = self._holds(source, row)
        return True

    def holds(self, row: Row) -> bool:
        """Whether the row contains the text; False if it was not searched yet."""
        return self._known.get(row, False)

    def _holds(self, source: Source, row: Row) -> bool:
        try:
            line = source.read_line(row)
            # Decides most lines. The text may also be in a key, or in a passage that was not shown.
            if self._as_json not in line.lower() and "\\u" not in line:
                return False
            return self._wanted in _text(Trajectory.from_json(line)).lower()
        except (OSError, ValueError):
            return False  # its file is being rewritten: the next request scans the new rows


def _text(trajectory: Trajectory) -> str:
    parts = [
        part for name in ("question", "id", "golden_answers") for part in metadata_texts(trajectory, name)
    ]
    return "\n".join([*parts, trajectory.reward_reason, trajectory.text])
