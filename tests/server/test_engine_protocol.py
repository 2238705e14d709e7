"""What an engine may be besides a name and a plain `describe`."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest

from live_server import serve
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import (
    EngineBusy,
    EngineFailed,
    InputImage,
    Question,
    load_engine,
    running,
)


@dataclass
class PlainEngine:
    """Raises the given exception."""

    failure: Exception
    name = "plain"

    def describe(self, picture: InputImage, question: Question) -> str:
        raise self.failure


@dataclass
class AsyncEngine:
    """Answers on the event loop, once its gate is open, and keeps a diary."""

    name = "async"
    at_once: int = 3
    state: str = "ok"
    diary: list[str] = field(default_factory=list)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    gate: threading.Event = field(default_factory=threading.Event)
    pictures: list[weakref.ref[InputImage]] = field(default_factory=list)

    async def start(self) -> None:
        self.diary.append("started")

    async def close(self) -> None:
        self.diary.append("closed")

    async def describe(self, picture: InputImage, question: Question) -> str:
        self.pictures.append(weakref.ref(picture))
        del picture
        self.entered.release()
        try:
            while not self.gate.is_set():  # noqa: ASYNC110 - it is opened by another thread
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.diary.append("cancelled")
            raise
        return question.text


def ask(base_url: str, picture, **options) -> httpx.Response:
    return httpx.post(f"{base_url}/v2/predict", json=picture.request(), timeout=30, **options)


def asked_once(engine, picture) -> httpx.Response:
    with serve(create_app(engine)) as base_url:
        return ask(base_url, picture)


def test_a_busy_engine_is_a_503_with_its_retry_after(picture):
    response = asked_once(PlainEngine(EngineBusy(9)), picture)
    assert (response.status_code, response.headers["retry-after"]) == (503, "9")


def test_what_an_engine_says_of_its_failure_is_logged_and_not_answered(picture, caplog):
    response = asked_once(PlainEngine(EngineFailed("The model lost its weights.")), picture)
    assert response.status_code == 500
    assert response.json() == {"detail": "An error occurred while generating predictions."}
    assert "The model lost its weights." in caplog.text


def test_of_any_other_failure_only_the_place_is_logged(picture, caplog):
    assert asked_once(PlainEngine(RuntimeError("What is this?")), picture).status_code == 500
    assert "What is this?" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_an_engine_is_started_before_the_first_request_and_closed_after_the_last(picture):
    engine = AsyncEngine()
    engine.gate.set()
    with serve(create_app(engine)) as base_url:
        assert engine.diary == ["started"]
        answer = ask(base_url, picture).json()
    assert answer == {"predictions": [{"description": "What is this?"}]}
    assert engine.diary == ["started", "closed"]


def test_while_an_engine_loads_nothing_is_asked_of_it(picture):
    engine = AsyncEngine(state="loading")
    engine.gate.set()
    with serve(create_app(engine)) as base_url:
        health = httpx.get(f"{base_url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        assert ask(base_url, picture).status_code == 503
        assert engine.pictures == []
        engine.state = "ok"
        assert httpx.get(f"{base_url}/health").json() == {"status": "ok", "engine": "async"}
        assert ask(base_url, picture).status_code == 200


def test_an_async_engine_is_given_as_many_questions_as_it_says(picture):
    engine = AsyncEngine(at_once=3)
    with serve(create_app(engine, max_queue=2)) as base_url, ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask, base_url, picture) for _ in range(3)]
        for _ in asked:
            assert engine.entered.acquire(timeout=20)
        asked += [pool.submit(ask, base_url, picture) for _ in range(2)]
        time.sleep(0.5)  # for them to wait
        assert not engine.entered.acquire(blocking=False)
        assert ask(base_url, picture).status_code == 503
        engine.gate.set()
        assert [a.result().status_code for a in asked] == [200] * 5


def test_while_an_async_engine_waits_nobody_else_holds_its_image(picture):
    engine = AsyncEngine()
    with serve(create_app(engine)) as base_url, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, base_url, picture)
        assert engine.entered.acquire(timeout=20)
        time.sleep(0.2)
        gc.collect()
        try:
            assert engine.pictures[0]() is None
        finally:
            engine.gate.set()
        assert asked.result().status_code == 200


def test_an_async_engine_is_stopped_when_its_client_leaves(picture):
    engine = AsyncEngine(at_once=1)
    with serve(create_app(engine, max_queue=0)) as base_url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{base_url}/v2/predict", json=picture.request(), timeout=1)
        deadline = time.monotonic() + 20
        while "cancelled" not in engine.diary:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        engine.gate.set()
        assert ask(base_url, picture).status_code == 200


async def test_an_engine_that_cannot_start_ends_the_server_and_is_closed():
    class Hopeless(AsyncEngine):
        async def start(self) -> None:
            message = "There are no weights."
            raise ConfigurationError(message)

    engine = Hopeless()
    with pytest.raises(ConfigurationError, match="no weights"):
        async with running(engine):
            pytest.fail("It did start.")
    assert engine.diary == ["closed"]


def test_an_option_that_an_engine_does_not_know_is_refused_by_its_flag():
    with pytest.raises(ConfigurationError, match="'echo' does not use --max-side"):
        load_engine("echo", max_side=7, model=None)
