"""What /metrics shows, in Prometheus' form: the engine's counters, and requests by path and status."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linmu.serving.counters import Counters, Histogram
from linmu.serving.engine import Engine

GAUGES = {
    "queued": "Requests that wait for a place",
    "reading": "Prompts that are being read",
    "decoding": "Answers that are being decoded",
}
TOTALS = {
    "prompt_tokens": "Tokens of prompts, cached ones included",
    "cached_tokens": "Tokens of prompts that kept states had read",
    "completion_tokens": "Tokens generated",
}
HISTOGRAMS = {
    "step_s": ("step_seconds", "Seconds of a decode step"),
    "step_rows": ("step_rows", "Answers in a decode step"),
    "queue_s": ("queue_seconds", "Seconds that a request waited for a place"),
    "first_token_s": ("first_token_seconds", "Seconds from a request to its first token"),
}


class EngineMetrics(Collector):
    """The engine's counters at the moment they are asked for."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        counters = self._engine.counters()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"linmu_{name}", text, value=getattr(counters, name))
        for name, text in TOTALS.items():
            yield CounterMetricFamily(f"linmu_{name}", text, value=getattr(counters, name))
        requests = CounterMetricFamily("linmu_requests", "Requests by how they ended", labels=["outcome"])
        for outcome, count in sorted(counters.requests.items()):
            requests.add_metric([outcome], count)
        yield requests
        yield from _histograms(counters)


class HttpMetrics:
    """ASGI middleware that counts responses by path and status."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry):
        self._app = app
        self._responses = Counter(
            "linmu_http_responses", "Responses by path and status", ["path", "status"], registry=registry
        )
        self._open = Gauge("linmu_http_open_requests", "Requests that are not answered whole", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count one."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = "none"  # nothing was sent: the client went away

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        with self._open.track_inprogress():
            try:
                await self._app(scope, receive, counted)
            finally:
                route = scope.get("route")  # paths that nobody serves are one: their names are anybody's
                self._responses.labels(getattr(route, "path", "other"), status).inc()


def _histograms(counters: Counters) -> Iterable[Metric]:
    for field, (name, text) in HISTOGRAMS.items():
        histogram: Histogram = getattr(counters, field)
        total, buckets = 0, []
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            total += count
            buckets.append((bound, total))
        yield HistogramMetricFamily(f"linmu_{name}", text, buckets=buckets, sum_value=histogram.total)
