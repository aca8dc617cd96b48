"""Metrics: what the server counts of itself, in Prometheus' text form. One object a process: it outlives a
reload of the index.
"""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from retriever_server.serving.batcher import BatchFigures

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters. Their updates are safe from any thread."""

    def __init__(self) -> None:
        """In a registry of its own, so that two servers in one process do not mix."""
        self._registry = CollectorRegistry()
        of_request, of_stage = ("route", "status"), ("stage",)
        self._requests = self._made(Counter, "requests", "Requests answered.", of_request)
        self._request_seconds = self._made(
            Histogram,
            "request_seconds",
            "Seconds a request, without the socket.",
            ("route",),
            SECONDS,
        )
        self._batch_size = self._made(Histogram, "batch_size", "Queries in a batch.", of_stage, SIZES)
        self._stage_seconds = self._made(Histogram, "stage_seconds", "Seconds a batch.", of_stage, SECONDS)
        self._wait_seconds = self._made(
            Histogram, "stage_wait_seconds", "How long the first of a batch had waited.", of_stage, SECONDS
        )
        self._queries = self._made(
            Counter, "queries", "Queries by what they took: cached, joined, searched, encoded.", ("path",)
        )
        self._reloads = self._made(Counter, "reloads", "Changes of the index.", ("result",))

    def request(self, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def batch(self, stage: str) -> Callable[[BatchFigures], None]:
        """An observer of the batches of `stage`."""
        sizes, seconds = self._batch_size.labels(stage), self._stage_seconds.labels(stage)
        waits = self._wait_seconds.labels(stage)

        def observe(figures: BatchFigures) -> None:
            sizes.observe(figures.jobs)
            seconds.observe(figures.seconds)
            waits.observe(figures.waited_s)

        return observe

    def queries(self, path: str, count: int) -> None:
        """`count` queries came in. `path`: cached (no work), joined (the work of an equal one in flight),
        searched (its vector was there), encoded.
        """
        if count:
            self._queries.labels(path).inc(count)

    def reload(self, result: str) -> None:
        """`result`: done or failed."""
        self._reloads.labels(result).inc()

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a figure that is looked up when it is asked for."""
        Gauge(name, what, namespace="retriever", registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Prometheus' text form, version 0.0.4."""
        return generate_latest(self._registry)

    def _made(self, kind: type, name: str, what: str, labels: tuple[str, ...], buckets: tuple = ()) -> Any:
        options = {"buckets": buckets} if buckets else {}
        return kind(name, what, labels, namespace="retriever", registry=self._registry, **options)
