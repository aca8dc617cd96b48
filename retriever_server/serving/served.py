"""Served: the searcher that the process currently answers from; none at first, later perhaps another."""

from collections.abc import Callable, Sequence, Set

from retriever_server.errors import Closed, Unavailable
from retriever_server.serving.metrics import ServiceMetrics
from retriever_server.serving.service import Passages, Searcher


class Served:
    """Shared by HTTP's threads, which read, and the thread that loads, which writes."""

    def __init__(self) -> None:
        self.metrics = ServiceMetrics()
        self.stage = "starting"
        """What is being done until there is a searcher."""
        self.searcher: Searcher | None = None
        self.reload: Callable[[], None] | None = None
        """Requests a reload, waits for it and raises what loading raised; None if reloads are not allowed."""
        for name, what, value in (
            ("queue_length", "Different queries in flight.", lambda searcher: searcher.pipeline.in_flight),
            ("cache_bytes", "Bytes in the cache.", lambda searcher: searcher.pipeline.cached_bytes),
            ("passages", "Passages in the index.", lambda searcher: searcher.manifest.count),
        ):
            self.metrics.gauge(name, what, self._gauge(value))

    def swap(self, searcher: Searcher) -> None:
        """Answer from `searcher` from now on; the old one answers what it has and closes."""
        old, self.searcher = self.searcher, searcher
        if old is not None:
            old.close(timeout_s=60)

    def passages(
        self, queries: Sequence[str], top_k: int, excluded: Sequence[Set[str]] | None, contents: bool = True
    ) -> list[Passages]:
        """Searcher.passages of the current searcher; Unavailable while there is none."""
        while True:
            searcher = self.searcher
            if searcher is None:
                raise Unavailable(f"the index is still loading ({self.stage})")
            try:
                return searcher.passages(queries, top_k, excluded, contents)
            except Closed:
                if searcher is self.searcher:  # closed for good, not because it was replaced
                    raise

    def _gauge(self, value: Callable[[Searcher], float]) -> Callable[[], float]:
        return lambda: value(self.searcher) if self.searcher else 0
