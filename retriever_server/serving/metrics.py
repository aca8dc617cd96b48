"""Metrics in Prometheus' text format, one object per process, which outlives a reload of the index."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NAMESPACE = "retriever"


class ServiceMetrics:
    """Thread-safe counters, in a registry of their own, so that servers in one process do not mix."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, namespace=NAMESPACE, registry=registry)

        def histogram(name: str, what: str, label: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, what, (label,), namespace=NAMESPACE, registry=registry, buckets=buckets)

        self._requests = counter("requests", "Requests answered.", "route", "status")
        self._request_seconds = histogram(
            "request_seconds", "Seconds per request, without the socket.", "route"
        )
        self._batch_size = histogram("batch_size", "Queries per batch.", "stage", SIZES)
        self._stage_seconds = histogram("stage_seconds", "Seconds per batch.", "stage")
        self._wait_seconds = histogram("stage_wait_seconds", "How long the first of a batch waited.", "stage")
        self._queries = counter("queries", "Queries by cost: cached, joined, searched, encoded.", "path")
        self._reloads = counter("reloads", "Changes of the index.", "result")

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def batch(self, stage: str) -> Callable[[int, float, float], None]:
        """An observer of the batches of `stage`: jobs, seconds, seconds that the first job waited."""
        sizes, seconds = self._batch_size.labels(stage), self._stage_seconds.labels(stage)
        waits = self._wait_seconds.labels(stage)

        def observe(jobs: int, seconds_taken: float, waited_s: float) -> None:
            sizes.observe(jobs)
            seconds.observe(seconds_taken)
            waits.observe(waited_s)

        return observe

    def queries(self, path: str, count: int) -> None:
        """Count queries: cached, joined (an equal one in flight), searched (vector was cached), encoded."""
        self._queries.labels(path).inc(count)

    def reload(self, result: str) -> None:
        """Count a reload; `result` is done or failed."""
        self._reloads.labels(result).inc()

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a value that is read whenever the metrics are."""
        Gauge(name, what, namespace=NAMESPACE, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)
