"""Build an httpx request from a step, and read the response."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import httpx

from phospho_multimodal.errors import ConfigurationError, PhosphoError
from phospho_multimodal.exchange.steps import DeadlineError, HttpResponse, SendRequest
from phospho_multimodal.settings import Settings, Timeouts

__all__ = [
    "DEADLINE",
    "check_borrowed",
    "foreign_errors_as_httpx",
    "make_request",
    "read_response",
    "read_response_async",
]

DEADLINE = "phospho.deadline"
"""The request extension that holds the deadline."""

_MAX_RESPONSE_BYTES = 10 * 1024 * 1024
_FRAMING_HEADERS = {"content-length", "transfer-encoding"}


def check_borrowed(
    settings: Settings, http_client: object, wanted: type[httpx.Client | httpx.AsyncClient]
) -> None:
    """Raise `ConfigurationError` if a user's client is of the wrong class or ignores a setting."""
    if http_client is None:
        return
    if not isinstance(http_client, wanted):
        given = type(http_client).__name__
        message = f"http_client= has to be an httpx.{wanted.__name__}, got a {given}."
        raise ConfigurationError(message)
    if settings.proxy is not None or settings.verify is not True:
        message = "proxy= and verify= belong to the http client: set them on the one you pass in."
        raise ConfigurationError(message)


def make_request(
    step: SendRequest, timeouts: Timeouts, borrowed: httpx.Client | httpx.AsyncClient | None = None
) -> httpx.Request:
    """Build the request of a step, with timeouts that end at its deadline.

    The request streams the step's own body, which notes when all of it was passed on. A borrowed
    client adds its own headers and cookies.
    """
    if borrowed is None:
        url, host = _parsed(step.url)
        headers: Any = {"host": host, **step.headers}
        request = httpx.Request(step.method, url, headers=headers, stream=step.body)
    else:
        request = borrowed.build_request(step.method, step.url, headers=step.headers)
        if step.body.size:
            # httpx marks a request built without a body as read, and some transports send what was
            # read. So build it again with the stream instead of assigning the stream.
            url, headers = request.url, request.headers
            request = httpx.Request(step.method, url, headers=headers, stream=step.body)
    _check_deadline(step.deadline)
    request.extensions[DEADLINE] = step.deadline
    request.extensions["timeout"] = bounds = _bounded(timeouts, step.deadline)
    if step.deadline is not None and isinstance(borrowed, httpx.Client):
        # A borrowed connection may be shared (HTTP/2), so it is not cut at the deadline. Instead,
        # each phase that httpx traces begins with only the time that is left.
        request.extensions["trace"] = partial(_bound_again, bounds, timeouts, step.deadline)
    return request


def read_response(response: httpx.Response, deadline: float | None) -> HttpResponse:
    """Read at most 10 MB of a response, and close it."""
    body = bytearray()
    try:
        for piece in response.iter_bytes():
            body += piece
            _check_deadline(deadline)
            if len(body) > _MAX_RESPONSE_BYTES:
                break
        if not _FRAMING_HEADERS & response.headers.keys():
            # Such a body ends with the connection, which the deadline may have cut.
            _check_deadline(deadline)
    finally:
        response.close()
    return HttpResponse(response.status_code, response.headers, bytes(body))


async def read_response_async(response: httpx.Response) -> HttpResponse:
    """Read at most 10 MB of a response, and close it. The caller's cancel scope ends it."""
    body = bytearray()
    try:
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > _MAX_RESPONSE_BYTES:
                break
    finally:
        await response.aclose()
    return HttpResponse(response.status_code, response.headers, bytes(body))


@contextlib.contextmanager
def foreign_errors_as_httpx() -> Iterator[None]:
    """Turn any error of a borrowed client's transport into an httpx error.

    httpx-aiohttp lets some of aiohttp's errors through, and an ASGI app raises its own.
    """
    try:
        yield
    except (httpx.RequestError, DeadlineError, PhosphoError):
        raise
    except Exception as error:  # noqa: BLE001 - the transport may be anybody's
        message = f"{type(error).__name__}: {error}"
        raise httpx.TransportError(message) from None


def _bounded(timeouts: Timeouts, deadline: float | None) -> dict[str, float | None]:
    """Bound each timeout by the time left, which is never 0: a socket would not wait at all."""
    bounds = {"connect": timeouts.connect, "read": timeouts.read, "write": timeouts.write}
    if deadline is not None:
        left = max(0.001, deadline - time.monotonic())
        bounds = {k: left if limit is None else min(limit, left) for k, limit in bounds.items()}
    return {**bounds, "pool": None}  # a client waits for its slot before it builds a request


def _bound_again(
    bounds: dict[str, float | None],
    timeouts: Timeouts,
    deadline: float,
    event: str,
    info: Mapping[str, Any],
) -> None:
    del event, info
    bounds.update(_bounded(timeouts, deadline))


@lru_cache(maxsize=64)  # httpx takes 60 µs to parse a URL
def _parsed(url: str) -> tuple[httpx.URL, str]:
    """Parse a URL, and return it with its `Host` header."""
    parsed = httpx.URL(url)
    return parsed, parsed.netloc.decode("ascii")


def _check_deadline(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineError
