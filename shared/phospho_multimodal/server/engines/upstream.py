"""The way to an OpenAI-compatible server: its address and key, one exchange, and its failures."""

from __future__ import annotations

import codecs
import logging
import math
import re
import time
from typing import TYPE_CHECKING, Any
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

if TYPE_CHECKING:
    from collections.abc import Iterable

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
"""The environment variable with the upstream's key: a command line can be read by others."""

PASSING = frozenset({408, 425, 429, 502, 503, 504, *range(520, 530)})
"""Statuses that pass by themselves; 520 to 529 are those of proxies, and 529 is "overloaded"."""

_OK = 200
_VERSION = re.compile(r"/v\d{1,2}(?:\.\d+)?(?:(?:alpha|beta|preview)\d*)?(?=/|$)", re.IGNORECASE)
_ROUTE = re.compile(r"/(?:chat/completions|models)/*$")  # an address that was copied with its route
_LONGEST_RETRY_AFTER = 60  # our clients fail at once above that
_RETRY_AFTER = 2  # seconds, where the upstream does not say

logger = logging.getLogger(__name__)


class UpstreamAway(EngineBusy):
    """The upstream gave no answer.

    Attributes:
        no_connection: Whether nothing listens there; otherwise the upstream was busy or slow.
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
    """One upstream. Neither its key nor what is sent is ever in a log, an error or a repr."""

    def __init__(self, url: str, *, api_key: str | None) -> None:
        """Take the address.

        Args:
            url: The server's, with `/v1` at its end or without.
            api_key: Sent as a Bearer token; `None` sends none.

        Raises:
            ConfigurationError: It is no URL of a server, or the key cannot be sent.
        """
        self.root, self.base = _addresses(url)
        self._settings = Settings(base_url=self.base, api_key=_checked_key(api_key))
        self.is_local = is_loopback(self._settings.host)
        self._pool = AsyncConnectionPool(self._settings)
        if api_key and self.base.startswith("http:") and not self.is_local:
            logger.warning("The key for %s goes there over plain http.", self.root)

    def __repr__(self) -> str:
        return f"Upstream({self.root!r})"

    async def send(self, method: str, url: str, *pieces: bytes, seconds: float) -> HttpResponse:
        """Send one request.

        Args:
            method: GET or POST.
            url: In full.
            *pieces: The body, as JSON.
            seconds: How long the answer may take.

        Returns:
            The response, whatever its status.

        Raises:
            UpstreamAway: There was none.
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
        # Outside the handler: httpx's error holds the request, and with it the key.
        raise failure

    async def post(self, path: str, *pieces: bytes, seconds: float) -> HttpResponse:
        """Send JSON to a path below the base; the rest is as in `send`."""
        return await self.send("POST", self.base + path, *pieces, seconds=seconds)

    async def close(self) -> None:
        """Close the idle connections."""
        await self._pool.aclose()

    def failure(
        self, reply: HttpResponse, *, hide: Iterable[str] = ()
    ) -> EngineBusy | EngineFailed:
        """Tell what an answer other than a 200 means for whoever asked.

        Args:
            reply: The answer.
            hide: What was sent, and must not come back in a log.

        Returns:
            Busy, if it may pass by itself; otherwise what the upstream said.
        """
        if reply.status_code in PASSING:
            reason = f"{self.root} answered {reply.status_code}"
            return UpstreamAway(reason, retry_after=_retry_after(reply))
        words = self.quoted(reply.body.decode(errors="replace"), hide=hide)
        return EngineFailed(f"The upstream {self.root} answered {reply.status_code}: {words}")

    def quoted(self, words: str, *, hide: Iterable[str] = ()) -> str:
        """Shorten what the upstream says, without its key and what was sent."""
        return quote(words, hide=(self._settings.api_key or "", *hide))

    def _headers(self, body: RequestBody) -> dict[str, str]:
        length = {"content-type": "application/json", "content-length": str(body.size)}
        return {**self._settings.headers(), **(length if body.size else {})}


def read_json(reply: HttpResponse) -> Any:
    """Decode a body, with a byte order mark or without, or give `None` if it is not JSON."""
    try:
        return orjson.loads(reply.body.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError:
        return None


def no_answer(reply: HttpResponse) -> bool:
    """Tell whether a status is anything but a 200."""
    return reply.status_code != _OK


def _addresses(url: str) -> tuple[str, str]:
    """Give the server's address, and the address below which its OpenAI routes are."""
    problem = None
    try:
        parts = urlsplit(url.strip().rstrip("/"))
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            problem = "it begins with http:// or https:// and a host"
        elif parts.username or parts.password:
            problem = f"it carries no credentials; the key goes into {KEY_VARIABLE}"
        elif parts.query or parts.fragment:
            problem = "it has neither a query nor a fragment"
        httpx.URL(url)  # which refuses more: a host that no name server could know
    except (ValueError, httpx.InvalidURL):
        problem = "it is no URL"
    if problem is not None:
        # The URL itself may hold a password.
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
        message = f"The key in {KEY_VARIABLE} holds characters that no HTTP header can carry."
        raise ConfigurationError(message)
    return key or None


def _retry_after(reply: HttpResponse) -> int:
    seconds = parse_retry_after(reply.headers.get("retry-after"), now=time.time())
    wanted = _RETRY_AFTER if seconds is None else math.ceil(seconds)
    return min(max(wanted, 1), _LONGEST_RETRY_AFTER)
