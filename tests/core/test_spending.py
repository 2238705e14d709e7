"""Billed and in doubt together never pass the cap, whatever happens in whatever order."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import pickle
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from drivers import Driver
from fault_server import answer, raw, reset, status
from phospho_multimodal import (
    AsyncPhosphoClient,
    ConfigurationError,
    PhosphoClient,
    PhosphoError,
    Spending,
    SpendingLimitError,
    SpendingSnapshot,
)
from phospho_multimodal.spending.budget import Reservation
from pictures import encoded

PICTURE = encoded()
ENDS = ("bill", "release", "mark_in_doubt")


class LedgerMachine(RuleBasedStateMachine):
    """Any order of reservations and ends, against a model that only adds up."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.spending = self.make()
        self.ends: dict[int, str] = {}
        self.kept: list[Reservation] = []  # so that no two have the same id

    @rule(target=reservations, images=st.integers(1, 3))
    def reserve(self, images: int):
        taken = sum(end != "release" for end in self.ends.values())
        try:
            made = self.spending.reserve(images)
        except SpendingLimitError:
            assert taken + images > 5
            return ()
        assert taken + images <= 5
        self.kept += made
        for reservation in made:
            self.ends[id(reservation)] = "reserved"
        return made

    @rule(made=consumes(reservations), ends=st.lists(st.sampled_from(ENDS), min_size=3, max_size=6))
    def settle(self, made: tuple[Reservation, ...], ends: list[str]):
        for reservation, end in zip(itertools.cycle(made), ends, strict=False):
            getattr(reservation, end)()
            if self.ends[id(reservation)] == "reserved":  # the first end counts, later ones do not
                self.ends[id(reservation)] = end

    @invariant()
    def the_ledger_is_the_sum(self):
        snapshot = self.spending.snapshot()
        counts = {end: list(self.ends.values()).count(end) for end in (*ENDS, "reserved")}
        assert snapshot.images_billed == counts["bill"]
        assert snapshot.images_in_doubt == counts["mark_in_doubt"]
        assert snapshot.images_reserved == counts["reserved"]

    @invariant()
    def the_cap_holds(self):
        snapshot = self.spending.snapshot()
        assert snapshot.usd_billed + snapshot.usd_in_doubt <= Decimal("0.05")

    def make(self) -> Spending:
        return Spending("0.05", max_images=7)


class LedgerFileMachine(LedgerMachine):
    """The same of a ledger in a file."""

    def make(self) -> Spending:
        self.folder = tempfile.TemporaryDirectory()
        return Spending("0.05", max_images=7, path=f"{self.folder.name}/spending.db")

    def teardown(self) -> None:
        self.spending._ledger._connection.close()
        self.folder.cleanup()


class TestLedger(LedgerMachine.TestCase):
    settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


class TestLedgerFile(LedgerFileMachine.TestCase):
    settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def _interleavings(programs: tuple[tuple[str, ...], ...]) -> Iterator[list[tuple[int, str]]]:
    """Every order in which some callers can do their steps, each its own in order."""
    if not any(programs):
        yield []
        return
    for caller, program in enumerate(programs):
        if program:
            rest = (*programs[:caller], program[1:], *programs[caller + 1 :])
            for tail in _interleavings(rest):
                yield [(caller, program[0]), *tail]


def _programs() -> Iterator[tuple[str, ...]]:
    """What one call can do: reserve and end, and after a failure once more."""
    for first in ENDS:
        yield ("reserve", first)
        if first != "bill":
            yield from (("reserve", first, "reserve", second) for second in ENDS)


def test_the_cap_holds_in_every_interleaving_of_three_callers():
    cap = 2
    orders = 0
    for programs in itertools.combinations_with_replacement(_programs(), 3):
        if sum(map(len, programs)) > 8:
            continue  # more retries at once make millions of orders, and no new state
        for order in _interleavings(programs):
            orders += 1
            _play(order, cap)
    assert orders > 15_000


def _play(order: list[tuple[int, str]], cap: int) -> None:
    spending = Spending(max_images=cap)
    held: dict[int, Reservation] = {}
    refused: set[int] = set()
    for caller, step in order:
        if caller in refused:
            continue
        if step == "reserve":
            try:
                (held[caller],) = spending.reserve()
            except SpendingLimitError:
                refused.add(caller)
        else:
            getattr(held[caller], step)()
        snapshot = spending.snapshot()
        assert snapshot.images_billed + snapshot.images_in_doubt <= cap


def test_the_cap_holds_among_threads():
    spending = Spending(max_usd=1)
    barrier = threading.Barrier(16)

    def spend(number: int) -> None:
        barrier.wait()
        for step in range(50):
            try:
                (reservation,) = spending.reserve()
            except SpendingLimitError:
                continue
            getattr(reservation, ENDS[(number + step) % 3])()

    threads = [threading.Thread(target=spend, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    snapshot = spending.snapshot()
    assert snapshot.images_billed + snapshot.images_in_doubt == 100
    assert snapshot.images_reserved == 0


def test_one_ledger_serves_threads_and_loops_at_once(lab):
    server = lab()
    spending = Spending(max_images=10)
    client = PhosphoClient(base_url=server.base_url, spending=spending)
    async_client = AsyncPhosphoClient(base_url=server.base_url, spending=spending)
    answers: list[str] = []

    def ask(number: int) -> None:
        try:
            if number % 2:
                answers.append(client.describe(PICTURE).description)
            else:
                answers.append(_asked(async_client))
        except SpendingLimitError as refusal:
            assert "cap of 10 images" in str(refusal)  # noqa: PT017 - one of two good ends

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()

    assert len(answers) == server.billed == spending.snapshot().images_billed == 10


def _asked(client: AsyncPhosphoClient) -> str:
    import asyncio  # noqa: PLC0415 - this thread's own loop, and only here

    return asyncio.run(client.describe(PICTURE)).description


OUTCOMES = [
    pytest.param(answer(), 1, 0, id="an answer is billed"),
    *[
        pytest.param(status(code), 0, 0, id=f"a {code} is released")
        for code in (307, 400, 401, 402, 404, 413, 422, 429, 500, 503)
    ],
    *[pytest.param(status(code), 0, 1, id=f"a {code} is in doubt") for code in (501, 502, 504)],
    pytest.param(status(204), 0, 1, id="a 204 is in doubt"),
    pytest.param(reset(), 0, 1, id="a lost reply is in doubt"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\n", billed=True), 0, 1, id="half a reply is in doubt"),
    pytest.param(
        lambda connection, _: connection.reply(200, b"{}", billed=True),
        0,
        1,
        id="an unexpected reply is in doubt",
    ),
]


@pytest.mark.parametrize(("behaviour", "billed", "in_doubt"), OUTCOMES)
def test_each_outcome_is_settled(driver: Driver, lab, behaviour, billed: int, in_doubt: int):
    server = lab(behaviour)
    spending = Spending()

    (result,) = driver.run(
        {"base_url": server.base_url, "spending": spending, "max_retries": 0}, (PICTURE, "?")
    )

    assert spending.snapshot() == SpendingSnapshot(billed, in_doubt, 0, Decimal("0.01"))
    if isinstance(result, PhosphoError):
        assert result.images_in_doubt == in_doubt


def test_nothing_is_sent_beyond_the_cap(driver: Driver, lab):
    server = lab()
    spending = Spending(max_usd=0.02)

    results = driver.run(
        {"base_url": server.base_url, "spending": spending}, *[(PICTURE, str(n)) for n in range(4)]
    )

    assert [type(r).__name__ for r in results] == ["Prediction"] * 2 + ["SpendingLimitError"] * 2
    assert len(server.requests) == 2


def test_a_cap_of_nothing_lets_nothing_through(driver: Driver, lab):
    server = lab()

    with pytest.raises(SpendingLimitError, match=r"cap of \$0"):
        driver.describe(PICTURE, base_url=server.base_url, spending=Spending(max_usd=0))

    assert server.requests == []


def test_a_cap_that_forbids_the_retry_raises_the_first_error(driver: Driver, lab):
    server = lab(status(502, "Bad gateway"), answer())

    with pytest.raises(PhosphoError, match="Bad gateway") as caught:
        driver.describe(PICTURE, base_url=server.base_url, spending=Spending(max_images=1))

    assert type(caught.value).__name__ == "ServiceError"
    assert caught.value.images_in_doubt == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("images", "metered", "invoiced"),
    [(0, "0.00", 0), (1, "0.01", 1), (100, "1.00", 1), (101, "1.01", 2), (150, "1.50", 2)],
)
def test_the_metered_and_the_invoiced_figure(images: int, metered: str, invoiced: int):
    spending = Spending()
    for reservation in spending.reserve(images):
        reservation.bill()

    snapshot = spending.snapshot()

    assert snapshot.usd_billed == Decimal(metered)
    assert snapshot.usd_invoiced == invoiced


def test_a_snapshot_prints_well():
    spending = Spending("1.00", max_images=200)
    reservations = spending.reserve(4)
    reservations[0].bill()
    reservations[1].bill()
    reservations[2].mark_in_doubt()

    assert str(spending.snapshot()) == (
        "2 images billed, $0.02 metered; $1 on the invoice; 1 in doubt ($0.01); 1 under way;"
        " cap $1.00; cap 200 images"
    )


def test_the_callback_comes_once_when_four_fifths_are_gone():
    told: list[SpendingSnapshot] = []
    spending = Spending(0.10, on_nearly_spent=told.append)
    for end in ("bill", "release", *["mark_in_doubt"] * 4, *["bill"] * 4):
        (reservation,) = spending.reserve()
        getattr(reservation, end)()

    (snapshot,) = told
    assert snapshot.images_billed + snapshot.images_in_doubt == 8


def test_dollars_are_exact():
    spending = Spending(max_usd=0.3, usd_per_image=0.1)

    assert len(spending.reserve(3)) == 3  # 0.1 + 0.1 + 0.1 > 0.3 in floats


def test_a_copy_is_the_same_ledger_and_a_pickle_is_refused():
    spending = Spending(1)

    assert copy.copy(spending) is spending
    assert copy.deepcopy({"s": [spending]})["s"][0] is spending
    with pytest.raises(ConfigurationError, match="second cap"):
        pickle.dumps(spending)


@pytest.mark.parametrize(
    "options", [{"max_usd": -1}, {"max_usd": "much"}, {"max_images": -1}, {"usd_per_image": "nan"}]
)
def test_a_figure_that_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Spending(**options)


def test_what_is_in_doubt_can_be_settled():
    spending = Spending(max_images=4)
    for reservation in spending.reserve(4):
        reservation.mark_in_doubt()

    with pytest.raises(ConfigurationError, match="4 images in doubt"):
        spending.settle(billed=5)
    snapshot = spending.settle(billed=1)

    assert (snapshot.images_billed, snapshot.images_in_doubt) == (1, 0)
    assert len(spending.reserve(3)) == 3


def test_an_error_of_the_callback_costs_no_answer(driver, lab, caplog):
    def broken(_: object) -> None:
        raise LookupError(_)

    server = lab()
    spending = Spending(max_images=1, on_nearly_spent=broken)

    prediction = driver.describe(encoded(), base_url=server.base_url, spending=spending)

    assert prediction.metadata["images_billed"] == 1
    assert spending.snapshot().images_billed == 1
    assert "on_nearly_spent= failed" in caplog.text


def test_a_ledger_that_breaks_after_the_answer_costs_no_answer(driver, lab, tmp_path, caplog):
    path = tmp_path / "spending.db"
    spending = Spending(max_images=1, path=path)

    def breaking(connection, request) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("DROP TABLE totals")
        answer("Paid for.")(connection, request)

    server = lab(breaking)

    prediction = driver.describe(encoded(), base_url=server.base_url, spending=spending)

    assert prediction.description == "Paid for."
    assert "stays reserved" in caplog.text


async def test_a_busy_ledger_file_does_not_stop_the_event_loop(lab, tmp_path):
    path = tmp_path / "spending.db"
    spending = Spending(max_images=5, path=path)
    server = lab()
    busy = sqlite3.connect(path, isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        for _ in range(20):
            await asyncio.sleep(0.02)
            ticks += 1
        busy.execute("ROLLBACK")
        busy.close()

    async with AsyncPhosphoClient(base_url=server.base_url, spending=spending) as client:
        _, prediction = await asyncio.gather(tick(), client.describe(encoded()))

    assert ticks == 20
    assert prediction.metadata["images_billed"] == 1


def test_less_than_nothing_cannot_be_set_aside():
    spending = Spending(max_images=2)

    with pytest.raises(ConfigurationError, match="fewer than 0"):
        spending.reserve(-5)

    assert spending.snapshot().images_reserved == 0
