"""The accounts that workers of a Ray job share: their rules, without Ray and without a network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import (
    AttemptFailed,
    ImageClaimed,
    ImageFinished,
    InputRecord,
    State,
)
from phospho_multimodal.errors import (
    ConfigurationError,
    ImageError,
    PaymentRequiredError,
    PhosphoError,
    ReplyLostError,
    ServiceError,
    SpendingLimitError,
)
from phospho_multimodal.exchange.limits import RateLimit
from phospho_multimodal.ray.books import Books
from phospho_multimodal.ray.liveness import Liveness
from phospho_multimodal.ray.told import Answered, Word
from phospho_multimodal.settings import Settings
from phospho_multimodal.spending.budget import Spending

JOB = Job.of("What is it?", Settings.resolve(base_url="http://127.0.0.1:9"), {})
CAT, DOG, COW = (bytes([number]) * 32 for number in range(3))


def described(picture: bytes, text: str = "A cat.") -> ImageFinished:
    return ImageFinished(picture, State.DESCRIBED, description=text, seconds=0.1, ended=time.time())


def failed(picture: bytes, error: PhosphoError) -> ImageFinished:
    return ImageFinished(picture, State.FAILED, error=error, ended=time.time())


class Office:
    """Books over a journal that a driver has lent, a clock that is set, nodes that die."""

    def __init__(self, folder: Path, rate: float | None = None, **caps: Any) -> None:
        self.now = 100.0
        self.nodes = {"north", "south"}
        self.folder = folder
        self.driver = Journal(folder, JOB)
        self.reopen(rate, **caps)

    def reopen(self, rate: float | None = None, **caps: Any) -> None:
        self.journal = Journal(self.folder, JOB, lent_by=self.driver.owner)
        tally = self.journal.tally()
        self.spending = Spending.resumed(tally.images_billed, tally.images_in_doubt, **caps)
        liveness = Liveness(self._nodes, lambda: self.now)
        self.books = Books(self.journal, self.spending, RateLimit(rate), liveness)

    async def _nodes(self) -> set[str]:
        return set(self.nodes)

    async def hello(self, *tokens: str) -> None:
        for token in tokens:
            await self.books.hello(token, f"actor of {token}", "north")

    async def send(self, token: str, picture: bytes, attempt: str | None = None) -> str:
        """Claim and be permitted; tells the question."""
        question = f"{token} about {picture.hex()}"
        assert await self.books.claim(token, question, ImageClaimed(picture)) is Word.GO
        attempt = attempt or f"attempt of {question}"
        assert await self.books.permit(token, question, picture, attempt) is Word.GO
        return question

    async def settle(self, question: str, step: ImageFinished | AttemptFailed) -> Any:
        return await self.books.settle(question, f"attempt of {question}", step)

    def money(self) -> tuple[int, int]:
        """Billed and in doubt, by the journal; the ledger says the same."""
        tally = self.driver.tally()
        return tally.images_billed, tally.images_in_doubt

    async def close(self) -> None:
        await self.books.close(0.0)
        self.driver.close()


@pytest.fixture
async def make(tmp_path: Path):
    made: list[Office] = []

    def make(**options: Any) -> Office:
        made.append(Office(tmp_path / f"job-{len(made)}", **options))
        return made[-1]

    yield make
    for office in made:
        await office.close()


Make = Callable[..., Office]


async def test_what_is_permitted_is_noted_as_sent_before_the_worker_hears_of_it(make: Make):
    office = make()
    await office.hello("w1")
    await office.send("w1", CAT)
    assert office.driver.answer(CAT)["state"] == State.SENDING
    assert (await office.books.snapshot()).money.images_reserved == 1


async def test_an_answer_comes_back_to_whoever_claims_its_picture(make: Make):
    office = make()
    await office.hello("w1", "w2")
    question = await office.send("w1", CAT)
    told = await office.settle(question, described(CAT))
    assert (told["description"], told["images_billed"], told["attempts"]) == ("A cat.", 1, 1)
    other = await office.books.claim("w2", "q2", ImageClaimed(CAT))
    assert isinstance(other, Answered)
    assert other.answer["description"] == "A cat."
    assert office.money() == (1, 0)


async def test_a_picture_under_way_elsewhere_is_waited_for(make: Make):
    office = make()
    await office.hello("w1", "w2")
    question = await office.send("w1", CAT)
    waiting = [
        asyncio.ensure_future(office.books.claim("w2", f"q{number}", ImageClaimed(CAT)))
        for number in range(20)
    ]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    await office.settle(question, described(CAT))
    answers = await asyncio.gather(*waiting)
    assert all(isinstance(answer, Answered) for answer in answers)
    assert office.money() == (1, 0)


async def test_of_many_that_claim_at_once_one_asks(make: Make):
    office = make()
    await office.hello("w1")
    claims = [
        asyncio.ensure_future(office.books.claim("w1", f"q{number}", ImageClaimed(CAT)))
        for number in range(20)
    ]
    done, _ = await asyncio.wait(claims, timeout=0.2)
    assert [task.result() for task in done] == [Word.GO]
    office.books.stop(ConfigurationError("over"))
    assert sorted(str(told) for told in await asyncio.gather(*claims)) == sorted(
        ["Word.GO"] + ["Word.STOP"] * 19
    )


async def test_a_picture_that_was_given_up_is_the_next_ones(make: Make):
    office = make()
    await office.hello("w1", "w2")
    assert await office.books.claim("w1", "q1", ImageClaimed(CAT)) is Word.GO
    waiting = asyncio.ensure_future(office.books.claim("w2", "q2", ImageClaimed(CAT)))
    await asyncio.sleep(0.05)
    await office.books.give_up("q1", CAT)
    assert await waiting is Word.GO


async def test_a_permission_and_an_end_told_twice_count_once(make: Make):
    office = make(max_images=1)
    await office.hello("w1")
    question = await office.send("w1", CAT)
    again = await office.books.permit("w1", question, CAT, f"attempt of {question}")
    assert again is Word.GO
    first, second = await asyncio.gather(
        office.settle(question, described(CAT)), office.settle(question, described(CAT))
    )
    third = await office.settle(question, described(CAT))
    assert first == second == third
    assert office.money() == (1, 0)
    assert (await office.books.snapshot()).answers == 1


async def test_without_a_claim_there_is_no_permission(make: Make):
    office = make()
    await office.hello("w1", "w2")
    assert await office.books.permit("w1", "q1", CAT, "a1") is Word.CLAIM
    await office.send("w2", CAT)
    assert await office.books.permit("w1", "q1", CAT, "a1") is Word.CLAIM
    assert await office.books.permit("nobody", "q1", CAT, "a1") is Word.FENCED


async def test_a_failed_attempt_frees_its_money_and_the_next_one_needs_its_own(make: Make):
    office = make(max_images=1)
    await office.hello("w1")
    question = await office.send("w1", CAT)
    await office.settle(question, AttemptFailed(CAT, 0))
    assert (await office.books.snapshot()).money.images_reserved == 0
    assert await office.books.permit("w1", question, CAT, "second") is Word.GO
    await office.books.settle(question, "second", described(CAT))
    assert office.driver.answer(CAT)["attempts"] == 2


# --- the cap --------------------------------------------------------------------------------------


async def test_the_cap_waits_for_what_may_yet_cost_nothing(make: Make):
    office = make(max_images=1)
    await office.hello("w1")
    question = await office.send("w1", CAT)
    assert await office.books.claim("w1", "q2", ImageClaimed(DOG)) is Word.GO
    waiting = asyncio.ensure_future(office.books.permit("w1", "q2", DOG, "a2"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await office.settle(question, failed(CAT, ImageError("no")))
    assert await waiting is Word.GO


async def test_the_cap_stops_everybody_once_it_is_spent(make: Make):
    office = make(max_images=1)
    await office.hello("w1", "w2")
    question = await office.send("w1", CAT)
    assert await office.books.claim("w2", "q2", ImageClaimed(DOG)) is Word.GO
    waiting = asyncio.ensure_future(office.books.permit("w2", "q2", DOG, "a2"))
    await asyncio.sleep(0.05)
    await office.settle(question, described(CAT))
    assert await waiting is Word.STOP
    assert isinstance(office.books.beat("w2"), SpendingLimitError)
    assert await office.books.claim("w1", "q3", ImageClaimed(COW)) is Word.STOP
    assert office.money() == (1, 0)


async def test_the_cap_counts_what_earlier_runs_spent(make: Make):
    office = make()
    await office.hello("w1")
    await office.settle(await office.send("w1", CAT), described(CAT))
    office.reopen(max_images=1)
    await office.hello("w1")
    assert await office.books.claim("w1", "q2", ImageClaimed(DOG)) is Word.GO
    assert await office.books.permit("w1", "q2", DOG, "a2") is Word.STOP


# --- the dead -------------------------------------------------------------------------------------


async def test_the_next_incarnation_puts_what_the_last_one_sent_in_doubt(make: Make):
    office = make()
    await office.books.hello("w1", "actor", "north")
    await office.send("w1", CAT)
    assert await office.books.claim("w1", "idle", ImageClaimed(DOG)) is Word.GO
    await office.books.hello("w1 again", "actor", "south")
    assert office.money() == (0, 1)
    told = await office.books.claim("w1 again", "q", ImageClaimed(CAT))
    assert isinstance(told, Answered)
    assert told.answer["state"] == State.IN_DOUBT
    assert told.answer["error_class"] == "ReplyLostError"
    assert await office.books.claim("w1 again", "q", ImageClaimed(DOG)) is Word.GO
    snapshot = await office.books.snapshot()
    assert (snapshot.money.images_in_doubt, snapshot.money.images_reserved) == (1, 0)


async def test_who_waits_for_a_picture_on_a_dead_node_is_told(make: Make):
    office = make()
    await office.hello("w1", "w2")
    await office.send("w1", CAT)
    waiting = asyncio.ensure_future(office.books.claim("w2", "q2", ImageClaimed(CAT)))
    await asyncio.sleep(0.05)
    office.nodes.remove("north")
    office.now += 3.0
    office.books.beat("w2")
    told = await asyncio.wait_for(waiting, 5)
    assert isinstance(told, Answered)
    assert told.answer["state"] == State.IN_DOUBT


async def test_the_cap_and_quiet_look_who_is_silent(make: Make):
    office = make(max_images=1)
    await office.hello("w1", "w2")
    await office.send("w1", CAT)
    assert await office.books.claim("w2", "q2", ImageClaimed(DOG)) is Word.GO
    waiting = asyncio.ensure_future(office.books.permit("w2", "q2", DOG, "a2"))
    quiet = asyncio.ensure_future(office.books.quiet())
    await asyncio.sleep(0.05)
    office.now += 11.0
    office.books.beat("w2")
    assert await asyncio.wait_for(waiting, 5) is Word.STOP
    await asyncio.wait_for(quiet, 5)
    assert office.money() == (0, 1)


async def test_the_snapshot_looks_who_is_silent(make: Make):
    office = make()
    await office.hello("w1")
    await office.send("w1", CAT)
    assert (await office.books.snapshot()).money.images_in_doubt == 0
    office.now += 11.0
    assert (await office.books.snapshot()).money.images_in_doubt == 1
    assert office.money() == (0, 1)


@pytest.mark.parametrize("capped", [False, True])
async def test_a_late_word_of_an_answer_makes_of_the_doubt_what_it_was(make: Make, capped: bool):
    office = make(max_images=1 if capped else None)
    await office.hello("w1", "w2")
    question = await office.send("w1", CAT)
    office.now += 11.0
    await office.books.snapshot()
    assert office.money() == (0, 1)
    assert await office.books.permit("w1", question, CAT, "more") is Word.FENCED
    told = await office.settle(question, described(CAT))
    assert (told["state"], told["description"]) == (State.DESCRIBED, "A cat.")
    assert told["attempts"] == 1
    assert office.money() == (1, 0)
    snapshot = await office.books.snapshot()
    assert (snapshot.money.images_billed, snapshot.money.images_in_doubt) == (1, 0)
    assert snapshot.done == {State.IN_DOUBT: 0, State.DESCRIBED: 1}
    assert await office.settle(question, described(CAT)) == told
    assert office.money() == (1, 0)


async def test_a_late_word_that_nothing_was_billed_frees_the_money(make: Make):
    office = make(max_images=1)
    await office.hello("w1")
    question = await office.send("w1", CAT)
    office.now += 11.0
    await office.books.snapshot()
    await office.settle(question, AttemptFailed(CAT, 0))
    assert office.money() == (0, 0)
    await office.hello("w1 anew")
    assert await office.books.permit("w1 anew", question, CAT, "second") is Word.CLAIM
    assert await office.books.claim("w1 anew", question, ImageClaimed(CAT)) is Word.GO
    assert await office.books.permit("w1 anew", question, CAT, "second") is Word.GO


async def test_a_late_word_that_it_is_in_doubt_changes_nothing(make: Make):
    office = make()
    await office.hello("w1")
    question = await office.send("w1", CAT)
    office.now += 11.0
    await office.books.snapshot()
    await office.settle(question, AttemptFailed(CAT, 1))
    assert office.money() == (0, 1)
    assert office.driver.answer(CAT)["state"] == State.IN_DOUBT


async def test_a_late_word_opens_the_part_that_holds_its_row(make: Make):
    office = make()
    office.driver.add([InputRecord("cat.png", "cat.png", "1")])
    await office.hello("w1")
    assert await office.books.claim("w1", "q", ImageClaimed(CAT, 1, 8, 8)) is Word.GO
    assert await office.books.permit("w1", "q", CAT, "attempt of q") is Word.GO
    office.now += 11.0
    assert (await office.books.snapshot()).done == {State.IN_DOUBT: 1}
    before = office.driver.late_words
    office.driver.add_part(0, "part", 1, 1, "", as_of=before)
    assert office.driver.parts()
    await office.settle("q", described(CAT))
    assert office.driver.parts() == []
    office.driver.add_part(0, "part", 1, 1, "", as_of=before)
    assert office.driver.parts() == [], "its rows were read before they changed"


async def test_a_worker_that_dies_while_it_waits_for_its_time_has_sent_nothing(make: Make):
    office = make(rate=1.0)
    await office.hello("w1", "w2")
    await office.send("w2", COW)
    assert await office.books.claim("w1", "q1", ImageClaimed(CAT)) is Word.GO
    waiting = asyncio.ensure_future(office.books.permit("w1", "q1", CAT, "a1"))
    await asyncio.sleep(0.05)
    await office.books.hello("w1 again", "actor of w1", "south")
    assert await waiting is Word.FENCED
    assert office.driver.answer(CAT)["state"] == State.PENDING
    assert office.money() == (0, 0)
    assert (await office.books.snapshot()).money.images_reserved == 1


async def test_what_is_given_up_without_an_end_is_in_doubt(make: Make):
    office = make()
    await office.hello("w1")
    question = await office.send("w1", CAT)
    await office.books.give_up(question, CAT)
    assert office.money() == (0, 1)


# --- the end --------------------------------------------------------------------------------------


async def test_a_fatal_error_stops_everybody_and_quiet_waits_for_the_rest(make: Make):
    office = make()
    await office.hello("w1", "w2")
    one, other = await office.send("w1", CAT), await office.send("w2", DOG)
    await office.settle(one, ImageFinished(CAT, State.PENDING))
    office.books.stop(PaymentRequiredError("pay", status_code=402))
    quiet = asyncio.ensure_future(office.books.quiet())
    await asyncio.sleep(0.05)
    assert not quiet.done()
    assert await office.books.claim("w2", "q", ImageClaimed(COW)) is Word.STOP
    await office.settle(other, described(DOG))
    await asyncio.wait_for(quiet, 1)
    assert office.money() == (1, 0)
    assert isinstance((await office.books.snapshot()).stopped_by, PaymentRequiredError)


async def test_a_stop_does_not_wait_for_a_slow_rate(make: Make):
    office = make(rate=0.01)
    await office.hello("w1")
    await office.send("w1", COW)
    assert await office.books.claim("w1", "q1", ImageClaimed(CAT)) is Word.GO
    waiting = asyncio.ensure_future(office.books.permit("w1", "q1", CAT, "a1"))
    await asyncio.sleep(0.05)
    office.books.stop(ConfigurationError("over"))
    assert await asyncio.wait_for(waiting, 10) is Word.STOP
    assert office.driver.answer(CAT)["state"] == State.PENDING


async def test_starts_are_as_far_apart_as_the_one_rate_says(make: Make):
    office = make(rate=20.0)
    await office.hello("w1", "w2")
    began = time.monotonic()
    pictures = [bytes([9, number]) * 16 for number in range(30)]
    for number, picture in enumerate(pictures):
        await office.send(f"w{number % 2 + 1}", picture)
    assert 0.4 < time.monotonic() - began < 10, "twenty at once, and then one each 50 ms"


async def test_fifty_failures_without_an_answer_end_it(make: Make):
    office = make()
    await office.hello("w1")
    for number in range(50):
        picture = bytes([7, number]) * 16
        assert await office.books.claim("w1", "q", ImageClaimed(picture)) is Word.GO
        assert await office.books.permit("w1", "q", picture, f"a{number}") is Word.GO
        error = ReplyLostError("lost") if number % 2 else ServiceError("500", status_code=500)
        await office.books.settle("q", f"a{number}", failed(picture, error))
    assert await office.books.claim("w1", "q", ImageClaimed(CAT)) is Word.STOP


async def test_closing_puts_what_is_under_way_in_doubt(tmp_path: Path):
    office = Office(tmp_path)
    await office.hello("w1")
    await office.send("w1", CAT)
    await office.close()
    again = Journal(tmp_path, JOB)
    assert again.answer(CAT)["state"] == State.IN_DOUBT
    assert again.tally().images_in_doubt == 1
    again.close()


async def test_new_books_find_what_the_old_ones_left_under_way_in_doubt(make: Make):
    office = make()
    await office.hello("w1")
    question = await office.send("w1", CAT)
    run = office.driver.run
    office.reopen()  # the actor died, and Ray started it again
    assert office.money() == (0, 1)
    assert office.journal.run == run
    assert await office.books.permit("w1", question, CAT, "more") is Word.FENCED
    told = await office.settle(question, described(CAT))
    assert told["state"] == State.IN_DOUBT, "nobody knows any more that this is about that attempt"
    assert office.money() == (0, 1)


async def test_books_whose_job_somebody_else_took_over_permit_nothing(make: Make):
    office = make()
    await office.hello("w1")
    question = await office.send("w1", CAT)
    assert await office.books.claim("w1", "q2", ImageClaimed(DOG)) is Word.GO
    # The driver was killed, and the same command runs again, while this is still there.
    assert office.driver._job_lock is not None
    office.driver._job_lock.release()
    heir = Journal(office.folder, JOB)
    assert heir.tally().images_in_doubt == 1
    with pytest.raises(ConfigurationError, match="Another process"):
        await office.books.permit("w1", "q2", DOG, "a2")
    with pytest.raises(ConfigurationError, match="Another process"):
        await office.settle(question, described(CAT))
    assert await office.books.claim("w1", "q3", ImageClaimed(COW)) is Word.STOP
    assert heir.answer(DOG)["state"] == State.PENDING
    heir.close()


async def test_inputs_of_the_job_are_counted_once(make: Make):
    office = make()
    names = ["cat", "cat again", "cat at last", "broken"]
    office.driver.add([InputRecord(name, name, "1") for name in names])
    await office.hello("w1")
    claims = [
        asyncio.ensure_future(office.books.claim("w1", f"q{at}", ImageClaimed(CAT, at, 8, 8)))
        for at in (1, 2, 3)
    ]
    done, waiting = await asyncio.wait(claims, timeout=0.2)
    (first,) = (f"q{at}" for at, task in zip((1, 2, 3), claims, strict=True) if task in done)
    assert await office.books.permit("w1", first, CAT, "a") is Word.GO
    await office.books.settle(first, "a", described(CAT))
    await asyncio.wait(waiting)
    await office.books.note_broken(4, ImageError("no picture"))
    snapshot = await office.books.snapshot()
    assert snapshot.done == {State.DESCRIBED: 3, State.FAILED: 1}
    assert snapshot.duplicates == 2
    tally = office.driver.tally()
    assert (tally.described, tally.failed, tally.images_billed) == (3, 1, 1)
