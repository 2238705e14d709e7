"""One limit for all threads and event loops, first come, first served."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fault_server import hang
from phospho_multimodal.client.model_clients import ModelClients
from phospho_multimodal.exchange.limits import Slots
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import ImagePolicy, Turn
from phospho_multimodal.settings import Settings
from pictures import encoded

PICTURE = encoded()


def test_threads_and_event_loops_share_the_limit_of_a_model(lab):
    server = lab(hang(0.1))
    clients = ModelClients.make(
        Settings.resolve(base_url=server.base_url, max_concurrency=2, timeout=0.05),
        spending=None,
        http_client=None,
        http_async_client=None,
    )
    turn = Turn("user", ("?", image_source(PICTURE)))
    now, peak, counting = 0, 0, threading.Lock()
    send, send_async = clients.sync._send, clients.asynchronous._send

    def count(by: int) -> None:
        nonlocal now, peak
        with counting:
            now += by
            peak = max(peak, now)

    def counted(step):
        count(1)
        try:
            return send(step)
        finally:
            count(-1)

    async def counted_async(step):
        count(1)
        try:
            return await send_async(step)
        finally:
            count(-1)

    clients.sync._send = counted
    clients.asynchronous._send = counted_async

    async def gathered() -> None:
        calls = [clients.asynchronous.converse([turn], ImagePolicy()) for _ in range(6)]
        await asyncio.gather(*calls, return_exceptions=True)

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(asyncio.run, gathered()) for _ in range(2)]
        running += [pool.submit(clients.sync.converse, [turn], ImagePolicy()) for _ in range(6)]
        for one in running:
            one.exception()

    assert peak == 2
    assert len(server.requests) == 18


def test_the_one_who_waits_longest_is_next():
    slots = Slots(1)
    assert slots.take()
    order: list[str] = []

    def wait(name: str) -> None:
        assert slots.take()
        order.append(name)
        slots.give_back()

    async def wait_async(name: str) -> None:
        await slots.take_async()
        order.append(name)
        slots.give_back()

    threads = []
    for number in range(6):
        target = wait if number % 2 else lambda name: asyncio.run(wait_async(name))
        threads.append(threading.Thread(target=target, args=(str(number),)))
        threads[-1].start()
        while len(slots._queue) < number + 1:
            time.sleep(0.001)
    slots.give_back()
    for thread in threads:
        thread.join()

    assert order == ["0", "1", "2", "3", "4", "5"]
    assert slots.take(0)


def test_who_gives_up_waiting_takes_nothing():
    slots = Slots(1)
    assert slots.take()

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(slots.take_async(), 0.01)

    assert not slots.take(0.01)
    asyncio.run(give_up())
    slots.give_back()

    assert slots.take(0)
    assert not slots.take(0)


def test_a_slot_that_comes_with_the_cancellation_is_handed_on():
    slots = Slots(1)

    async def cancelled_at_once() -> None:
        await slots.take_async()
        waiting = asyncio.ensure_future(slots.take_async())
        await asyncio.sleep(0)
        slots.give_back()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        if not waiting.cancelled():
            slots.give_back()

    asyncio.run(cancelled_at_once())

    assert slots.take(0)


def test_a_loop_that_is_closed_is_passed_over():
    slots = Slots(1)
    assert slots.take()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(slots.take_async())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    slots.give_back()

    assert slots.take(0)
    del waiting
