"""What the server counts of itself, for Prometheus: `GET /metrics`.

With several processes behind one address (`PROMETHEUS_MULTIPROC_DIR` is set for them), each writes
its counts into files, and whichever is asked adds them all up.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phospho_multimodal.contract import HEALTH_PATH, MODELS_PATH, PREDICT_PATH

__all__ = ["METRICS_PATH", "Measured", "Metrics", "known_path"]

METRICS_PATH = "/metrics"

_KNOWN = {PREDICT_PATH, MODELS_PATH, HEALTH_PATH, METRICS_PATH, "/"}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def known_path(path: str) -> str:
    """Name a path, if it is one of the server's: any other could hold anything, and any number."""
    return path if path in _KNOWN else "other"


class Metrics:
    """One application's counts."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "phospho_requests",
            "Requests by path and by the status of their answer.",
            ("path", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "phospho_request_seconds",
            "From the head of a request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.images = Counter(
            "phospho_images_answered", "Images that got an answer.", registry=self._registry
        )
        self._in_queue = self._gauge("phospho_in_queue", "Questions that wait for their turn.")
        self._in_flight = self._gauge("phospho_in_flight", "Questions that are being answered.")

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self._registry, multiprocess_mode="livesum")

    @contextlib.contextmanager
    def queued(self) -> Iterator[Callable[[], None]]:
        """Count a question as waiting, until it is answered or given up.

        Yields:
            What to call, once, when it is its turn.
        """
        now = self._in_queue
        now.inc()

        def begin() -> None:
            nonlocal now
            now.dec()
            now = self._in_flight
            now.inc()

        try:
            yield begin
        finally:
            now.dec()

    def page(self) -> bytes:
        """Write all counts in Prometheus' own form."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class Measured:
    """ASGI middleware that counts requests and takes their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # what an exception becomes, further out

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, watched)
        finally:
            path = known_path(scope["path"])
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)
