"""One request with its retries and its money, as a generator without I/O.

`send_with_retries` yields the steps of `steps.py`. The two clients do them, one with threads and
one with await. Every decision about retries, money and errors is here, once.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from phospho_multimodal.contract import PREDICT_PATH, read_description, read_detail
from phospho_multimodal.errors import (
    APIStatusError,
    ConnectionFailedError,
    PhosphoError,
    ReplyLostError,
    SpendingLimitError,
    UnexpectedReplyError,
    quote,
    status_error,
)
from phospho_multimodal.exchange.limits import RateLimit
from phospho_multimodal.exchange.retry import (
    LONGEST_RETRY_AFTER,
    RetryBudget,
    RetryPolicy,
    parse_retry_after,
)
from phospho_multimodal.exchange.steps import (
    TRANSPORT_FAILURES,
    AcquireSlot,
    DeadlineError,
    HttpResponse,
    RequestBody,
    RunInThread,
    SendRequest,
    Sleep,
    Step,
)
from phospho_multimodal.settings import Settings
from phospho_multimodal.spending.budget import Reservation, Spending

__all__ = ["ClientState", "RequestState", "reserve_budget", "run_ledger_io", "send_with_retries"]

logger = logging.getLogger("phospho_multimodal")

T = TypeVar("T")

_OK = 200
_FREE_SERVER_ERRORS = frozenset({500, 503})


@dataclass(frozen=True, slots=True)
class ClientState:
    """What all calls of a client share, and both clients of one model."""

    settings: Settings
    spending: Spending
    retry: RetryPolicy
    budget: RetryBudget
    rate: RateLimit
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, settings: Settings, spending: Spending | None) -> ClientState:
        """Make the state for some settings."""
        return cls(
            settings=settings,
            spending=Spending() if spending is None else spending,
            retry=RetryPolicy(settings.max_retries, settings.retry_lost_replies),
            budget=RetryBudget(),
            rate=RateLimit(settings.requests_per_second),
        )


@dataclass(slots=True)
class RequestState:
    """One request, with the counts of its attempts.

    Attributes:
        body: The pieces of the body. They are not joined, so that base64 is not copied.
        secrets: The key, the prompt and the image, which no error may contain.
        deadline: The end of the call, on the clock of the client's state.
        reservation: Money that was reserved before. Without it, each attempt reserves its own.
        abort_reason: Called before each attempt. If it returns an error, nothing more is sent.
        attempts: How often the request was sent.
        in_doubt: How many images may have been billed without an answer.
        service_errors: How many responses had status 500.
        request_id: The `x-request-id` of the last response.
    """

    body: Sequence[bytes] = field(repr=False)
    secrets: tuple[str | bytes, ...] = field(repr=False)
    deadline: float | None
    reservation: Reservation | None = None
    abort_reason: Callable[[], PhosphoError | None] = field(default=lambda: None, repr=False)
    attempts: int = 0
    in_doubt: int = 0
    service_errors: int = 0
    request_id: str | None = None

    def hide(self) -> Iterator[str]:
        """Yield the secrets as text. An image becomes text only when an error asks for it."""
        for secret in self.secrets:
            yield secret if isinstance(secret, str) else str(secret, "ascii")


def send_with_retries(shared: ClientState, call: RequestState) -> Generator[Step, Any, str]:
    """Send a request until it is answered, or until no further attempt can help.

    Args:
        shared: What the client's calls share.
        call: The request. Its counts are updated.

    Yields:
        Steps for the client to do.

    Returns:
        The text of the answer.

    Raises:
        PhosphoError: See `phospho_multimodal.errors`.
    """
    failure: PhosphoError | None = None
    while True:
        release = yield AcquireSlot(call.deadline)
        if release is None:
            raise _final(failure or _too_late(shared.settings), call)
        try:
            abort_reason = call.abort_reason()
            if abort_reason is not None:
                raise _final(failure or _not_sent(abort_reason), call)
            outcome = yield from send_once(shared, call)
        except SpendingLimitError as refusal:
            raise _final(failure or refusal, call) from None
        finally:
            release()
        if isinstance(outcome, str):
            return outcome
        failure = outcome
        delay = _delay(shared, call, failure)
        if delay is None:
            raise _final(failure, call)
        logger.info(
            "attempt %d failed (%s); the next one in %.1f s",
            call.attempts,
            type(failure).__name__,
            delay,
        )
        yield Sleep(delay)


def run_ledger_io(shared: ClientState, work: Callable[[], T]) -> Generator[Step, Any, T]:
    """Use the ledger. A ledger file may be locked by another process, so it needs a thread."""
    if shared.spending.path is None:
        return work()
    return cast("T", (yield RunInThread(work, computes=False)))


def reserve_budget(
    shared: ClientState, images: int = 1
) -> Generator[Step, Any, tuple[Reservation, ...]]:
    """Reserve money for some images, or raise `SpendingLimitError`.

    If the call ends before it has the reservations, they are released.
    """
    spending = shared.spending
    if spending.path is None:
        return spending.reserve(images)
    made: list[Reservation] = []
    abandoned = threading.Event()

    def make() -> tuple[Reservation, ...]:
        if not abandoned.is_set():
            made.extend(spending.reserve(images))
        if abandoned.is_set():
            for reservation in made:
                reservation.release()
        return tuple(made)

    try:
        return cast("tuple[Reservation, ...]", (yield RunInThread(make, computes=False)))
    except BaseException:
        # A cancelled task does not wait for its thread. The later of the two releases the money.
        abandoned.set()
        for reservation in made:
            spending.settle_later(reservation.release)
        raise


def send_once(shared: ClientState, call: RequestState) -> Generator[Step, Any, str | PhosphoError]:
    """Send a request once and settle its money. Return a failure that a retry may help."""
    settings = shared.settings
    body = RequestBody(*call.body)
    reservation: Reservation | None = None
    response: HttpResponse | None = None
    settle: Callable[[], None] | None = None
    try:
        reservation, call.reservation = call.reservation, None
        if reservation is None:
            (reservation,) = yield from reserve_budget(shared)
        call.attempts += 1
        if call.attempts == 1:  # a call that sends nothing earns no retries
            shared.budget.count_first_try()
        outcome: str | PhosphoError
        try:
            response = yield _request(settings, body, call.deadline)
        except TRANSPORT_FAILURES as lost:
            outcome = _transport_failure(lost, settings, call, sent=body.fully_sent)
        # Outside the handler, because httpx's error holds the request with the key.
        if response is None:
            settle = _settle_lost(call, reservation, sent=isinstance(outcome, ReplyLostError))
        else:
            outcome, settle = _judge(response, settings, call, reservation)
        yield from run_ledger_io(shared, settle)
    except BaseException:
        # The call was cancelled, interrupted or closed. A closed generator must not yield, so the
        # money is settled later. A thread may be settling it already: the first end counts.
        if reservation is not None:
            sent = body.fully_sent or response is not None
            shared.spending.settle_later(settle or _settle_lost(call, reservation, sent=sent))
        raise
    return outcome


def _request(settings: Settings, body: RequestBody, deadline: float | None) -> SendRequest:
    """Build the step in a frame of its own: a frame that waits must not hold the headers."""
    headers = {
        **settings.headers(),
        "content-type": "application/json",
        "content-length": str(body.size),
    }
    return SendRequest("POST", settings.url(PREDICT_PATH), headers, body, deadline)


def _judge(
    response: HttpResponse, settings: Settings, call: RequestState, reservation: Reservation
) -> tuple[str | PhosphoError, Callable[[], None]]:
    """Return the outcome of a response, and the function that settles its money."""
    call.request_id = response.headers.get("x-request-id") or call.request_id
    status = response.status_code
    if status == _OK:
        try:
            description = read_description(response.body, hide=call.hide())
        except UnexpectedReplyError as unexpected:
            call.in_doubt += 1
            return unexpected, reservation.mark_in_doubt
        return description, reservation.bill
    if 300 <= status < 500 or status in _FREE_SERVER_ERRORS:  # noqa: PLR2004 - HTTP's classes
        settle = reservation.release
    else:
        call.in_doubt += 1
        settle = reservation.mark_in_doubt
    if status == 500:  # noqa: PLR2004 - the one status that is retried only once
        call.service_errors += 1
    error = status_error(
        status,
        base_url=settings.base_url,
        detail=read_detail(response.body, hide=call.hide()),
        retry_after=parse_retry_after(response.headers.get("retry-after"), now=time.time()),
        request_id=call.request_id,
    )
    return error, settle


def _transport_failure(
    lost: Exception, settings: Settings, call: RequestState, *, sent: bool
) -> ConnectionFailedError | ReplyLostError:
    """Judge by the body alone, because transports name the same failure differently."""
    if isinstance(lost, DeadlineError):
        reason = f"the deadline of {settings.deadline:g} s passed"
    else:
        words = quote(str(lost), hide=call.hide())
        reason = type(lost).__name__ + (f": {words}" if words else "")
    if sent:
        return ReplyLostError(
            f"The request was sent to {settings.base_url}, but its answer was lost ({reason})."
            " It may have been billed, so it is retried only with retry_lost_replies=True."
        )
    return ConnectionFailedError(
        f"The request did not reach {settings.base_url} ({reason}). Nothing was billed. Check the"
        " base URL, the network and the proxy; a server on this machine starts with:"
        " phospho-multimodal serve."
    )


def _settle_lost(call: RequestState, reservation: Reservation, *, sent: bool) -> Callable[[], None]:
    """Return the function that settles the money of an attempt without a response."""
    if not sent:
        return reservation.release
    call.in_doubt += 1
    return reservation.mark_in_doubt


def _delay(shared: ClientState, call: RequestState, failure: PhosphoError) -> float | None:
    """Return the seconds to wait before the next attempt, or `None` if there is none."""
    delay = shared.retry.delay(failure, failures=call.attempts, service_errors=call.service_errors)
    if delay is None:
        return None
    if call.deadline is not None and shared.clock() + delay >= call.deadline:
        return None
    return delay if shared.budget.take() else None


def _not_sent(abort_reason: PhosphoError) -> PhosphoError:
    """Make the error of a request that was not sent because of another request's fatal error."""
    twin = copy.copy(abort_reason)
    twin.args = ("Not asked, since another image was refused for good.",)
    return twin


def _too_late(settings: Settings) -> ConnectionFailedError:
    return ConnectionFailedError(
        f"The deadline of {settings.deadline} s passed while the image was prepared, or while the"
        " call waited for a free slot or for the rate limit. Nothing was sent. Raise deadline=,"
        " max_concurrency= or requests_per_second=."
    )


def _final(failure: PhosphoError, call: RequestState) -> PhosphoError:
    """Complete an error that ends a call."""
    failure.attempts = call.attempts
    failure.images_in_doubt = call.in_doubt
    asked = failure.retry_after if isinstance(failure, APIStatusError) else None
    notes = [f"Attempts: {call.attempts}."] if call.attempts > 1 else []
    if asked is not None and asked > LONGEST_RETRY_AFTER:
        notes.append(f"That is over {LONGEST_RETRY_AFTER:g} s, so it was not waited for.")
    if call.in_doubt:
        notes.append(f"Images that may have been billed: {call.in_doubt}.")
    failure.args = (" ".join([str(failure), *notes]),)
    return failure
