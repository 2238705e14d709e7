"""Whatever interrupts a call, the money is settled, the slot is free, and nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio.to_thread
import httpx
import pytest

from fault_server import (
    Behaviour,
    Connection,
    FaultServer,
    Received,
    answer,
    drip,
    hang,
    prediction,
    reset,
    status,
)
from fresh_python import in_fresh_python
from phospho_multimodal import (
    AsyncPhosphoClient,
    ConnectionFailedError,
    PhosphoClient,
    PhosphoError,
    ReplyLostError,
    Spending,
)
from phospho_multimodal.exchange import attempts as exchange
from phospho_multimodal.exchange import retry
from phospho_multimodal.exchange.attempts import ClientState, RequestState, send_with_retries
from phospho_multimodal.exchange.steps import HttpResponse, RunInThread, SendRequest, Step
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import ImagePolicy, Turn
from phospho_multimodal.settings import Settings
from pictures import draw, encoded

PICTURE = encoded()
TURN = Turn("user", ("?", *[image_source(encoded(draw(colour=c))) for c in ("red", "blue")]))
EACH = ImagePolicy(multi_image="each")


class HeldFile:
    """A ledger's file that another process holds: nobody else can write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def hold(self) -> None:
        self._holder.execute("BEGIN IMMEDIATE")

    def let_go(self) -> None:
        if self._holder.in_transaction:
            self._holder.execute("ROLLBACK")

    def close(self) -> None:
        self.let_go()
        self._holder.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[tuple[Spending, HeldFile]]:
    """A ledger in a file, and a hold on it."""
    path = tmp_path / "spending.db"
    spending = Spending(max_images=2, path=path)
    file = HeldFile(path)
    yield spending, file
    file.close()


async def _until(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


async def _cancelled(task: asyncio.Task) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_waiting_for_a_slot_nothing_is_spent(lab):
    server = lab(hang(0.3), answer())
    spending = Spending()
    async with AsyncPhosphoClient(
        base_url=server.base_url, spending=spending, max_concurrency=1
    ) as client:
        first = asyncio.create_task(client.describe(PICTURE))
        await _until(lambda: server.requests)
        second = asyncio.create_task(client.describe(PICTURE))
        await asyncio.sleep(0.02)

        await _cancelled(second)

        assert spending.snapshot().images_reserved == 1  # the first one's
        with contextlib.suppress(PhosphoError):
            await first
        assert (await client.describe(PICTURE)).metadata["attempts"] == 1
    assert len(server.requests) == 2


async def test_cancelled_after_sending_the_image_is_in_doubt_and_the_slot_free(lab):
    server = lab(hang(), answer())
    spending = Spending()
    async with AsyncPhosphoClient(
        base_url=server.base_url, spending=spending, max_concurrency=1
    ) as client:
        task = asyncio.create_task(client.describe(PICTURE))
        await _until(lambda: server.requests)

        await _cancelled(task)

        assert spending.snapshot().images_in_doubt == 1
        assert (await client.describe(PICTURE)).description == "You asked: Describe this image."
        assert spending.snapshot().images_reserved == 0


async def test_cancelled_as_the_server_has_read_the_request_the_image_is_in_doubt(lab):
    """However short the time is between the last byte and the look for an answer."""
    loop = asyncio.get_running_loop()

    def read_and_cancel(connection: Connection, request: Received) -> None:
        loop.call_soon_threadsafe(tasks[-1].cancel)
        hang()(connection, request)

    server = lab(read_and_cancel)
    spending = Spending()
    tasks: list[asyncio.Task] = []
    async with AsyncPhosphoClient(base_url=server.base_url, spending=spending) as client:
        for _ in range(40):
            tasks.append(asyncio.create_task(client.describe(PICTURE)))
            with pytest.raises(asyncio.CancelledError):
                await tasks[-1]

    snapshot = spending.snapshot()
    assert (snapshot.images_in_doubt, snapshot.images_reserved) == (40, 0)


async def test_cancelled_while_sleeping_before_a_retry(lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retry, "_FIRST_DELAY", 100.0)
    monkeypatch.setattr(retry, "_LONGEST_DELAY", 100.0)
    server = lab(status(503), answer())
    spending = Spending(max_images=1)
    async with AsyncPhosphoClient(
        base_url=server.base_url, spending=spending, max_concurrency=1
    ) as client:
        task = asyncio.create_task(client.describe(PICTURE))
        await _until(lambda: server.requests)
        await asyncio.sleep(0.05)

        await _cancelled(task)

        snapshot = spending.snapshot()
        assert snapshot.images_billed + snapshot.images_in_doubt + snapshot.images_reserved == 0
        assert (await client.describe(PICTURE)).metadata["images_billed"] == 1


async def test_cancelled_while_the_rate_makes_it_wait(lab):
    server = lab()
    spending = Spending()
    async with AsyncPhosphoClient(
        base_url=server.base_url, spending=spending, requests_per_second=0.1
    ) as client:
        await client.describe(PICTURE)
        task = asyncio.create_task(client.describe(PICTURE))
        await asyncio.sleep(0.02)

        await _cancelled(task)

    assert spending.snapshot().images_billed == len(server.requests) == 1
    assert spending.snapshot().images_reserved == 0


async def test_a_timeout_around_a_call_is_a_cancellation_like_any_other(lab):
    server = lab(hang())
    spending = Spending()
    async with AsyncPhosphoClient(base_url=server.base_url, spending=spending) as client:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.describe(PICTURE), 0.1)

    assert spending.snapshot().images_in_doubt == 1


def test_ctrl_c_while_an_answer_is_awaited(lab, interrupt_after):
    server = lab(hang(), answer())
    spending = Spending()
    with PhosphoClient(base_url=server.base_url, spending=spending, max_concurrency=1) as client:
        interrupt_after(0.15)
        with pytest.raises(KeyboardInterrupt):
            client.describe(PICTURE)

        assert spending.snapshot().images_in_doubt == 1
        assert client.describe(PICTURE).metadata["attempts"] == 1


def test_ctrl_c_while_waiting_for_the_rate(lab, interrupt_after):
    server = lab()
    spending = Spending()
    with PhosphoClient(
        base_url=server.base_url, spending=spending, requests_per_second=1, max_concurrency=1
    ) as client:
        client.describe(PICTURE)
        interrupt_after(0.1)
        with pytest.raises(KeyboardInterrupt):
            client.describe(PICTURE)
        assert client.describe(PICTURE).metadata["attempts"] == 1

    assert spending.snapshot().images_billed == 2


@pytest.mark.parametrize("options", [{"max_concurrency": 1}, {"requests_per_second": 0.2}], ids=str)
def test_the_deadline_bounds_waiting(lab, options):
    server = lab(hang())
    start = time.monotonic()

    with PhosphoClient(base_url=server.base_url, deadline=0.2, timeout=0.1, **options) as client:
        results = []
        for _ in range(2):
            try:
                client.describe(PICTURE)
            except PhosphoError as error:
                results.append(type(error))

    assert time.monotonic() - start < 10
    assert results[0] is ReplyLostError
    assert results[1] in {ReplyLostError, ConnectionFailedError}


async def test_the_deadline_bounds_waiting_for_a_slot(lab):
    server = lab(hang(1))
    async with AsyncPhosphoClient(
        base_url=server.base_url, max_concurrency=1, deadline=0.3
    ) as client:
        first = asyncio.create_task(client.describe(PICTURE))
        await _until(lambda: server.requests)
        await asyncio.sleep(0.1)
        with pytest.raises(ReplyLostError, match=r"deadline of 0\.3 s"):
            await first
    assert len(server.requests) == 1


def test_a_deadline_too_near_for_the_pause_raises_the_last_error_at_once(driver, lab):
    server = lab(status(503, "Busy", headers={"retry-after": "30"}))
    start = time.monotonic()

    with pytest.raises(PhosphoError, match="Busy") as caught:
        driver.describe(PICTURE, base_url=server.base_url, deadline=5)

    assert time.monotonic() - start < 10
    assert type(caught.value).__name__ == "ServiceError"


def _printed(code: str) -> str:
    """What code prints in a process of its own, with every warning shown and none expected."""
    finished = in_fresh_python("import warnings; warnings.simplefilter('always')\n" + dedent(code))
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout.strip()


@pytest.mark.long
def test_after_a_fork_parent_and_child_have_connections_of_their_own(lab):
    server = lab()

    printed = _printed(f"""
        import os, pathlib
        from phospho_multimodal import PhosphoClient
        client = PhosphoClient(base_url={server.base_url!r})
        picture = {PICTURE!r}
        def ask(who):
            for n in range(5):
                answer = client.describe(picture, f"{{who}} {{n}}").description
                assert answer == f"You asked: {{who}} {{n}}", answer
        ask("before")
        child = os.fork()
        if child == 0:
            ask("child")
            os._exit(0)
        ask("parent")
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)

    assert printed == "0"
    assert len(server.requests) == 15


@pytest.mark.long
def test_an_interpreter_that_exits_with_requests_in_flight_is_quiet(lab):
    server = lab(hang())

    printed = _printed(f"""
        import threading, time
        from phospho_multimodal import PhosphoClient
        client = PhosphoClient(base_url={server.base_url!r})
        for _ in range(3):
            threading.Thread(target=client.describe, args=({PICTURE!r},), daemon=True).start()
        time.sleep(0.3)
        print("leaving")
    """)

    assert printed == "leaving"


@pytest.mark.long
def test_a_loop_that_ends_with_requests_in_flight_is_quiet(lab):
    server = lab(hang())

    printed = _printed(f"""
        import asyncio
        from phospho_multimodal import AsyncPhosphoClient
        async def main():
            client = AsyncPhosphoClient(base_url={server.base_url!r})
            tasks = [asyncio.create_task(client.describe({PICTURE!r})) for _ in range(3)]
            await asyncio.sleep(0.3)
            print("leaving")
        asyncio.run(main())
    """)

    assert printed == "leaving"


def test_ctrl_c_sends_nothing_more_of_several_images(lab, interrupt_after, real_delays):
    server = lab(status(503, headers={"retry-after": "30"}))
    spending = Spending()
    with PhosphoClient(base_url=server.base_url, spending=spending) as client:
        interrupt_after(0.5)
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client.converse([TURN], EACH)

    assert time.monotonic() - begin < 10
    assert len(server.requests) == 2
    assert spending.snapshot().images_reserved == 0


def test_only_the_thread_that_asked_closes_its_connection(lab, monkeypatch):
    """Closed by another, a descriptor's number may be a stranger's while it is still read from."""
    server = lab(drip(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200, every=0.02))
    closed_by: list[int] = []
    close = httpx.HTTPTransport.close

    def noting_close(transport: httpx.HTTPTransport) -> None:
        closed_by.append(threading.get_ident())
        close(transport)

    monkeypatch.setattr(httpx.HTTPTransport, "close", noting_close)
    begin = time.monotonic()
    with (
        PhosphoClient(base_url=server.base_url, deadline=0.3) as client,
        pytest.raises(ReplyLostError, match="deadline"),
    ):
        client.describe(PICTURE)

    assert time.monotonic() - begin < 10
    assert set(closed_by) == {threading.get_ident()}


def test_the_deadline_holds_on_a_connection_that_was_used_before(lab):
    server = lab(answer(), answer(), drip(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200, every=0.02))
    with PhosphoClient(base_url=server.base_url, deadline=0.4) as client:
        client.describe(PICTURE)
        client.describe(PICTURE)
        begin = time.monotonic()
        with pytest.raises(ReplyLostError, match="deadline"):
            client.describe(PICTURE)

    assert time.monotonic() - begin < 10
    assert server.connections == 1


def _begun_on_threads(spending: Spending, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is begun with a ledger's file, since who waits for it shows nothing else."""
    begun: list[str] = []

    def noting(name: str) -> Callable[..., object]:
        do = getattr(spending._ledger, name)

        def noted(*arguments: object) -> object:
            begun.append(name)
            return do(*arguments)

        return noted

    for name in ("reserve", "settle"):
        monkeypatch.setattr(spending._ledger, name, noting(name))
    return begun


@pytest.mark.parametrize("multi_image", ["last", "each"])
async def test_cancelled_while_a_held_ledger_file_makes_it_wait_nothing_stays_reserved(
    lab, ledger, monkeypatch, multi_image
):
    server = lab()
    spending, file = ledger
    begun = _begun_on_threads(spending, monkeypatch)
    file.hold()
    async with AsyncPhosphoClient(base_url=server.base_url, spending=spending) as client:
        policy = ImagePolicy(multi_image=multi_image)
        task = asyncio.create_task(client.converse([TURN], policy))
        await _until(lambda: begun)

        await _cancelled(task)
        file.let_go()
        # The abandoned thread reserves, and releases what nobody waits for.
        await _until(lambda: begun.count("settle") == (2 if multi_image == "each" else 1))

        assert spending.snapshot().images_reserved == 0
        assert (await client.converse([TURN], EACH)).metadata["images_billed"] == 2
    assert len(server.requests) == 2


async def test_cancelled_in_the_moment_it_was_reserved_nothing_stays_reserved(
    lab, ledger, monkeypatch
):
    server = lab()
    spending, _ = ledger
    loop = asyncio.get_running_loop()
    reserve = spending.reserve

    def reserve_and_cancel(images: int = 1):
        made = reserve(images)
        loop.call_soon_threadsafe(task.cancel)  # before the thread reports what it made
        return made

    monkeypatch.setattr(spending, "reserve", reserve_and_cancel)
    async with AsyncPhosphoClient(base_url=server.base_url, spending=spending) as client:
        task = asyncio.create_task(client.describe(PICTURE))
        with pytest.raises(asyncio.CancelledError):
            await task

    await _until(lambda: spending.snapshot().images_reserved == 0)
    assert server.requests == []


@pytest.mark.parametrize("multi_image", ["last", "each"])
def test_ctrl_c_while_a_held_ledger_file_makes_it_wait_nothing_stays_reserved(
    lab, ledger, interrupt_after, multi_image
):
    server = lab()
    spending, file = ledger
    file.hold()
    free_again = threading.Timer(0.4, file.let_go)
    free_again.start()
    with PhosphoClient(base_url=server.base_url, spending=spending) as client:
        interrupt_after(0.1)
        with pytest.raises(KeyboardInterrupt):
            client.converse([TURN], ImagePolicy(multi_image=multi_image))
    free_again.join()

    assert spending.snapshot().images_reserved == 0
    assert server.requests == []


def _holding(file: HeldFile, behaviour: Behaviour) -> Behaviour:
    """Behave when another process has taken the ledger's file."""

    def behave(connection: Connection, request: Received) -> None:
        file.hold()
        behaviour(connection, request)

    return behave


async def test_a_lost_reply_with_a_held_ledger_file_does_not_stop_the_event_loop(lab, ledger):
    spending, file = ledger
    server = lab(_holding(file, reset()))
    async with AsyncPhosphoClient(base_url=server.base_url, spending=spending) as client:
        task = asyncio.create_task(client.describe(PICTURE))
        await _until(lambda: server.requests)
        longest = 0.0
        for _ in range(20):
            begin = time.monotonic()
            await asyncio.sleep(0.02)
            longest = max(longest, time.monotonic() - begin)
        file.let_go()
        with pytest.raises(ReplyLostError):
            await task

    assert longest < 3
    assert spending.snapshot().images_in_doubt == 1


async def test_a_cancelled_call_does_not_wait_for_a_held_ledger_file(lab, ledger):
    spending, file = ledger
    server = lab(_holding(file, hang()))
    async with AsyncPhosphoClient(base_url=server.base_url, spending=spending) as client:
        task = asyncio.create_task(client.describe(PICTURE))
        await _until(lambda: server.requests)
        await asyncio.sleep(0.05)
        begin = time.monotonic()

        await _cancelled(task)

        assert time.monotonic() - begin < 3
    file.let_go()
    snapshot = spending.snapshot()
    assert (snapshot.images_in_doubt, snapshot.images_reserved) == (1, 0)


async def test_cancelled_before_a_thread_settles_an_answer_is_billed(lab, ledger, monkeypatch):
    spending, _ = ledger
    server = lab(answer())
    run_sync = anyio.to_thread.run_sync

    async def cancelled_after_the_answer(work: Callable[[], object], **options: Any) -> object:
        if server.billed:
            task.cancel()
        return await run_sync(work, **options)  # whose first step is where the task ends

    monkeypatch.setattr(anyio.to_thread, "run_sync", cancelled_after_the_answer)
    async with AsyncPhosphoClient(base_url=server.base_url, spending=spending) as client:
        task = asyncio.create_task(client.describe(PICTURE))
        with pytest.raises(asyncio.CancelledError):
            await task

    snapshot = spending.snapshot()
    assert (snapshot.images_billed, snapshot.images_reserved) == (1, 0)


@pytest.mark.long
@pytest.mark.parametrize("path", [None, "spending.db"], ids=["memory", "file"])
def test_an_image_whose_loop_was_closed_after_it_was_sent_stays_in_the_ledger(lab, tmp_path, path):
    server = lab(hang())

    printed = _printed(f"""
        import asyncio, gc, os
        from phospho_multimodal import AsyncPhosphoClient, Spending
        spending = Spending(path={path and str(tmp_path / path)!r})
        loop = asyncio.new_event_loop()
        client = AsyncPhosphoClient(base_url={server.base_url!r}, spending=spending)
        call = loop.create_task(client.describe({PICTURE!r}))
        loop.run_until_complete(asyncio.sleep(1))
        loop.close()
        call._log_destroy_pending = False
        del call
        gc.collect()
        now = spending.snapshot()
        print(now.images_in_doubt + now.images_reserved, now.images_billed, flush=True)
        os._exit(0)
    """)

    assert printed == "1 0"


def _late_answer(connection: Connection, request: Received) -> None:
    connection.server.stopping.wait(0.5)
    answer()(connection, request)


@pytest.mark.parametrize("kept_in", ["memory", "file"])
def test_ctrl_c_before_the_answers_to_several_images_bills_those_that_come(
    lab, tmp_path, interrupt_after, kept_in
):
    def behave(connection: Connection, request: Received) -> None:
        if len(connection.server.requests) == 2:
            interrupt_after(0.05)
        _late_answer(connection, request)

    server = lab(behave)
    spending = Spending(path=tmp_path / "spending.db" if kept_in == "file" else None)
    with (
        PhosphoClient(base_url=server.base_url, spending=spending) as client,
        pytest.raises(KeyboardInterrupt),
    ):
        client.converse([TURN], EACH)

    snapshot = spending.snapshot()
    assert (snapshot.images_billed, snapshot.images_reserved) == (server.billed, 0) == (2, 0)


def test_ctrl_c_while_several_questions_are_begun_sends_nothing_more(lab, monkeypatch, real_delays):
    server = lab(status(503, headers={"retry-after": "30"}))
    spending = Spending()
    submit = ThreadPoolExecutor.submit

    def interrupted(pool: ThreadPoolExecutor, *arguments: object) -> object:
        if server.requests:
            raise KeyboardInterrupt
        future = submit(pool, *arguments)  # type: ignore[arg-type]
        server.wait_for_requests(1)
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    begin = time.monotonic()
    with (
        PhosphoClient(base_url=server.base_url, spending=spending) as client,
        pytest.raises(KeyboardInterrupt),
    ):
        client.converse([TURN], EACH)

    assert time.monotonic() - begin < 10
    assert len(server.requests) == 1
    assert spending.snapshot().images_reserved == 0


def _begun(spending: Spending) -> Generator[Step, object, str]:
    """A question on its way by hand, up to the request that waits for its answer."""
    shared = ClientState.of(Settings.resolve(base_url="http://127.0.0.1:9"), spending)
    conversation = send_with_retries(shared, RequestState([b"{}"], (), None))
    step = next(conversation)
    while not isinstance(step, SendRequest):
        step = conversation.send(step.run() if isinstance(step, RunInThread) else lambda: None)
    for _ in step.body:
        pass
    return conversation


@pytest.mark.parametrize(
    "interrupt",
    [
        lambda conversation: conversation.throw(KeyboardInterrupt()),
        lambda conversation: conversation.throw(asyncio.CancelledError()),
        lambda conversation: conversation.close(),
    ],
    ids=["Ctrl-C", "cancelled", "closed"],
)
@pytest.mark.parametrize(
    ("code", "counts"), [(200, (1, 0, 0)), (400, (0, 0, 0)), (502, (0, 1, 0))], ids=str
)
def test_a_reply_that_came_is_settled_whatever_comes_between(ledger, interrupt, code, counts):
    spending, _ = ledger
    conversation = _begun(spending)
    assert isinstance(
        conversation.send(HttpResponse(code, {}, prediction("Paid for."))), RunInThread
    )

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        interrupt(conversation)

    snapshot = spending.snapshot()
    assert counts == (snapshot.images_billed, snapshot.images_in_doubt, snapshot.images_reserved)


@pytest.mark.parametrize("kept_in", ["memory", "file"])
def test_ctrl_c_while_an_answer_is_read_leaves_it_in_doubt(tmp_path, monkeypatch, kept_in):
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(exchange, "read_description", interrupted)
    spending = Spending(path=tmp_path / "spending.db" if kept_in == "file" else None)
    conversation = _begun(spending)

    with pytest.raises(KeyboardInterrupt):
        conversation.send(HttpResponse(200, {}, prediction("Paid for.")))

    snapshot = spending.snapshot()
    assert (snapshot.images_in_doubt, snapshot.images_reserved) == (1, 0)


def test_what_a_cancelled_call_left_is_written_before_the_interpreter_ends(tmp_path):
    path = tmp_path / "spending.db"
    Spending(path=path)

    printed = _printed(f"""
        import sqlite3, threading
        from phospho_multimodal import Spending
        spending = Spending(path={str(path)!r})
        (reservation,) = spending.reserve()
        holder = sqlite3.connect({str(path)!r}, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        threading.Timer(0.3, holder.close).start()
        spending.settle_later(reservation.bill)
        print("leaving")
    """)

    assert printed == "leaving"
    assert Spending(path=path).snapshot().images_billed == 1


def test_a_connection_in_use_when_its_client_is_closed_closes_when_it_comes_back(lab):
    server = lab(_late_answer)
    client = PhosphoClient(base_url=server.base_url)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(client.describe, PICTURE)
        server.wait_for_requests(1)

        client.close()

        assert asked.result().metadata["attempts"] == 1
    server.wait_until_idle()


async def test_a_connection_in_use_when_its_client_is_closed_closes_when_it_comes_back_async(lab):
    server = lab(_late_answer)
    client = AsyncPhosphoClient(base_url=server.base_url)
    asked = asyncio.create_task(client.describe(PICTURE))
    await _until(lambda: server.requests)

    await client.aclose()

    assert (await asked).metadata["attempts"] == 1
    await _until(lambda: not server.open_connections)


@pytest.mark.long
def test_with_a_borrowed_client_no_wait_begins_with_more_time_than_is_left(lab):
    def read_late_and_say_nothing(connection: Connection) -> None:
        connection.server.stopping.wait(3)
        while connection.socket.recv(1 << 20):
            pass

    large = encoded(kind="PNG", compress_level=0) + b"\0" * 8_000_000
    server = FaultServer(before_body=read_late_and_say_nothing)
    spending = Spending()
    with server.running(), httpx.Client() as http_client:
        client = PhosphoClient(
            base_url=server.base_url,
            spending=spending,
            http_client=http_client,
            deadline=4.0,
            prepare=False,
        )
        begin = time.monotonic()
        with pytest.raises(ReplyLostError, match="deadline of 4 s"):
            client.describe(large)

        assert time.monotonic() - begin < 5.5  # with a wait of 4 s begun anew it would be 7

    assert spending.snapshot().images_in_doubt == 1
