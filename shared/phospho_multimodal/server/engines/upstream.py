"""The way to an OpenAI-compatible server: its address and key, one exchange, and its failures."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import httpx
import orjson

from phospho_multimodal.errors import ConfigurationError, quote
from phospho_multimodal.exchange import Reply, RequestBody, Send
from phospho_multimodal.retry import parse_retry_after
from phospho_multimodal.server.engines import EngineBusy, EngineFailed
from phospho_multimodal.settings import Settings, Timeouts, is_loopback
from phospho_multimodal.transport import AsyncConnectionPool, build_request, read_async_reply

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KEY_VARIABLE", "Upstream", "no_answer", "read_json"]

KEY_VARIABLE = "PHOSPHO_UPSTREAM_API_KEY"
"""The environment variable with the upstream's key: a command line can be read by others."""

_PASSING = frozenset({408, 425, 429, 502, 503, 504})
_OK = 200
_LONGEST_RETRY_AFTER = 60  # our clients fail at once above that
_RETRY_AFTER = 2  # seconds, where the upstream does not say

logger = logging.getLogger(__name__)


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
        self._pool = AsyncConnectionPool(self._settings)
        if api_key and self.base.startswith("http:") and not is_loopback(self._settings.host):
            logger.warning("The key for %s goes there over plain http.", self.root)

    def __repr__(self) -> str:
        return f"Upstream({self.root!r})"

    async def get(self, url: str, *, seconds: float) -> Reply:
        """Get something.

        Args:
            url: In full.
            seconds: How long it may take.

        Returns:
            The answer, whatever its status.

        Raises:
            EngineBusy: There was none.
        """
        return await self._exchange("GET", url, RequestBody(b""), seconds)

    async def post(self, path: str, *pieces: bytes, seconds: float) -> Reply:
        """Send JSON.

        Args:
            path: Below the address's `/v1`.
            *pieces: The body.
            seconds: How long it may take.

        Returns:
            The answer, whatever its status.

        Raises:
            EngineBusy: There was none.
        """
        return await self._exchange("POST", self.base + path, RequestBody(*pieces), seconds)

    async def close(self) -> None:
        """Close the idle connections."""
        await self._pool.aclose()

    def failure(self, reply: Reply, *, hide: Iterable[str] = ()) -> EngineBusy | EngineFailed:
        """Tell what an answer other than a 200 means for whoever asked.

        Args:
            reply: The answer.
            hide: What was sent, and must not come back in a log.

        Returns:
            Busy, if it may pass by itself; otherwise what the upstream said.
        """
        if reply.status_code in _PASSING:
            logger.warning("The upstream %s answered %d.", self.root, reply.status_code)
            return EngineBusy(_retry_after(reply))
        secrets = (self._settings.api_key or "", *hide)
        words = quote(reply.body.decode(errors="replace"), hide=secrets)
        return EngineFailed(f"The upstream {self.root} answered {reply.status_code}: {words}")

    async def _exchange(self, method: str, url: str, body: RequestBody, seconds: float) -> Reply:
        reason = f"nothing within {seconds:g} s"
        with anyio.move_on_after(seconds):
            try:
                step = Send(method, url, self._headers(body), body, None)
                request = build_request(step, Timeouts(read=seconds), None)
                return await read_async_reply(await self._pool.handle_async_request(request))
            except httpx.RequestError as lost:
                reason = type(lost).__name__
        # Outside the handler: httpx's error holds the request, and with it the key.
        raise self._away(reason)

    def _away(self, reason: str) -> EngineBusy:
        logger.warning("The upstream %s did not answer: %s.", self.root, reason)
        return EngineBusy(_RETRY_AFTER)

    def _headers(self, body: RequestBody) -> dict[str, str]:
        length = {"content-type": "application/json", "content-length": str(body.size)}
        return {**self._settings.headers(), **(length if body.size else {})}


def read_json(reply: Reply) -> Any:
    """Decode an answer's body, or give `None` if it is no JSON."""
    try:
        return orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return None


def no_answer(reply: Reply) -> bool:
    """Tell whether a status is anything but a 200."""
    return reply.status_code != _OK


def _addresses(url: str) -> tuple[str, str]:
    """Give the server's address without `/v1` and with it."""
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
    root = parts.geturl().removesuffix("/v1")
    return root, f"{root}/v1"


def _checked_key(api_key: str | None) -> str | None:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        message = f"The key in {KEY_VARIABLE} holds characters that no HTTP header can carry."
        raise ConfigurationError(message)
    return key or None


def _retry_after(reply: Reply) -> int:
    seconds = parse_retry_after(reply.headers.get("retry-after"), now=time.time())
    wanted = _RETRY_AFTER if seconds is None else math.ceil(seconds)
    return min(max(wanted, 1), _LONGEST_RETRY_AFTER)
