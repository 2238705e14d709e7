"""Metrics for Prometheus (`GET /metrics`), and the access log in JSON.

Several processes behind one address write their values into the folder
`PROMETHEUS_MULTIPROC_DIR`, and the process that answers `/metrics` adds them up.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone

import orjson
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

__all__ = ["METRICS_PATH", "Metrics", "MetricsMiddleware"]

METRICS_PATH = "/metrics"

_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_PATHS = {PREDICT_PATH, MODELS_PATH, HEALTH_PATH, METRICS_PATH, "/"}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one application."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "phospho_requests",
            "Requests by path and by the status of their response.",
            ("path", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "phospho_request_seconds",
            "From the head of a request to the end of its response.",
            ("path",),
            buckets=_BUCKETS,
            registry=registry,
        )
        self.images = Counter(
            "phospho_images_answered", "Images that got an answer.", registry=registry
        )
        self._in_queue = self._gauge("phospho_in_queue", "Requests that wait for a worker.")
        self._in_flight = self._gauge("phospho_in_flight", "Requests that are being answered.")

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self._registry, multiprocess_mode="livesum")

    @contextlib.contextmanager
    def queued(self) -> Iterator[Callable[[], None]]:
        """Count a request as waiting, and as in flight after the yielded function was called."""
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
        """Write all metrics in Prometheus' text format."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class MetricsMiddleware:
    """ASGI middleware that counts requests, measures their time, and can log them as JSON.

    A log line has nothing of the request except its method, a path of this server, and the
    lengths: no prompt, no image, no key.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, received, sent = 500, 0, 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        begun, started = datetime.now(timezone.utc), time.perf_counter()
        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            seconds = time.perf_counter() - started
            # Another path could be anything, for example a prompt.
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            if self._log:
                line = {
                    "time": begun.isoformat(timespec="milliseconds"),
                    "client": (scope.get("client") or ("",))[0],
                    "method": scope["method"] if scope["method"] in _METHODS else "other",
                    "path": path,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "bytes_received": received,
                    "bytes_sent": sent,
                }
                # One write for the line, because other processes write to the same output.
                print(orjson.dumps(line).decode() + "\n", end="", flush=True)  # noqa: T201
