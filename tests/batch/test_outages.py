"""An endpoint that limits the rate, restarts or cannot be reached costs no rows."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from describing_many import (
    answer_to,
    check_books,
    described,
    fill,
    numbered,
    read_manifest,
    read_rows,
    statuses,
)
from fault_server import Connection, Received, status
from phospho_multimodal.batch import Progress, describe_many
from phospho_multimodal.batch.pipeline import circuit_breaker
from phospho_multimodal.batch.pipeline.circuit_breaker import CircuitBreaker, is_refusal
from phospho_multimodal.errors import (
    ConfigurationError,
    ConnectionFailedError,
    PhosphoError,
    RateLimitedError,
    ServiceError,
    status_error,
)


def refusal(code: int, retry_after: float | None = None) -> PhosphoError:
    return status_error(
        code, base_url="http://h", detail="", retry_after=retry_after, request_id=None
    )


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def never() -> None:
    return None


class TestCircuitBreaker:
    @pytest.fixture(autouse=True)
    def real_delays(self, no_waiting: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(circuit_breaker, "_FIRST_DELAY", 0.5)

    @staticmethod
    async def waits(errors: list[PhosphoError], max_outage: float = 600.0) -> list[float]:
        """How long each refusal, one after the other, holds the questions back."""
        clock = Clock()
        breaker = CircuitBreaker(max_outage, clock=clock, sleep=clock.sleep)
        waited = []
        for error in errors:
            if breaker.note_refusal(error, clock.now) is not None:
                waited.append(-1.0)
                break
            began = clock.now
            await breaker.wait(never)
            waited.append(round(clock.now - began, 3))
        return waited

    async def test_the_wait_doubles_up_to_a_minute(self):
        waited = await self.waits([refusal(503)] * 10)
        assert waited == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]

    @pytest.mark.parametrize("code", [429, 503])
    async def test_retry_after_decides(self, code):
        waited = await self.waits([refusal(code, 7), refusal(code, 90), refusal(code)])
        assert waited == [7, 90, 2]

    @pytest.mark.parametrize("asked", [0, 0.01])
    async def test_a_retry_after_of_nothing_is_no_busy_loop(self, asked):
        assert await self.waits([refusal(429, asked)] * 3) == [0.5, 1, 2]

    async def test_it_ends_after_the_longest_outage_with_one_last_request_at_its_end(self):
        assert await self.waits([refusal(503)] * 9, max_outage=10) == [0.5, 1, 2, 4, 2.5, -1]

    @pytest.mark.parametrize(("errors", "max_outage"), [([refusal(429, 601)], 600), ([], 0)])
    async def test_it_ends_at_once_where_waiting_is_no_use(self, errors, max_outage):
        errors = errors or [ConnectionFailedError("Nothing answers.")]
        assert await self.waits(errors, max_outage=max_outage) == [-1]

    async def test_refusals_of_one_moment_are_one_round(self):
        clock = Clock()
        breaker = CircuitBreaker(clock=clock, sleep=clock.sleep)
        sent = clock.now
        for _ in range(64):
            clock.now += 0.001
            assert breaker.note_refusal(refusal(503), sent) is None
        began = clock.now
        await breaker.wait(never)
        assert clock.now - began < 0.6

    async def test_an_answer_ends_the_outage(self):
        clock = Clock()
        breaker = CircuitBreaker(60, clock=clock, sleep=clock.sleep)
        for _ in range(20):  # together far longer than one outage may be
            for _ in range(3):
                assert breaker.note_refusal(refusal(429, 10), clock.now) is None
                await breaker.wait(never)
            breaker.note_answer()
        assert breaker.waits_for is None

    async def test_it_says_what_it_waits_for(self):
        clock = Clock()
        breaker = CircuitBreaker(clock=clock, sleep=clock.sleep)
        for error, words in (
            (refusal(429, 5), "limits the rate (429): the next request is sent in 5 s"),
            (refusal(503, 12), "not ready (503): the next request is sent in 12 s"),
            (ConnectionFailedError("no"), "cannot be reached: the next request is sent in"),
        ):
            breaker.note_refusal(error, clock.now)
            assert words in (breaker.waits_for or "")
            await breaker.wait(never)
            assert breaker.waits_for is None

    async def test_who_wants_the_end_does_not_wait(self):
        clock = Clock()
        breaker = CircuitBreaker(clock=clock, sleep=clock.sleep)
        breaker.note_refusal(refusal(429, 300), clock.now)
        await breaker.wait(lambda: clock.now > 101)
        assert clock.now < 102

    @pytest.mark.parametrize("code", [400, 401, 402, 404, 413, 422, 500, 502, 504])
    def test_what_is_no_refusal(self, code):
        assert not is_refusal(refusal(code))


class Network(httpx.AsyncHTTPTransport):
    """A network on which the endpoint is not there while `down`."""

    def __init__(self, failure: type[httpx.TransportError] = httpx.ConnectError) -> None:
        super().__init__()
        self.failure = failure
        self.left = 0
        self.after = 0
        self.failed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":  # its body is not read: nothing is sent
            self.after -= 1
            if self.after < 0 < self.left:
                self.left -= 1
                self.failed += 1
                message = "restarting"
                raise self.failure(message, request=request)
        return await super().handle_async_request(request)


OUTAGES: dict[str, list[Any]] = {
    "429 with Retry-After": [status(429, headers={"retry-after": "0.02"})] * 40,
    "429 without": [status(429)] * 40,
    "503 with Retry-After": [status(503, headers={"retry-after": "0.02"})] * 40,
    "503 without": [status(503)] * 40,
    "both": [status(503), status(429)] * 20,
}


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_is_waited_for_and_reported(endpoint, batch, tmp_path, name):
    told: list[Progress] = []
    server = endpoint(*[described()] * 10, *OUTAGES[name], described())
    photos, out = fill(tmp_path / "photos", 40), tmp_path / "out"
    summary = batch(photos, out, base_url=server.base_url, on_progress=told.append)
    assert (summary.described, summary.failed, summary.in_doubt) == (40, 0, 0)
    assert [row["description"] for row in read_rows(out)] == [answer_to(n) for n in range(40)]
    assert server.billed == 40
    check_books(server, out)


def test_progress_says_what_the_job_waits_for(endpoint, batch, tmp_path):
    told: list[Progress] = []
    busy = status(429, headers={"retry-after": "0.6"})
    server = endpoint(described(), *[busy] * 4, described())
    source = [numbered(n) for n in range(3)]
    options = {"concurrency": 1, "max_retries": 0, "on_progress": told.append}
    batch(source, tmp_path / "out", base_url=server.base_url, **options)
    assert any("limits the rate (429)" in (progress.waits_for or "") for progress in told)
    assert told[-1].waits_for is None


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError]
)
async def test_an_endpoint_that_restarts_costs_no_rows(endpoint, tmp_path, failure):
    from phospho_multimodal.batch import adescribe_many  # noqa: PLC0415

    server, network = endpoint(), Network(failure)
    network.after, network.left = 10, 60
    async with httpx.AsyncClient(transport=network) as client:
        summary = await adescribe_many(
            [numbered(n) for n in range(30)],
            tmp_path / "out",
            base_url=server.base_url,
            results="jsonl",
            http_client=client,
        )
    assert network.failed == 60
    assert (summary.described, summary.failed) == (30, 0)
    assert server.asked == dict.fromkeys(range(30), 1)
    check_books(server, tmp_path / "out")


@pytest.mark.parametrize(
    ("busy", "error"),
    [
        (status(429), RateLimitedError),
        (status(503), ServiceError),
        (status(429, headers={"retry-after": "900"}), RateLimitedError),
    ],
)
def test_too_long_an_outage_leaves_the_rows_pending(endpoint, batch, tmp_path, busy, error):
    server = endpoint(*[described()] * 5, busy)
    photos, out = fill(tmp_path / "photos", 40), tmp_path / "out"
    with pytest.raises(error, match=r"The job stops: max_outage allows .*stay pending"):
        batch(photos, out, base_url=server.base_url, max_outage=0.05)
    told = read_manifest(out)["statuses"]
    assert told == {"described": 5, "failed": 0, "in_doubt": 0, "pending": 35}
    check_books(server, out)
    server.plan = [described()]
    summary = batch(photos, out, base_url=server.base_url)
    assert (summary.described, server.billed) == (40, 40)
    check_books(server, out)


def test_a_wait_for_the_endpoint_ends_when_the_job_is_to_end(endpoint, batch, tmp_path):
    interrupted = threading.Event()

    def refuse(connection: Connection, request: Received) -> None:
        interrupted.set()
        status(429, headers={"retry-after": "50"})(connection, request)

    server = endpoint(*[described()] * 5, refuse)
    photos, out = fill(tmp_path / "photos", 20), tmp_path / "out"
    summary = batch(photos, out, base_url=server.base_url, interrupted=interrupted, max_retries=0)
    assert (summary.described, summary.failed, summary.in_doubt) == (5, 0, 0)
    assert summary.pending == 15


def test_an_image_that_is_always_refused_while_others_are_answered_fails(endpoint, batch, tmp_path):
    server = endpoint(of={0: [status(503)] * 500})
    source = [numbered(n) for n in range(400)]
    summary = batch(source, tmp_path / "out", base_url=server.base_url, max_retries=0)
    assert statuses(read_rows(tmp_path / "out"))["000000000"] == "failed"
    assert (summary.described, summary.failed) == (399, 1)
    check_books(server, tmp_path / "out")


def test_a_question_that_waits_is_not_asked_by_a_copy_too(endpoint, batch, tmp_path):
    server = endpoint(*[status(429)] * 12, described())
    source = [numbered(n % 3) for n in range(60)]
    summary = batch(source, tmp_path / "out", base_url=server.base_url, max_retries=0)
    assert (summary.described, server.billed) == (60, 3)
    check_books(server, tmp_path / "out")


@pytest.mark.parametrize("seconds", [-1, float("nan"), "ten", None, True])
def test_max_outage_is_checked_before_anything_is_sent(endpoint, tmp_path, seconds):
    server = endpoint()
    options: Any = {"base_url": server.base_url, "results": "jsonl", "max_outage": seconds}
    with pytest.raises(ConfigurationError, match="max_outage must be"):
        describe_many([numbered(1)], tmp_path / "out", **options)
    assert server.requests == []
