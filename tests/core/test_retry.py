"""One loop: what is tried again, how often, after how long."""

from __future__ import annotations

import itertools
import math
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import Driver
from fault_server import Behaviour, answer, reset, status
from phospho_multimodal import PhosphoClient, Spending
from phospho_multimodal.errors import (
    APIStatusError,
    ConnectionFailedError,
    PhosphoError,
    ReplyLostError,
    UnexpectedReplyError,
    status_error,
)
from phospho_multimodal.exchange.attempts import ClientState, RequestState, send_with_retries
from phospho_multimodal.exchange.retry import RetryBudget, RetryPolicy, parse_retry_after
from phospho_multimodal.settings import Settings
from pictures import encoded

PICTURE = encoded()
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param(None, None, id="none"),
        pytest.param("", None, id="empty"),
        pytest.param("0", 0.0, id="zero"),
        pytest.param("3", 3.0, id="seconds"),
        pytest.param(" 3 ", 3.0, id="white space"),
        pytest.param("2.5", 2.5, id="decimals"),
        pytest.param("60", 60.0, id="a minute"),
        pytest.param("61", 61.0, id="more than a minute"),
        pytest.param("99999999999999999999", 1e20, id="huge"),
        pytest.param("1e400", None, id="more than a float"),
        pytest.param("inf", None, id="infinite"),
        pytest.param("nan", None, id="not a number"),
        pytest.param("-10", None, id="negative"),
        pytest.param("soon", None, id="a word"),
        pytest.param("3 seconds", None, id="a number and a word"),
        pytest.param("1,5", None, id="a comma"),
        pytest.param(formatdate(NOW + 30, usegmt=True), 30.0, id="a date"),
        pytest.param(formatdate(NOW + 30), 30.0, id="a date with an offset"),
        pytest.param(formatdate(NOW - 3600, usegmt=True), 0.0, id="a date gone by"),
        pytest.param("Fri, 15 Jan 2027 08:00:30", 30.0, id="a date without a zone"),
        pytest.param("Friday, 15-Jan-27 08:00:30 GMT", 30.0, id="the date of RFC 850"),
        pytest.param("Fri, 99 Jan 2027 08:00:00 GMT", None, id="a date that is none"),
        pytest.param("Fri, 31 Dec 99999 23:59:59 GMT", None, id="a year beyond the calendar"),
    ],
)
def test_retry_after_is_read_in_all_its_spellings(header: str | None, seconds: float | None):
    assert parse_retry_after(header, now=NOW) == seconds


@given(st.text())
def test_retry_after_never_raises_and_never_blocks_for_ever(header: str):
    seconds = parse_retry_after(header, now=NOW)

    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


def _status(code: int, retry_after: float | None = None) -> APIStatusError:
    return status_error(code, base_url="http://x", detail=None, retry_after=retry_after)


RETRIED_ONCE = 1
RETRIED = 2
NEVER = 0


@pytest.mark.parametrize(
    ("behaviour", "retries"),
    [
        *[(status(code), NEVER) for code in (301, 400, 401, 402, 403, 404, 409, 413, 422)],
        *[(status(code), NEVER) for code in (501, 502, 504, 524)],
        *[(status(code), RETRIED) for code in (408, 425, 429, 503)],
        (status(500), RETRIED_ONCE),
        (reset(), NEVER),
        (lambda connection, _: connection.reply(200, b"?", billed=True), NEVER),
    ],
    ids=[
        *["301", "400", "401", "402", "403", "404", "409", "413", "422"],
        *["501", "502", "504", "524"],
        *["408", "425", "429", "503"],
        "500",
        "a lost reply",
        "an unexpected reply",
    ],
)
def test_what_is_tried_again_and_how_often(driver: Driver, lab, behaviour, retries: int):
    server = lab(behaviour)

    with pytest.raises(PhosphoError) as caught:
        driver.describe(PICTURE, base_url=server.base_url)

    assert len(server.requests) == caught.value.attempts == 1 + retries


@pytest.mark.parametrize("failures", [0, 1, 2])
@pytest.mark.parametrize("code", [429, 503])
def test_an_answer_after_failures_tells_how_many_attempts_it_took(
    driver: Driver, lab, code: int, failures: int
):
    server = lab(*[status(code)] * failures, answer("At last."))

    prediction = driver.describe(PICTURE, base_url=server.base_url)

    assert prediction.description == "At last."
    assert prediction.metadata["attempts"] == failures + 1 == len(server.requests)


def test_each_attempt_sends_the_same_whole_request(driver: Driver, lab):
    server = lab(status(503), status(503), answer())

    driver.describe(PICTURE, base_url=server.base_url)

    assert len({request.body for request in server.requests}) == 1


def test_a_connection_that_cannot_be_made_is_tried_again(driver: Driver):
    with pytest.raises(ConnectionFailedError, match="Nothing was billed") as caught:
        driver.describe(PICTURE, base_url="http://127.0.0.1:9")

    assert caught.value.attempts == 3


@pytest.mark.parametrize("lost", [reset(), status(502), status(504)], ids=["lost", "502", "504"])
def test_what_may_have_been_billed_is_retried_only_where_that_was_allowed(
    driver: Driver, lab, lost: Behaviour
):
    server = lab(lost, answer("At last."))

    prediction = driver.describe(PICTURE, base_url=server.base_url, retry_lost_replies=True)

    assert prediction.description == "At last."
    assert prediction.metadata["images_in_doubt"] == 1
    assert prediction.metadata["images_billed"] == 1
    assert server.billed == 2


def test_a_500_after_a_503_is_still_tried_once_more(driver: Driver, lab):
    server = lab(status(503), status(500), answer("At last."))

    assert driver.describe(PICTURE, base_url=server.base_url).description == "At last."


def test_retry_after_is_obeyed(driver: Driver, lab):
    server = lab(status(429, headers={"retry-after": "0.3"}), answer())

    driver.describe(PICTURE, base_url=server.base_url)

    first, second = server.requests
    assert 0.3 <= second.at - first.at < 2


def test_a_retry_after_beyond_a_minute_fails_at_once_and_says_so(driver: Driver, lab):
    server = lab(status(429, headers={"retry-after": "61"}))
    start = time.monotonic()

    with pytest.raises(APIStatusError, match="over 60 s, so it was not waited for") as caught:
        driver.describe(PICTURE, base_url=server.base_url)

    assert time.monotonic() - start < 5
    assert caught.value.retry_after == 61
    assert len(server.requests) == 1


def test_an_outage_is_not_multiplied(lab):
    server = lab(status(503))
    with PhosphoClient(base_url=server.base_url, max_retries=5) as client:
        for _ in range(50):
            with pytest.raises(APIStatusError):
                client.describe(PICTURE)

    assert len(server.requests) == 50 + 10  # a fifth of the first tries


def test_three_retries_are_always_there(lab):
    server = lab(status(503))
    with (
        PhosphoClient(base_url=server.base_url, max_retries=5) as client,
        pytest.raises(APIStatusError),
    ):
        client.describe(PICTURE)

    assert len(server.requests) == 1 + 3


@pytest.mark.parametrize("turn_comes", [True, False], ids=["over the cap", "too late for a turn"])
def test_a_call_that_sends_nothing_earns_no_retries(turn_comes: bool):
    shared = ClientState.of(Settings.resolve(base_url="http://127.0.0.1:9"), Spending(max_images=0))
    for _ in range(100):
        conversation = send_with_retries(shared, RequestState([b"{}"], (), None))
        next(conversation)
        with pytest.raises(PhosphoError):
            conversation.send((lambda: None) if turn_comes else None)

    assert [shared.budget.take() for _ in range(5)] == [True] * 3 + [False] * 2


def test_refused_questions_allow_no_more_retries_to_one_that_is_sent(driver: Driver, lab):
    server = lab(status(503))
    spending = Spending(max_images=1)
    (held,) = spending.reserve()
    refused = [(PICTURE, "?")] * 40
    reserve = spending.reserve

    def reserve_at_last(images: int = 1):
        if next(asked) == len(refused):
            held.release()
        return reserve(images)

    asked = itertools.count()
    spending.reserve = reserve_at_last  # type: ignore[method-assign]

    *results, last = driver.run(
        {"base_url": server.base_url, "spending": spending, "max_retries": 10},
        *refused,
        (PICTURE, "?"),
    )

    assert {type(result).__name__ for result in results} == {"SpendingLimitError"}
    assert type(last).__name__ == "ServiceError"
    assert len(server.requests) == 1 + 3


@given(st.lists(st.booleans(), max_size=200))
def test_the_budget_never_lets_more_than_a_fifth_through(first_tries: list[bool]):
    budget = RetryBudget()
    tries = retries = 0
    for is_first_try in first_tries:
        if is_first_try:
            budget.count_first_try()
            tries += 1
        else:
            retries += budget.take()
        assert retries <= max(3, tries * 0.2)


@pytest.mark.parametrize(
    ("failures", "ceiling"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0), (60, 8.0)]
)
@pytest.mark.usefixtures("real_delays")
def test_the_pause_is_anything_from_nothing_to_its_ceiling(failures: int, ceiling: float):
    bounds: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    policy = RetryPolicy(max_retries=100, jitter=jitter)

    delay = policy.delay(ConnectionFailedError("x"), failures=failures, service_errors=0)

    assert delay == ceiling
    assert bounds == [(0.0, ceiling)]


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        pytest.param(_status(429, 7), 7, id="as long as asked"),
        pytest.param(_status(503, 60), 60, id="a minute"),
        pytest.param(_status(503, 60.1), None, id="more than a minute"),
        pytest.param(_status(400, 1), None, id="asked to wait, but hopeless"),
        pytest.param(ReplyLostError("x"), None, id="a lost reply"),
        pytest.param(UnexpectedReplyError("x"), None, id="an unexpected reply"),
    ],
)
def test_the_policy_answers(error: PhosphoError, delay: float | None):
    policy = RetryPolicy(max_retries=2)

    assert policy.delay(error, failures=1, service_errors=0) == delay


@pytest.mark.parametrize("max_retries", [0, 1, 4])
def test_there_are_never_more_than_max_retries(max_retries: int):
    policy = RetryPolicy(max_retries=max_retries)

    answers = [
        policy.delay(_status(503), failures=failures, service_errors=0) is not None
        for failures in range(1, 7)
    ]

    assert sum(answers) == max_retries
