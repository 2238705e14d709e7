"""Decide whether a failed attempt is retried, and after how long."""

from __future__ import annotations

import math
import random
import threading
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from phospho_multimodal.errors import (
    APIStatusError,
    ConnectionFailedError,
    PhosphoError,
    ReplyLostError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LONGEST_RETRY_AFTER", "RetryBudget", "RetryPolicy", "parse_retry_after"]

LONGEST_RETRY_AFTER = 60.0
"""Seconds. If a server asks for more, the call fails immediately instead of waiting."""

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 8.0
_AGAIN = frozenset({408, 425, 429, 503})
_LIKE_A_LOST_REPLY = frozenset({502, 504})  # the server behind the gateway may have answered
_ONCE = 500  # it does not tell an outage from a refused input: see the contract


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Return the seconds of a `Retry-After` header, or `None` if there is none that is valid.

    Args:
        value: The header, with seconds or an HTTP date.
        now: The wall clock, in seconds since the epoch.
    """
    if value is None:
        return None
    text = value.strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=timezone.utc)
            seconds = moment.timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return None
        return max(0.0, seconds)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


class RetryBudget:
    """Allows a client one retry for five first attempts, and at least three retries.

    So during an outage the service receives at most 20 % more requests, not three times as many.
    """

    share = 0.2
    minimum = 3

    def __init__(self) -> None:
        self._first_tries = 0
        self._retries = 0
        self._lock = threading.Lock()

    def count_first_try(self) -> None:
        """Count the first attempt of a call."""
        with self._lock:
            self._first_tries += 1

    def take(self) -> bool:
        """Take one retry, and return whether there was one left."""
        with self._lock:
            if self._retries >= max(self.minimum, math.floor(self._first_tries * self.share)):
                return False
            self._retries += 1
            return True


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Decides about one failed attempt."""

    max_retries: int = 2
    retry_lost_replies: bool = False
    jitter: Callable[[float, float], float] = field(default=random.uniform, repr=False)

    def delay(self, error: PhosphoError, *, failures: int, service_errors: int) -> float | None:
        """Return the seconds to wait before the next attempt, or `None` if there is none.

        Args:
            error: The error of the attempt.
            failures: How many attempts of this call have failed, including this one.
            service_errors: How many of them had status 500.
        """
        if failures > self.max_retries or not self._may_help(error, service_errors):
            return None
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is not None:
            return asked if asked <= LONGEST_RETRY_AFTER else None
        ceiling = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (failures - 1))
        return self.jitter(0.0, ceiling)

    def _may_help(self, error: PhosphoError, service_errors: int) -> bool:
        if isinstance(error, APIStatusError):
            if error.status_code == _ONCE:
                return service_errors <= 1
            if error.status_code in _LIKE_A_LOST_REPLY:
                return self.retry_lost_replies
            return error.status_code in _AGAIN
        if isinstance(error, ReplyLostError):
            return self.retry_lost_replies
        return isinstance(error, ConnectionFailedError)
