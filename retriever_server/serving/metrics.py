"""Metrics in Prometheus' text format, one object per process, which outlives a reload of the index."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NAMESPACE = "retriever"


class ServiceMetrics:
    """Thread-safe counters in a registry of their own, so that servers in one process do not mix."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, namespace=NAMESPACE, registry=registry)

        def histogram(name: str, what: str, label: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, what, (label,), namespace=NAMESPACE, registry=registry, buckets=buckets)

        self.requests = counter("requests", "Requests answered.", "route", "status")
        self.request_seconds = histogram(
            "request_seconds", "Seconds per request, without the socket.", "route"
        )
        self._batches = (
            histogram("batch_size", "Queries per batch.", "stage", SIZES),
            histogram("stage_seconds", "Seconds per batch.", "stage"),
            histogram("stage_wait_seconds", "How long the first of a batch waited.", "stage"),
        )
        # cached; joined: an equal one was in flight; searched: its vector was cached; encoded
        self.queries = counter("queries", "Queries by cost: cached, joined, searched, encoded.", "path")
        self.reloads = counter("reloads", "Changes of the index.", "result")

    def batch(self, stage: str, jobs: int, seconds: float, waited_s: float) -> None:
        """Count a batch of `stage`, whose first job had waited `waited_s`."""
        for histogram, value in zip(self._batches, (jobs, seconds, waited_s), strict=True):
            histogram.labels(stage).observe(value)

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a value that is read whenever the metrics are."""
        Gauge(name, what, namespace=NAMESPACE, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)
