"""How many at once: an endpoint is simulated, with a clock of its own."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from random import Random
from typing import Any

import pytest

from phospho_multimodal.batch.pipeline.adaptive_concurrency import AdaptiveConcurrency


class Endpoint:
    """Answers so many at once, lets so many wait, and refuses the next with a 503."""

    def __init__(self, at_once: int, waiting: int, seconds: float = 0.05) -> None:
        self.now = 0.0
        self._at_once = at_once
        self._waiting = waiting
        self._seconds = seconds
        self._chance = Random(0)  # noqa: S311 - how long answers take

    def ask_for(self, seconds: float, level: AdaptiveConcurrency) -> dict[str, Any]:
        """Keep as many under way as the level allows; tell what came of it."""
        end = self.now + seconds
        ends: list[tuple[float, float, int]] = []  # when, sent when, status
        busy, refused, answered, under_way = 0, 0, 0, 0
        queue: deque[float] = deque()
        limits: list[int] = []
        while self.now < end:
            while under_way < level.limit:
                under_way += 1
                if busy < self._at_once:
                    busy += 1
                    heapq.heappush(ends, (self.now + self._takes(), self.now, 200))
                elif len(queue) < self._waiting:
                    queue.append(self.now)
                else:
                    heapq.heappush(ends, (self.now + 0.002, self.now, 503))
            self.now, sent, status = heapq.heappop(ends)
            under_way -= 1
            if status == 503:
                refused += 1
            else:
                answered += 1
                busy -= 1
                if queue:
                    busy += 1
                    heapq.heappush(ends, (self.now + self._takes(), queue.popleft(), 200))
            level.note(status, sent)
            limits.append(level.limit)
        return {"rate": answered / seconds, "refused": refused, "limits": limits}

    def _takes(self) -> float:
        return self._seconds * self._chance.uniform(0.8, 1.2)


@pytest.mark.parametrize(
    ("at_once", "waiting", "highest"),
    [(1, 16, 12), (4, 100, 16), (8, 8, 20), (8, 1000, 24), (32, 100, 64), (64, 100, 64)],
)
def test_it_finds_what_the_endpoint_can_do_and_no_long_queue(
    at_once: int, waiting: int, highest: int
) -> None:
    endpoint = Endpoint(at_once, waiting)
    level = AdaptiveConcurrency(64, clock=lambda: endpoint.now)
    endpoint.ask_for(5, level)
    seen = endpoint.ask_for(20, level)
    assert seen["rate"] > 0.9 * at_once / 0.05
    assert max(seen["limits"]) <= highest
    assert seen["refused"] < 0.01 * seen["rate"] * 20


def test_it_goes_down_when_the_endpoint_can_do_less_and_up_again() -> None:
    endpoint = Endpoint(32, 0)
    level = AdaptiveConcurrency(64, clock=lambda: endpoint.now)
    endpoint.ask_for(10, level)
    endpoint._at_once = 4
    endpoint.ask_for(5, level)
    assert endpoint.ask_for(5, level)["rate"] > 0.8 * 4 / 0.05
    assert level.limit <= 8
    endpoint._at_once = 32
    endpoint.ask_for(10, level)
    assert endpoint.ask_for(5, level)["rate"] > 0.8 * 32 / 0.05


def test_a_number_is_where_it_begins_and_what_it_never_passes() -> None:
    endpoint = Endpoint(100, 0)
    level = AdaptiveConcurrency(16, fixed=True, clock=lambda: endpoint.now)
    assert set(endpoint.ask_for(2, level)["limits"]) == {16}
    endpoint._at_once = 4
    endpoint.ask_for(2, level)
    assert level.limit <= 8
    endpoint._at_once = 100
    endpoint.ask_for(5, level)
    assert level.limit == 16


def test_a_storm_lowers_it_once_a_round_and_never_to_nothing() -> None:
    level = AdaptiveConcurrency(64, fixed=True, clock=lambda: 1.0)
    for _ in range(64):
        level.note(429, 0.0)  # all of them sent before the first came back
    assert level.limit == 44
    for round_ in range(50):
        level._clock = lambda now=float(round_): now + 2
        level.note(429, round_ + 2)
    assert level.limit == 1


async def test_who_waits_gets_a_turn_in_order_and_who_is_cancelled_takes_none() -> None:
    level = AdaptiveConcurrency(2, fixed=True)
    await level.take()
    await level.take()
    order: list[str] = []

    async def wait(name: str) -> None:
        await level.take()
        order.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    level.give_back()
    await asyncio.sleep(0)
    tasks[0].cancel()  # it has its turn already
    level.give_back()
    await asyncio.wait(tasks)
    assert order == ["a", "c"]
    assert level.in_flight == 2


async def test_a_turn_that_comes_with_the_cancellation_is_passed_on() -> None:
    level = AdaptiveConcurrency(1, fixed=True)
    await level.take()
    first = asyncio.create_task(level.take())
    second = asyncio.create_task(level.take())
    await asyncio.sleep(0)
    level.give_back()
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert first.cancelled()
    assert level.in_flight == 1
