"""How questions are gathered for the one thread of a model; what answers here is a function."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from PIL import Image

from phospho_multimodal.contract import GenerationParameters
from phospho_multimodal.server.engines import EngineBusy
from phospho_multimodal.server.engines.batches import Batches, PendingQuestion

GREEDY = GenerationParameters()
WARM = GenerationParameters(temperature=0.7)
DOT = Image.new("RGB", (1, 1))


class Model:
    """Repeats the questions in capitals, once its gate is open, and keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def answer(self, batch: Sequence[PendingQuestion]) -> list[str | Exception]:
        self.batches.append([asked.text for asked in batch])
        self.entered.release()
        assert self.gate.wait(30)
        if any(asked.text == "broken" for asked in batch):
            message = "one of them is broken"
            raise RuntimeError(message)
        return [ValueError() if a.text == "empty" else a.text.upper() for a in batch]


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.gate.set()


@contextlib.contextmanager
def gathered(model: Model, most: int = 4) -> Iterator[Batches]:
    batches = Batches(lambda: model.answer, max_batch=most)
    try:
        yield batches
    finally:
        model.gate.set()
        batches.close()
        batches.join(10)


async def entered(model: Model) -> None:
    assert await asyncio.to_thread(model.entered.acquire, timeout=10)


async def busy(batches: Batches, model: Model) -> asyncio.Task[str]:
    """Keep the model at work until its gate is opened."""
    model.gate.clear()
    first = asyncio.create_task(batches.ask(DOT, "first", GREEDY))
    await entered(model)
    return first


async def test_what_is_asked_together_is_answered_together_and_each_gets_its_own(model):
    with gathered(model) as batches:
        asked = [batches.ask(DOT, text, GREEDY) for text in "abc"]
        assert await asyncio.gather(*asked) == ["A", "B", "C"]
    assert model.batches == [["a", "b", "c"]]


async def test_what_comes_while_the_model_works_goes_together_up_to_the_most(model):
    with gathered(model, most=2) as batches:
        first = await busy(batches, model)
        others = [asyncio.create_task(batches.ask(DOT, text, GREEDY)) for text in "abc"]
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(first, *others)
    assert model.batches == [["first"], ["a", "b"], ["c"]]


async def test_only_questions_with_the_same_parameters_share_a_batch_and_the_oldest_goes_first(
    model,
):
    with gathered(model) as batches:
        first = await busy(batches, model)
        kinds = [("a", WARM), ("b", GREEDY), ("c", WARM)]
        others = [asyncio.create_task(batches.ask(DOT, text, kind)) for text, kind in kinds]
        await asyncio.sleep(0.05)
        model.gate.set()
        assert await asyncio.gather(first, *others) == ["FIRST", "A", "B", "C"]
    assert model.batches == [["first"], ["a", "c"], ["b"]]


async def test_one_that_fails_does_not_fail_its_company(model):
    with gathered(model) as batches:
        asked = [batches.ask(DOT, text, GREEDY) for text in ("a", "broken", "empty")]
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[0] == "A"
    assert [type(answer) for answer in answers[1:]] == [RuntimeError, ValueError]


async def test_four_full_batches_may_wait_and_the_next_question_is_told_to_come_again(model):
    with gathered(model, most=1) as batches:
        first = await busy(batches, model)
        others = [asyncio.create_task(batches.ask(DOT, text, GREEDY)) for text in "abcd"]
        await asyncio.sleep(0.05)
        with pytest.raises(EngineBusy):
            await batches.ask(DOT, "one too many", GREEDY)
        model.gate.set()
        await asyncio.gather(first, *others)


async def test_whoever_leaves_while_waiting_is_never_asked_about(model):
    with gathered(model) as batches:
        first = await busy(batches, model)
        leaving = asyncio.create_task(batches.ask(DOT, "leaving", GREEDY))
        staying = asyncio.create_task(batches.ask(DOT, "staying", GREEDY))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.wait([leaving])
        model.gate.set()
        await asyncio.gather(first, staying)
    assert model.batches == [["first"], ["staying"]]


async def test_what_is_closed_lets_those_who_wait_go_and_takes_nothing_more(model):
    with gathered(model) as batches:
        first = await busy(batches, model)
        waiting = asyncio.create_task(batches.ask(DOT, "waiting", GREEDY))
        await asyncio.sleep(0.05)
        batches.close()
        for too_late in (waiting, batches.ask(DOT, "late", GREEDY)):
            with pytest.raises(EngineBusy):
                await too_late
        model.gate.set()
        assert await first == "FIRST"


@pytest.mark.parametrize("closing", [False, True])
async def test_it_is_ready_when_it_has_loaded_and_can_be_closed_before(closing, model):
    gate = threading.Event()

    def load() -> Callable[[Sequence[PendingQuestion]], Sequence[str | Exception]]:
        assert gate.wait(10)
        return model.answer

    batches = Batches(load, max_batch=1)
    assert not batches.ready.done()
    if closing:
        batches.close()
    gate.set()
    await asyncio.to_thread(batches.ready.result, 10)
    batches.close()
    batches.join(10)


async def test_what_cannot_be_loaded_says_why():
    batches = Batches(lambda: 1 // 0, max_batch=1)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wrap_future(batches.ready)
