"""Served: what the process answers from, now: nothing yet, a searcher, later perhaps another one."""

import time
from collections.abc import Callable, Sequence, Set

from retriever_server.errors import Closed, Unavailable
from retriever_server.serving.metrics import Metrics
from retriever_server.serving.service import Passages, Searcher


class Served:
    """Shared by HTTP's threads, which read, and the thread that loads, which writes."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        """`stage` says what is being done until there is a searcher."""
        self.metrics = metrics or Metrics()
        self.stage = "starting"
        self.searcher: Searcher | None = None
        self.reload: Callable[[], None] | None = None
        """Asks for a reload and waits for it; raises what loading raised. None where it is not allowed."""
        self.started = time.monotonic()
        gauge = self.metrics.gauge
        gauge("queue_length", "Different queries in flight.", self._figure(lambda s: s.pipeline.in_flight))
        gauge("cache_bytes", "Bytes in the cache.", self._figure(lambda s: s.pipeline.cached_bytes))
        gauge("passages", "Passages in the index.", self._figure(lambda s: s.manifest.count))

    def swap(self, searcher: Searcher) -> None:
        """Answer from `searcher` from now on; the old one answers what it has and ends."""
        old, self.searcher = self.searcher, searcher
        if old is not None:
            old.close(timeout_s=60)

    def passages(
        self, queries: Sequence[str], top_k: int, excluded: Sequence[Set[str]] | None, contents: bool = True
    ) -> list[Passages]:
        """Searcher.passages of the present searcher. Raises Unavailable while there is none."""
        while True:
            searcher = self.searcher
            if searcher is None:
                raise Unavailable(f"the index is still loading ({self.stage})")
            try:
                return searcher.passages(queries, top_k, excluded, contents)
            except Closed:
                if searcher is self.searcher:  # closed for good, not because another one took its place
                    raise

    def _figure(self, of: Callable[[Searcher], float]) -> Callable[[], float]:
        return lambda: of(self.searcher) if self.searcher else 0
