"""The metrics that a server process counts itself, and the page with all of them."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

import trunkline
from trunkline.server import metric_table as table
from trunkline.server.metric_table import MetricSpec
from trunkline.server.store_collector import StoreCollector

# When a series began would be a second series for each, and nobody asks.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """All metrics of one application. May be used from any thread."""

    def __init__(self, store: StoreCollector) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(table.HTTP_REQUESTS)
        self._seconds = self._histogram(table.HTTP_SECONDS)
        self._received = self._counter(table.HTTP_RECEIVED)
        self._sent = self._counter(table.HTTP_SENT)
        self.in_flight = self._gauge(table.HTTP_IN_FLIGHT)
        self._live = self._counter(table.LIVE_REQUESTS)
        self._jobs = self._histogram(table.JOB_DURATION)
        self._gauge(table.BUILD).labels(trunkline.__version__).set(1)
        self._registry.register(store)

    def count_request(
        self, route: str, method: str, status: int, seconds: float, num_in: int, num_out: int
    ) -> None:
        """An HTTP request is through.

        Args:
            route: the route's template, not the path.
            num_in: bytes of the request's body.
            num_out: bytes of the response's body.
        """
        self._requests.labels(route, method, f"{status // 100}xx").inc()
        self._seconds.labels(route, method).observe(seconds)
        self._received.labels(route, method).inc(num_in)
        self._sent.labels(route, method).inc(num_out)

    def count_live(self, endpoint: str, status: int) -> None:
        """A request that a client waited for has ended."""
        self._live.labels(endpoint, str(status)).inc()

    def count_job(self, kind: str, result: str, seconds: float) -> None:
        """A batch was validated or finalized; see `metric_table.JOB_DURATION`."""
        self._jobs.labels(kind, result).observe(seconds)

    def page(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _counter(self, spec: MetricSpec) -> Counter:
        return Counter(spec.name, spec.help, spec.labels, registry=self._registry)

    def _gauge(self, spec: MetricSpec) -> Gauge:
        return Gauge(spec.name, spec.help, spec.labels, registry=self._registry)

    def _histogram(self, spec: MetricSpec) -> Histogram:
        return Histogram(
            spec.name, spec.help, spec.labels, registry=self._registry, buckets=spec.buckets
        )
