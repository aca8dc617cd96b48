"""What the page asks for: the state of the files, a part of the list, one trajectory; of one or two runs."""

import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from research.viewer.files import Source
from research.viewer.pairs import pair
from research.viewer.query import Entry, ListQuery, facets, ranges
from research.viewer.text_search import TextSearch
from research.viewer.view import entry_view, trajectory_view

SLICE_S = 0.4  # of scanning or searching per request; the page asks again until all is done
FAULTS_SHOWN = 5
KEPT = 16  # selections and text searches, because the page repeats its requests


class Catalogue:
    """The trajectories of one run, or the pairs of two. Works on one request at a time."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._lock = threading.Lock()
        self._versions: list[int] = []  # of the files that the next three are from
        self._entries: list[Entry] = []
        self._choices: dict[str, Any] = {}
        self._selected = lru_cache(KEPT)(lambda query: query.select(self._entries))
        self._search = lru_cache(KEPT)(TextSearch)

    def state(self) -> dict[str, Any]:
        """What there is by now, after a look for newly written lines.

        ``version`` changes whenever the list may have changed; ``done`` is false while there is more to scan;
        progress is in bytes.
        """
        with self._lock:
            done = [source.refresh(SLICE_S / len(self.sources)) for source in self.sources]
            self._update()
            faults = [fault for source in self.sources for fault in source.faults]
            progress = [source.progress for source in self.sources]
            return {
                "names": [source.name for source in self.sources],
                "paths": [str(source.path.resolve()) for source in self.sources],
                "version": "-".join(map(str, self._versions)),
                "done": all(done),
                "scanned": sum(scanned for scanned, _ in progress),
                "size": sum(size for _, size in progress),
                "faults": {"count": len(faults), "first": faults[:FAULTS_SHOWN]},
                "notices": [source.notice for source in self.sources if source.notice],
                **self._choices,
            }

    def page(
        self, query: ListQuery, offset: int, limit: int, locate: tuple[str, str] | None
    ) -> dict[str, Any]:
        """A part of the list.

        ``position`` is that of the entry with the keys ``locate``, None if it is not in the list;
        ``complete`` is false while the text search is running.
        """
        with self._lock:
            self._update()
            entries, complete = self._select(query)
            positions = (position for position, entry in enumerate(entries) if entry.keys == locate)
            return {
                "total": len(entries),
                "all": len(self._entries),
                "complete": complete,
                "position": next(positions, None) if locate else None,
                "offset": offset,
                "entries": [entry_view(entry) for entry in entries[offset : offset + limit]],
            }

    def trajectory(self, side: int, key: str) -> dict[str, Any]:
        """One trajectory. Raises LookupError for an unknown side or key."""
        with self._lock:
            source = self.sources[side]
            row, trajectory = source.read(key)
            return trajectory_view(row, trajectory, source.protocol)

    def _update(self) -> None:
        """Rebuild what depends on the rows, if a file changed."""
        versions = [source.version for source in self.sources]
        if versions != self._versions:
            sides = [source.rows for source in self.sources]
            rows = [row for side in sides for row in side]
            self._entries = [Entry(row) for row in rows] if len(sides) == 1 else pair(*sides)
            self._choices = {"facets": facets(rows), "ranges": ranges(rows)}
            self._selected.cache_clear()
            self._versions = versions

    def _select(self, query: ListQuery) -> tuple[list[Entry], bool]:
        """The entries that pass the query, and whether all of them are known."""
        selected: list[Entry] = self._selected(query)
        if not query.text:
            return selected, True
        search = self._search(query.text)
        complete = self._look_for(search, selected)
        return [entry for entry in selected if any(map(search.holds, entry.rows))], complete

    def _look_for(self, search: TextSearch, entries: list[Entry]) -> bool:
        until = time.monotonic() + SLICE_S
        sides = zip(*entries, strict=True) if entries else ()
        return all(
            search.advance(source, (row for row in side if row), until)
            for source, side in zip(self.sources, sides, strict=False)
        )
