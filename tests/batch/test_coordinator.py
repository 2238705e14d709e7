"""The coordinator of a Ray job: its rules, without Ray and without a network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phospho_multimodal.batch.job import Job, picture_key
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import (
    AttemptFailed,
    ImageClaimed,
    ImageFinished,
    InputRecord,
    State,
)
from phospho_multimodal.batch.pipeline.circuit_breaker import CircuitBreaker
from phospho_multimodal.errors import (
    ConfigurationError,
    ConnectionFailedError,
    ImageError,
    PaymentRequiredError,
    PhosphoError,
    RateLimitedError,
    ReplyLostError,
    ServiceError,
    SpendingLimitError,
)
from phospho_multimodal.images.prepare import prepare_image
from phospho_multimodal.ray.answered_pixels import hash_pixels
from phospho_multimodal.ray.coordinator import Coordinator, Orders
from phospho_multimodal.settings import Settings

SETTINGS = Settings.resolve(base_url="http://127.0.0.1:9")
JOB = Job.of("What is it?", SETTINGS, {})
CAT, DOG, COW = (bytes([number]) * 32 for number in range(3))


def described(picture: bytes, text: str = "A cat.") -> ImageFinished:
    return ImageFinished(picture, State.DESCRIBED, description=text, seconds=0.1, ended=time.time())


def failed(picture: bytes, error: PhosphoError) -> ImageFinished:
    return ImageFinished(picture, State.FAILED, error=error, ended=time.time())


class Office:
    """A coordinator over a journal that a driver has lent, and two workers."""

    def __init__(self, folder: Path, rate: float | None = None, **options: Any) -> None:
        self.driver = Journal(folder, JOB)
        self.rate = rate
        self.open(**options)

    def open(
        self,
        max_images: int | None = None,
        breaker: CircuitBreaker | None = None,
        root: Path | None = None,
    ) -> None:
        settings = Settings.resolve(base_url=SETTINGS.base_url, requests_per_second=self.rate)
        orders = Orders(JOB, settings, {"max_images": max_images}, root=root)
        folder = self.driver.path.parent
        self.coordinator = Coordinator(orders, folder, self.driver.owner, breaker)
        self.leases: dict[str, asyncio.Future[None]] = {}

    async def join(self) -> None:
        for worker in ("w1", "w2"):
            self.leases[worker] = asyncio.get_running_loop().create_future()
            await self.coordinator.join(worker, [self.leases[worker]])

    async def lose(self, worker: str) -> None:
        """What Ray does when a worker, or its node, dies."""
        self.leases[worker].set_exception(RuntimeError("OwnerDiedError"))
        await self.coordinator._workers[worker]

    async def claim(self, worker: str, picture: bytes, position: int | None = None) -> Any:
        return await self.coordinator.claim(worker, ImageClaimed(picture, position, 8, 8))

    async def send(self, worker: str, picture: bytes) -> None:
        assert await self.claim(worker, picture) is None
        assert await self.coordinator.begin(worker, picture) is None

    async def wait_to_begin(self, worker: str, picture: bytes) -> asyncio.Future[Any]:
        """Claim an image, and ask for a permission that does not come yet."""
        assert await self.claim(worker, picture) is None
        waiting = asyncio.ensure_future(self.coordinator.begin(worker, picture))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        return waiting

    def money(self) -> tuple[int, int]:
        """Billed and in doubt, by the journal."""
        counts = self.driver.tally()
        return counts.images_billed, counts.images_in_doubt


Make = Callable[..., Any]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Office] = []

    async def make(**options: Any) -> Office:
        made.append(Office(tmp_path / f"job-{len(made)}", **options))
        await made[-1].join()
        return made[-1]

    yield make
    for office in made:
        await office.coordinator.close(0.0)
        office.driver.close()


async def test_a_permitted_request_is_recorded_before_the_worker_may_send_it(make: Make):
    office = await make()
    await office.send("w1", CAT)
    assert office.driver.answer(CAT)["state"] == State.SENDING
    assert (await office.coordinator.snapshot()).money.images_reserved == 1


async def test_a_known_answer_needs_no_request(make: Make):
    office = await make()
    await office.send("w1", CAT)
    known = await office.coordinator.end("w1", described(CAT))
    assert (known["description"], known["images_billed"], known["attempts"]) == ("A cat.", 1, 1)
    assert (await office.claim("w2", CAT))["description"] == "A cat."
    assert office.money() == (1, 0)


async def test_an_image_is_requested_once_by_many_that_claim_it(make: Make):
    office = await make()
    claims = [
        asyncio.ensure_future(office.claim(f"w{1 + number % 2}", CAT)) for number in range(20)
    ]
    done, waiting = await asyncio.wait(claims, timeout=0.2)
    assert [task.result() for task in done] == [None]
    worker = f"w{1 + claims.index(*done) % 2}"
    assert await office.coordinator.begin(worker, CAT) is None
    await office.coordinator.end(worker, described(CAT))
    answers = await asyncio.gather(*waiting)
    assert {answer["description"] for answer in answers} == {"A cat."}
    assert office.money() == (1, 0)


async def test_a_released_image_goes_to_the_next_worker(make: Make):
    office = await make()
    assert await office.claim("w1", CAT) is None
    waiting = asyncio.ensure_future(office.claim("w2", CAT))
    await office.coordinator.release("w1", CAT)
    assert await waiting is None


async def test_a_worker_needs_a_claim_to_send(make: Make):
    office = await make()
    await office.send("w2", CAT)
    for worker in ("w1", "stranger"):
        assert isinstance(await office.coordinator.begin(worker, CAT), ConfigurationError)
    assert isinstance(await office.claim("stranger", DOG), ConfigurationError)
    assert (await office.coordinator.end("w1", described(CAT)))["state"] == State.SENDING


async def test_a_failed_attempt_frees_its_money_for_the_next_one(make: Make):
    office = await make(max_images=1)
    await office.send("w1", CAT)
    await office.coordinator.end("w1", AttemptFailed(CAT, 0))
    assert (await office.coordinator.snapshot()).money.images_reserved == 0
    assert await office.coordinator.begin("w1", CAT) is None
    assert (await office.coordinator.end("w1", described(CAT)))["attempts"] == 2


# --- spending limit, rate limit, outages ----------------------------------------------------------


async def test_the_spending_limit_waits_for_a_request_that_may_cost_nothing(make: Make):
    office = await make(max_images=1)
    await office.send("w1", CAT)
    waiting = await office.wait_to_begin("w1", DOG)
    await office.coordinator.end("w1", failed(CAT, ImageError("no")))
    assert await waiting is None


async def test_the_spending_limit_stops_all_workers(make: Make):
    office = await make(max_images=1)
    await office.send("w1", CAT)
    waiting = await office.wait_to_begin("w2", DOG)
    await office.coordinator.end("w1", described(CAT))
    assert isinstance(await waiting, SpendingLimitError)
    assert isinstance(await office.claim("w1", COW), SpendingLimitError)
    assert isinstance(await office.coordinator.stop_reason(), SpendingLimitError)
    assert office.money() == (1, 0)


async def test_the_spending_limit_counts_earlier_runs(make: Make):
    office = await make()
    await office.send("w1", CAT)
    await office.coordinator.end("w1", described(CAT))
    office.open(max_images=1)
    await office.join()
    assert await office.claim("w1", DOG) is None
    assert isinstance(await office.coordinator.begin("w1", DOG), SpendingLimitError)


async def test_requests_start_as_far_apart_as_the_rate_of_all_workers_says(make: Make):
    office = await make(rate=20.0)
    began = time.monotonic()
    for number in range(30):
        await office.send(f"w{number % 2 + 1}", bytes([9, number]) * 16)
    assert time.monotonic() - began > 0.4, "twenty at once, and then one each 50 ms"


async def test_a_stop_does_not_wait_for_a_slow_rate(make: Make):
    office = await make(rate=0.01)
    await office.send("w1", COW)
    waiting = await office.wait_to_begin("w1", CAT)
    office.coordinator.stop(ConfigurationError("over"))
    assert isinstance(await waiting, ConfigurationError)
    assert office.driver.answer(CAT)["state"] == State.PENDING


REFUSALS = [
    RateLimitedError("429", status_code=429),
    ServiceError("503", status_code=503),
    ConnectionFailedError("refused"),
]


@pytest.mark.parametrize("error", REFUSALS)
async def test_all_workers_wait_while_the_endpoint_refuses_requests(
    make: Make, error: PhosphoError
):
    now = [100.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    office = await make(breaker=CircuitBreaker(60.0, clock=lambda: now[0], sleep=sleep))
    await office.send("w1", CAT)
    await office.coordinator.end("w1", AttemptFailed(CAT, 0))
    assert await office.coordinator.refused("w1", CAT, error) == 0
    assert (await office.coordinator.snapshot()).waits_for is not None
    began = now[0]
    await office.send("w2", DOG)
    assert now[0] > began
    await office.coordinator.end("w2", described(DOG))
    assert await office.coordinator.begin("w1", CAT) is None
    await office.coordinator.end("w1", AttemptFailed(CAT, 0))
    now[0] += 1000.0  # images are still answered, so this is no outage
    assert await office.coordinator.refused("w1", CAT, error) == 1
    now[0] += 61.0
    await office.coordinator.refused("w1", CAT, error)
    assert isinstance(await office.coordinator.stop_reason(), type(error))
    assert office.driver.answer(CAT)["state"] == State.PENDING


async def test_fifty_failures_without_an_answer_end_the_job(make: Make):
    office = await make()
    for number in range(50):
        picture = bytes([7, number]) * 16
        await office.send("w1", picture)
        error = ReplyLostError("lost") if number % 2 else ServiceError("500", status_code=500)
        await office.coordinator.end("w1", failed(picture, error))
    assert isinstance(await office.claim("w1", CAT), ReplyLostError)


# --- lost workers ---------------------------------------------------------------------------------


async def test_a_lost_worker_leaves_its_requests_in_doubt(make: Make):
    office = await make(max_images=2)
    await office.send("w1", CAT)
    assert await office.claim("w1", DOG) is None
    waiting = [asyncio.ensure_future(office.claim("w2", picture)) for picture in (CAT, DOG)]
    quiet = asyncio.ensure_future(office.coordinator.quiet())
    await office.lose("w1")
    await asyncio.wait_for(quiet, 5)
    known, free = await asyncio.gather(*waiting)
    assert (known["state"], known["error_class"]) == (State.IN_DOUBT, "ReplyLostError")
    assert free is None, "nothing was sent for this image"
    assert office.money() == (0, 1)
    snapshot = await office.coordinator.snapshot()
    assert (snapshot.money.images_in_doubt, snapshot.money.images_reserved) == (1, 0)
    assert (snapshot.workers, snapshot.done[State.IN_DOUBT]) == (1, 2), "two rows show it"
    assert await office.coordinator.begin("w2", DOG) is None, "one image of the limit is left"


async def test_a_worker_that_is_lost_while_it_waits_has_sent_nothing(make: Make):
    office = await make(rate=1.0)
    await office.send("w2", COW)
    waiting = await office.wait_to_begin("w1", CAT)
    await office.lose("w1")
    assert isinstance(await waiting, ConfigurationError)
    assert office.driver.answer(CAT)["state"] == State.PENDING
    assert office.money() == (0, 0)
    assert (await office.coordinator.snapshot()).money.images_reserved == 1


@pytest.mark.parametrize(
    "step", [described(CAT), AttemptFailed(CAT, 0), failed(CAT, ImageError("no"))]
)
async def test_what_a_lost_worker_reports_changes_no_doubt(make: Make, step: Any):
    office = await make()
    await office.send("w1", CAT)
    await office.lose("w1")
    assert (await office.coordinator.end("w1", step))["state"] == State.IN_DOUBT
    assert office.money() == (0, 1)


async def test_an_image_that_is_released_after_it_was_sent_is_in_doubt(make: Make):
    office = await make()
    await office.send("w1", CAT)
    await office.coordinator.release("w1", CAT)
    assert office.money() == (0, 1)


# --- the end --------------------------------------------------------------------------------------


async def test_a_fatal_error_stops_all_workers_after_their_requests(make: Make):
    office = await make()
    await office.send("w1", CAT)
    await office.send("w2", DOG)
    await office.coordinator.end("w1", ImageFinished(CAT, State.PENDING))
    office.coordinator.stop(PaymentRequiredError("pay", status_code=402))
    quiet = asyncio.ensure_future(office.coordinator.quiet())
    await asyncio.wait([quiet], timeout=0.05)
    assert not quiet.done()
    assert isinstance(await office.claim("w2", COW), PaymentRequiredError)
    await office.coordinator.end("w2", described(DOG))
    await asyncio.wait_for(quiet, 5)
    assert office.money() == (1, 0)
    assert isinstance((await office.coordinator.snapshot()).stopped_by, PaymentRequiredError)


async def test_closing_leaves_requests_in_progress_in_doubt(tmp_path: Path):
    office = Office(tmp_path)
    await office.join()
    await office.send("w1", CAT)
    await office.coordinator.close(0.0)
    office.driver.close()
    again = Journal(tmp_path, JOB)
    assert again.answer(CAT)["state"] == State.IN_DOUBT
    assert again.tally().images_in_doubt == 1
    again.close()


async def test_a_coordinator_whose_job_was_taken_over_permits_nothing(make: Make):
    office = await make()
    await office.send("w1", CAT)
    assert await office.claim("w1", DOG) is None
    # The driver was killed, and the same command runs while the coordinator is still there.
    assert office.driver._job_lock is not None
    office.driver._job_lock.release()
    heir = Journal(office.driver.path.parent, JOB)
    assert heir.tally().images_in_doubt == 1
    assert "Another process" in str(await office.coordinator.begin("w1", DOG))
    with pytest.raises(ConfigurationError, match="Another process"):
        await office.coordinator.end("w1", described(CAT))
    await asyncio.wait_for(office.coordinator.quiet(), 5)
    assert isinstance(await office.claim("w1", COW), ConfigurationError)
    assert heir.answer(DOG)["state"] == State.PENDING
    heir.close()


async def test_inputs_of_the_job_are_counted_once(make: Make):
    office = await make()
    names = ["cat", "cat again", "cat at last", "broken"]
    office.driver.add([InputRecord(name, name, "1") for name in names])
    claims = [asyncio.ensure_future(office.claim("w1", CAT, at)) for at in (1, 2, 3)]
    _, waiting = await asyncio.wait(claims, timeout=0.2)
    assert await office.coordinator.begin("w1", CAT) is None
    await office.coordinator.end("w1", described(CAT))
    await asyncio.wait(waiting)
    await office.coordinator.note_broken(4, ImageError("not an image"))
    snapshot = await office.coordinator.snapshot()
    assert snapshot.done == {State.DESCRIBED: 3, State.FAILED: 1}
    assert snapshot.duplicates == 2
    counts = office.driver.tally()
    assert (counts.described, counts.failed, counts.images_billed) == (3, 1, 1)


async def test_decoded_pixels_are_recognized_by_the_files_that_were_described(
    make: Make, tmp_path: Path
):
    path = tmp_path / "noise.jpg"
    Image.effect_noise((64, 48), 40).convert("RGB").save(path)
    with Image.open(path) as image:
        pixels = hash_pixels(image.convert("RGB"))
    office = await make(root=tmp_path)
    office.driver.add([InputRecord("noise", path.name, "1")])
    key = picture_key(prepare_image(path))
    assert await office.claim("w1", key, 1) is None
    assert await office.coordinator.begin("w1", key) is None
    await office.coordinator.end("w1", described(key))
    claim = ImageClaimed(CAT)
    known = await office.coordinator.claim("w2", claim, pixels)
    assert known["picture"] == key
    assert await office.coordinator.claim("w2", claim, "other pixels") is None
    Image.effect_noise((64, 48), 41).convert("RGB").save(path)  # another image now
    claim = ImageClaimed(DOG)
    assert await office.coordinator.claim("w2", claim, pixels) is None
