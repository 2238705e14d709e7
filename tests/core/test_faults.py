"""The fault lab: each fault ends in an answer or a typed error, the money is right, no leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from faults import ANSWER, FAULTS, Fault, table

from drivers import AsyncDriver, Driver
from fault_server import FaultServer
from phospho_multimodal import PhosphoError, Spending
from pictures import encoded

PICTURE = encoded()
LARGE_PICTURE = encoded(kind="PNG", compress_level=0) + b"\0" * 8_000_000


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """After the test there are no more files and threads than before it."""
    files, threads = _open_files(), set(threading.enumerate())
    yield
    end = time.monotonic() + 5
    while (_open_files() > files or set(threading.enumerate()) - threads) and (
        time.monotonic() < end
    ):
        gc.collect()
        time.sleep(0.01)
    assert _open_files() <= files
    # anyio keeps the threads that prepared pictures until their loop ends, and no longer.
    assert set(threading.enumerate()) - threads == set()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_server_that(driver: Driver, fault: Fault):
    options = dict(fault.options)
    scheme, calls = options.pop("scheme", "http"), options.pop("calls", 1)
    pause = options.pop("pause", 0.0)
    spending = Spending()
    listens = bool(fault.script or fault.before_body)
    server = FaultServer(*fault.script, before_body=fault.before_body)
    picture = LARGE_PICTURE if fault.before_body else PICTURE
    start = time.monotonic()

    with server.running():
        base_url = f"{scheme}://127.0.0.1:{server.port if listens else 9}"
        results = driver.run(
            # Unprepared, so that the large picture is sent as large as it is.
            {"base_url": base_url, "spending": spending, "prepare": False, **options},
            *[(picture, "What is this?")] * calls,
            pause=pause,
        )

    assert time.monotonic() - start < 10
    assert [_end(result) for result in results] == [fault.ends] * calls
    assert len(server.requests) == fault.requests
    snapshot = spending.snapshot()
    assert (snapshot.images_billed, snapshot.images_in_doubt) == (fault.billed, fault.in_doubt)
    assert snapshot.images_reserved == 0
    assert snapshot.images_billed <= server.billed
    assert server.billed <= snapshot.images_billed + snapshot.images_in_doubt


def _end(result: Any) -> str:
    if isinstance(result, PhosphoError):
        return type(result).__name__
    if isinstance(result, Exception):
        raise result
    assert result.description in {"A good answer.", "You asked: What is this?"}
    return ANSWER


def test_no_task_is_left_behind():
    async def look() -> set[Any]:
        driver = AsyncDriver()
        for fault in FAULTS:
            if "timeout" in fault.options or "deadline" in fault.options:
                continue
            with FaultServer(*fault.script).running() as server:
                await driver.ask({"base_url": server.base_url}, (PICTURE, "?"))
        await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(look()) == set()


def test_the_table_in_the_readme_is_the_labs():
    readme = pathlib.Path(__file__).parents[2] / "cookbook/reference/errors.md"

    assert table() in readme.read_text(encoding="utf-8")
