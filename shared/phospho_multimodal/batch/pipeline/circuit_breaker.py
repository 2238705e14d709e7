"""Waiting for an endpoint that refuses every request: a rate limit, a restart, an outage.

Such a refusal says nothing about an image. Its row stays pending, all requests wait, and then the
same image is sent again.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time
from collections.abc import Awaitable, Callable

from phospho_multimodal.batch.report.figures import duration
from phospho_multimodal.errors import (
    APIStatusError,
    ConfigurationError,
    ConnectionFailedError,
    PhosphoError,
    RateLimitedError,
    ReplyLostError,
    UnexpectedReplyError,
)

__all__ = ["MAX_OUTAGE", "CircuitBreaker", "FailureStreak", "check_max_outage", "is_refusal"]

logger = logging.getLogger("phospho_multimodal")

MAX_OUTAGE = 600.0
"""Seconds without any answer after which a job ends, by default."""

_FIRST_DELAY = 0.5  # seconds; it doubles with each round of refusals
_LONGEST_DELAY = 60.0
_LOOK_UP = 0.25
_UNAVAILABLE = 503


def is_refusal(error: PhosphoError | None) -> bool:
    """Return whether an error says only that the endpoint takes no requests now.

    These requests were never sent, were rate limited (429), or met an endpoint that is not ready
    (503). None of them is billed.
    """
    if isinstance(error, APIStatusError):
        return isinstance(error, RateLimitedError) or error.status_code == _UNAVAILABLE
    return isinstance(error, ConnectionFailedError)


def check_max_outage(seconds: float) -> float:
    """Return how many seconds a job may wait for its endpoint, or reject the number."""
    given: object = seconds  # from a caller without types
    if not isinstance(given, (int, float)) or isinstance(given, bool) or not given >= 0:
        message = f"max_outage must be 0 seconds or more, got {given!r}. Nothing was sent."
        raise ConfigurationError(message)
    return float(given)


class CircuitBreaker:
    """Holds all requests back while the endpoint refuses them, on one event loop."""

    def __init__(
        self,
        max_outage: float = MAX_OUTAGE,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._max_outage = max_outage
        self._clock = clock
        self._sleep = sleep
        self._until = -math.inf  # nothing is sent before
        self._opened = -math.inf
        self._rounds = 0
        self._since: float | None = None  # the first refusal after the last answer
        self._reason = ""
        self.answers = 0
        """Requests that the endpoint has answered, also with an error about the image."""

    @property
    def waits_for(self) -> str | None:
        """What the job waits for now, in words; `None` if it does not wait."""
        left = self._until - self._clock()
        if left <= 0:
            return None
        return f"{self._reason}: the next request is sent in {duration(max(1.0, left))}"

    async def wait(self, stopping: Callable[[], object | None]) -> None:
        """Wait until requests may be sent, or until `stopping` returns a reason to stop."""
        while (left := self._until - self._clock()) > 0 and stopping() is None:
            await self._sleep(min(left, _LOOK_UP))

    def note_answer(self) -> None:
        """Note that the endpoint takes requests. An outage is over."""
        self.answers += 1
        self._since = None
        self._rounds = 0

    def note_refusal(self, error: PhosphoError, started: float) -> PhosphoError | None:
        """Note a refused request, and return the error that ends the job after too long an outage.

        Args:
            error: The refusal.
            started: When the request was sent, on the clock.
        """
        now = self._clock()
        if self._since is None:
            self._since = now
        end = self._since + self._max_outage
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if now >= end or (asked is not None and now + asked > end):
            return self._give_up(error, asked)
        is_new = started >= self._opened  # requests of the same round say nothing new
        if is_new:
            self._rounds += 1
            self._opened = now
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._rounds - 1, 16))
        if asked is not None and asked >= _FIRST_DELAY:
            delay = asked
        if now + delay > self._until:
            self._until = min(now + delay, end)
            self._reason = _describe(error)
            if is_new:
                logger.warning("%s; the batch waits for %.1f s", self._reason, delay)
        return None

    def _give_up(self, error: PhosphoError, asked: float | None) -> PhosphoError:
        twin = copy.copy(error)
        waited = f"max_outage allows {duration(self._max_outage)} without an answer"
        if asked is not None:
            waited += f", and the endpoint asks to wait for {duration(asked)}"
        message = (
            f"{error} The job stops: {waited}. Rows without an answer stay pending. The same call"
            " goes on from there."
        )
        twin.args = (message,)
        return twin


def _describe(error: PhosphoError) -> str:
    if isinstance(error, RateLimitedError):
        return "The endpoint limits the rate (429)"
    if isinstance(error, APIStatusError):
        return f"The endpoint is not ready ({error.status_code})"
    return "The endpoint cannot be reached"


class FailureStreak:
    """Counts failures in a row that any image may have, because the endpoint does not answer."""

    _MOST = 50
    _NO_ANSWER = (APIStatusError, ConnectionFailedError, ReplyLostError, UnexpectedReplyError)

    def __init__(self) -> None:
        self._length = 0

    def note(self, error: PhosphoError | None) -> None:
        """Note how an image ended; `None` is an answer."""
        self._length = self._length + 1 if isinstance(error, self._NO_ANSWER) else 0

    @property
    def is_too_long(self) -> bool:
        """Whether further requests would only make failed rows."""
        return self._length >= self._MOST
