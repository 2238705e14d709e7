"""Requests to an OpenAI-compatible server: its address, its key, its errors."""

from __future__ import annotations

import codecs
import json
import logging
import math
import re
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import orjson

from phospho_multimodal.errors import ConfigurationError, quote
from phospho_multimodal.exchange.retry import parse_retry_after
from phospho_multimodal.exchange.steps import HttpResponse, RequestBody, SendRequest
from phospho_multimodal.server.engines import EngineBusy, EngineFailed
from phospho_multimodal.settings import Settings, Timeouts, is_loopback
from phospho_multimodal.transport.pool import AsyncConnectionPool
from phospho_multimodal.transport.requests import make_request, read_response_async

__all__ = [
    "KEY_VARIABLE",
    "PASSING",
    "HttpResponse",
    "Upstream",
    "UpstreamAway",
    "no_answer",
    "read_json",
]

KEY_VARIABLE = "PHOSPHO_UPSTREAM_API_KEY"
"""The environment variable with the upstream's key; other users can read a command line."""

PASSING = frozenset({408, 425, 429, 502, 503, 504, *range(520, 530)})
"""Statuses of errors that pass by themselves; proxies send 520 to 529."""

_OK = (200, 201)
_VERSION = re.compile(r"/v\d{1,2}(?:\.\d+)?(?:(?:alpha|beta|preview)\d*)?(?=/|$)", re.IGNORECASE)
_ROUTE = re.compile(
    r"/(?:chat/completions|models)/*$"
)  # of an address that was copied with its route
_LONGEST_RETRY_AFTER = 60  # our clients do not wait for longer
_RETRY_AFTER = 2  # seconds, if the upstream does not say

logger = logging.getLogger(__name__)


class UpstreamAway(EngineBusy):
    """The upstream did not answer.

    Attributes:
        no_connection: Whether nothing accepts connections at the address.
        timed_out: Whether the time for an answer was over.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after: int = _RETRY_AFTER,
        no_connection: bool = False,
        timed_out: bool = False,
    ) -> None:
        super().__init__(retry_after)
        self.reason = reason
        self.timed_out = timed_out
        self.no_connection = no_connection

    def __str__(self) -> str:
        return self.reason


class Upstream:
    """One upstream. No log, error or repr contains its key or what is sent to it."""

    def __init__(self, url: str, *, api_key: str | None) -> None:
        """Raise a ConfigurationError if the URL or the key cannot be used."""
        self.root, self.base = _addresses(url)
        self._settings = Settings(base_url=self.base, api_key=_checked_key(api_key))
        self.is_local = is_loopback(self._settings.host)
        self._pool = AsyncConnectionPool(self._settings)
        if api_key and self.base.startswith("http:") and not self.is_local:
            logger.warning("The key for %s is sent over plain http.", self.root)

    def __repr__(self) -> str:
        return f"Upstream({self.root!r})"

    async def send(self, method: str, url: str, *pieces: bytes, seconds: float) -> HttpResponse:
        """Send one request, whose body is JSON in pieces.

        Returns:
            The response, whatever its status.

        Raises:
            UpstreamAway: There was no response within the time.
        """
        body = RequestBody(*(pieces or (b"",)))
        failure = UpstreamAway(f"{self.root}: nothing within {seconds:g} s", timed_out=True)
        with anyio.move_on_after(seconds):
            try:
                step = SendRequest(method, url, self._headers(body), body, None)
                request = make_request(step, Timeouts(read=seconds))
                return await read_response_async(await self._pool.handle_async_request(request))
            except httpx.RequestError as lost:
                refused = isinstance(lost, (httpx.ConnectError, httpx.ConnectTimeout))
                reason = f"{self.root}: {type(lost).__name__}"
                late = isinstance(lost, httpx.ReadTimeout)
                failure = UpstreamAway(reason, no_connection=refused, timed_out=late)
        # Outside the handler, because httpx's error has the request with the key.
        raise failure

    async def post(self, path: str, *pieces: bytes, seconds: float) -> HttpResponse:
        """Send JSON to a path below the base URL; see `send`."""
        return await self.send("POST", self.base + path, *pieces, seconds=seconds)

    async def close(self) -> None:
        """Close the idle connections."""
        await self._pool.aclose()

    def failure(
        self, reply: HttpResponse, *, hide: Iterable[str] = ()
    ) -> EngineBusy | EngineFailed:
        """Make the exception for a response that is not a 200, without the texts to hide."""
        if reply.status_code in PASSING:
            reason = f"{self.root} answered {reply.status_code}"
            return UpstreamAway(reason, retry_after=_retry_after(reply))
        words = self.quoted(reply.body.decode(errors="replace"), hide=hide)
        return EngineFailed(f"The upstream {self.root} answered {reply.status_code}: {words}")

    def quoted(self, words: str, *, hide: Iterable[str] = ()) -> str:
        """Shorten the upstream's text, and remove its key and the texts to hide."""
        return quote(words, hide=(self._settings.api_key or "", *hide))

    def _headers(self, body: RequestBody) -> dict[str, str]:
        length = {"content-type": "application/json", "content-length": str(body.size)}
        return {**self._settings.headers(), **(length if body.size else {})}


def read_json(reply: HttpResponse) -> Any:
    """Decode a body, with or without a byte order mark; `None` if it is not JSON."""
    body = reply.body.removeprefix(codecs.BOM_UTF8)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)  # which accepts NaN and half an emoji, as Python's servers write
    except (ValueError, RecursionError):
        return None


def no_answer(reply: HttpResponse) -> bool:
    """Check whether the status is an error."""
    return reply.status_code not in _OK


def _addresses(url: str) -> tuple[str, str]:
    """Give the server's address, and the base URL of its OpenAI routes."""
    problem = None
    try:
        parts = urlsplit(url.strip().rstrip("/"))
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            problem = "it must begin with http:// or https:// and a host"
        elif parts.username or parts.password:
            problem = f"it must not contain credentials; set the key in {KEY_VARIABLE}"
        elif parts.query or parts.fragment:
            problem = "it must not contain a query or a fragment"
        httpx.URL(url)  # rejects hosts that cannot exist
    except (ValueError, httpx.InvalidURL):
        problem = "it is not a URL"
    if problem is not None:
        # The URL may contain a password.
        message = f"The address of the upstream (--upstream) cannot be used: {problem}."
        raise ConfigurationError(message)
    address = _ROUTE.sub("", parts.geturl())
    path = urlsplit(address).path
    version = _VERSION.search(path)
    if version is None:
        return address, f"{address}/v1"
    return address.removesuffix(path) + path[: version.start()], address


def _checked_key(api_key: str | None) -> str | None:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        message = (
            f"The key in {KEY_VARIABLE} contains characters that are invalid in an HTTP header."
        )
        raise ConfigurationError(message)
    return key or None


def _retry_after(reply: HttpResponse) -> int:
    seconds = parse_retry_after(reply.headers.get("retry-after"), now=time.time())
    wanted = _RETRY_AFTER if seconds is None else math.ceil(seconds)
    return min(max(wanted, 1), _LONGEST_RETRY_AFTER)
