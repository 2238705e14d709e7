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
        """Put together what calls share."""
        return cls(
            settings=settings,
            spending=Spending() if spending is None else spending,
            retry=RetryPolicy(settings.max_retries, settings.retry_lost_replies),
            budget=RetryBudget(),
            rate=RateLimit(settings.requests_per_second),
        )


@dataclass(slots=True)
class RequestState:
    """One question on its way.

    Attributes:
        body: What is sent, in pieces: a megabyte of base64 is not copied to stand between quotes.
        secrets: Key, text and image: what no error may repeat.
        deadline: On the clock of the exchange.
        reservation: Money that was set aside before; without it, each attempt reserves its own.
        stopped_by: Asked before each attempt: an error of another question that ends this one.
        attempts: How often it was sent.
        in_doubt: Images that may have been billed without an answer.
        service_errors: How often the answer was a 500.
        request_id: The `x-request-id` of the last answer.
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
        """Give the secrets as text; that of an image is made when an error asks, and only then."""
        for secret in self.secrets:
            yield secret if isinstance(secret, str) else str(secret, "ascii")


def send_with_retries(shared: ClientState, call: RequestState) -> Generator[Step, Any, str]:
    """Make attempts until there is an answer or no hope of one.

    Args:
        shared: What the client's calls share.
        call: The question; it keeps count of what becomes of it.

    Yields:
        Steps for the client to do.

    Returns:
        The answer's text.

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
                raise _final(failure or _not_asked(abort_reason), call)
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
    """Do something with the ledger; one in a file may have to wait for another process.

    Args:
        shared: What the client's calls share.
        work: What is to be done.

    Yields:
        The work, if it does not belong on an event loop.

    Returns:
        What came of it.
    """
    if shared.spending.path is None:
        return work()
    return cast("T", (yield RunInThread(work, computes=False)))


def reserve_budget(
    shared: ClientState, images: int = 1
) -> Generator[Step, Any, tuple[Reservation, ...]]:
    """Reserve money, and leave none reserved if the call ends before it has the reservations.

    Args:
        shared: What the client's calls share.
        images: How many.

    Yields:
        The work, if it does not belong on an event loop.

    Returns:
        A reservation for each.

    Raises:
        SpendingLimitError: The cap does not allow it. Nothing was reserved.
    """
    spending = shared.spending
    if spending.path is None:
        return spending.reserve(images)
    made: list[Reservation] = []
    given_up = threading.Event()

    def make() -> tuple[Reservation, ...]:
        if not given_up.is_set():
            made.extend(spending.reserve(images))
        if given_up.is_set():
            for reservation in made:
                reservation.release()
        return tuple(made)

    try:
        return cast("tuple[Reservation, ...]", (yield RunInThread(make, computes=False)))
    except BaseException:
        # A cancelled task does not wait for the thread that works for it, and is not told what it
        # made: whoever comes second, the thread or this, releases it.
        given_up.set()
        for reservation in made:
            spending.settle_later(reservation.release)
        raise


def _reservation(shared: ClientState, call: RequestState) -> Generator[Step, Any, Reservation]:
    reservation, call.reservation = call.reservation, None
    if reservation is not None:
        return reservation
    (reservation,) = yield from reserve_budget(shared)
    return reservation


def send_once(shared: ClientState, call: RequestState) -> Generator[Step, Any, str | PhosphoError]:
    """Send once and settle the money; a failure that can be judged is returned, not raised."""
    settings = shared.settings
    body = RequestBody(*call.body)
    reservation: Reservation | None = None
    reply: HttpResponse | None = None
    settle: Callable[[], None] | None = None
    try:
        reservation = yield from _reservation(shared, call)
        call.attempts += 1
        if call.attempts == 1:  # a call that sends nothing earns no retries
            shared.budget.count_first_try()
        outcome: str | PhosphoError
        try:
            reply = yield _request(settings, body, call.deadline)
        except TRANSPORT_FAILURES as lost:
            outcome = _transport_failure(lost, settings, call, sent=body.fully_sent)
        # Outside the handler: httpx's error holds the request, and with it the key.
        if reply is None:
            settle = _lost(call, reservation, sent=isinstance(outcome, ReplyLostError))
        else:
            outcome, settle = _judge(reply, settings, call, reservation)
        yield from run_ledger_io(shared, settle)
    except BaseException:
        # Cancelled, interrupted or closed, at whatever point: only the money is left to settle.
        # This may be on an event loop that waits for the task to end, and a generator that is
        # closed may not yield; so a file is written by the ledger's own thread, for which the
        # interpreter waits. Where a thread has begun to settle, the first end counts: both are one.
        if reservation is not None:
            came = body.fully_sent or reply is not None
            shared.spending.settle_later(settle or _lost(call, reservation, sent=came))
        raise
    return outcome


def _request(settings: Settings, body: RequestBody, deadline: float | None) -> SendRequest:
    """Make the request. No frame that waits for its answer holds the headers in a variable."""
    headers = {
        **settings.headers(),
        "content-type": "application/json",
        "content-length": str(body.size),
    }
    return SendRequest("POST", settings.url(PREDICT_PATH), headers, body, deadline)


def _judge(
    reply: HttpResponse, settings: Settings, call: RequestState, reservation: Reservation
) -> tuple[str | PhosphoError, Callable[[], None]]:
    """Tell what an answer comes to, and how its money is to be settled."""
    call.request_id = reply.headers.get("x-request-id") or call.request_id
    status = reply.status_code
    if status == _OK:
        try:
            description = read_description(reply.body, hide=call.hide())
        except UnexpectedReplyError as unexpected:
            call.in_doubt += 1
            return unexpected, reservation.mark_in_doubt
        return description, reservation.bill
    if 300 <= status < 500 or status in _FREE_SERVER_ERRORS:  # noqa: PLR2004 - HTTP's classes
        settle = reservation.release
    else:
        call.in_doubt += 1
        settle = reservation.mark_in_doubt
    if status == 500:  # noqa: PLR2004 - the one status that is tried once more only
        call.service_errors += 1
    error = status_error(
        status,
        base_url=settings.base_url,
        detail=read_detail(reply.body, hide=call.hide()),
        retry_after=parse_retry_after(reply.headers.get("retry-after"), now=time.time()),
        request_id=call.request_id,
    )
    return error, settle


def _transport_failure(
    lost: Exception, settings: Settings, call: RequestState, *, sent: bool
) -> ConnectionFailedError | ReplyLostError:
    """Judge by the body alone: transports name the same failure differently."""
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


def _lost(call: RequestState, reservation: Reservation, *, sent: bool) -> Callable[[], None]:
    """Tell how the money of an attempt without an answer is to be settled."""
    if not sent:
        return reservation.release
    call.in_doubt += 1
    return reservation.mark_in_doubt


def _delay(shared: ClientState, call: RequestState, failure: PhosphoError) -> float | None:
    """Tell after how many seconds to try again; `None` if not."""
    delay = shared.retry.delay(failure, failures=call.attempts, service_errors=call.service_errors)
    if delay is None:
        return None
    if call.deadline is not None and shared.clock() + delay >= call.deadline:
        return None
    return delay if shared.budget.take() else None


def _not_asked(abort_reason: PhosphoError) -> PhosphoError:
    """The error of a question that was not sent because another one showed that it is no use."""
    twin = copy.copy(abort_reason)
    twin.args = ("Not asked, since another image was refused for good.",)
    return twin


def _too_late(settings: Settings) -> ConnectionFailedError:
    return ConnectionFailedError(
        f"The deadline of {settings.deadline} s passed before anything could be sent: while the"
        " image was made ready, or while waiting for a free slot or for the rate. Nothing was sent."
        " Raise deadline=, max_concurrency= or requests_per_second=."
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
