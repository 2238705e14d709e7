"""Questions that come at the same time, gathered into batches for the one thread of a model.

A model answers several questions faster in one go than one after another. What answers is not
known here: it is a function from a batch to its answers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from phospho_multimodal.server.engines import EngineBusy

if TYPE_CHECKING:
    from PIL.Image import Image

    from phospho_multimodal.contract import GenerationParameters

__all__ = ["Answer", "Asked", "Batches"]

_GATHER_SECONDS = 0.005  # what a lone question waits for company; nothing beside an answer's time
_WAITING_BATCHES = 4  # so many full batches may wait; more would be answered after a minute


@dataclass(eq=False)
class Asked:
    """A question under way."""

    image: Image
    """RGB, upright."""
    text: str
    """The prompt."""
    parameters: GenerationParameters
    """Questions share a batch if theirs are equal: one call takes one set of them."""
    future: Future[str] = field(default_factory=Future)
    """Its answer."""
    arrived: float = field(default_factory=time.monotonic)
    """When it came."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set once nobody waits for the answer: what works at it can stop."""


Answer = Callable[[Sequence[Asked]], Sequence[str | Exception]]
"""Answers a batch, each question with a text or with why there is none; or raises for them all."""


class Batches:
    """One thread that makes ready what answers, and then gives it batch after batch.

    Attributes:
        ready: Done once questions can be answered; holds why, if they cannot.
    """

    def __init__(self, load: Callable[[], Answer], *, most: int) -> None:
        """Begin to load.

        Args:
            load: Makes what answers, on the thread; it may take minutes.
            most: How many questions a batch holds at most.
        """
        self.ready: Future[None] = Future()
        self.ready.set_running_or_notify_cancel()  # who waits for it may be cancelled; it may not
        self._load = load
        self._most = most
        self._waiting: deque[Asked] = deque()
        self._under_way: Sequence[Asked] = ()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: a load that hangs on a network does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def ask(self, image: Image, text: str, parameters: GenerationParameters) -> str:
        """Wait for an answer; whoever is cancelled takes the question along.

        Args:
            image: RGB, upright.
            text: The prompt.
            parameters: The parameters.

        Returns:
            The answer.

        Raises:
            EngineBusy: Too many wait already, or it is closed.
        """
        asked = Asked(image, text, parameters)
        del image
        with self._changed:
            if self._closed or len(self._waiting) >= _WAITING_BATCHES * self._most:
                raise EngineBusy
            self._waiting.append(asked)
            self._changed.notify()
        try:
            return await asyncio.wrap_future(asked.future)
        finally:
            asked.gone.set()

    def close(self) -> None:
        """Answer no more: who waits gets EngineBusy, and the thread ends after its next step."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            for asked in self._under_way:
                asked.gone.set()
            self._changed.notify()
        for asked in waiting:
            if asked.future.set_running_or_notify_cancel():
                asked.future.set_exception(EngineBusy())

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, once it was told to."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            answer = self._load()
        except BaseException as failure:  # noqa: BLE001 - whoever looks at `ready` raises it
            self.ready.set_exception(failure)
            return
        self.ready.set_result(None)
        while batch := self._next():
            _settle(answer, batch)
            with self._changed:
                self._under_way = ()
            del batch  # its pictures: not to be held until the next one comes

    def _next(self) -> list[Asked]:
        """Take the oldest question and those that can go with it; nothing when closed."""
        with self._changed:
            while not self._closed:
                self._drop_the_gone()
                if not self._waiting:
                    self._changed.wait()
                    continue
                batch = self._company()
                left = self._waiting[0].arrived + _GATHER_SECONDS - time.monotonic()
                if len(batch) < self._most and left > 0:
                    self._changed.wait(left)
                    continue
                self._waiting = deque(asked for asked in self._waiting if asked not in batch)
                # From here on a future can no longer be cancelled; who left just now is told by it.
                batch = [each for each in batch if each.future.set_running_or_notify_cancel()]
                if batch:
                    self._under_way = batch
                    return batch
            return []

    def _drop_the_gone(self) -> None:
        self._waiting = deque(asked for asked in self._waiting if not asked.gone.is_set())

    def _company(self) -> list[Asked]:
        first = self._waiting[0]
        same = [asked for asked in self._waiting if asked.parameters == first.parameters]
        return same[: self._most]


def _settle(answer: Answer, batch: Sequence[Asked]) -> None:
    """Answer a batch; if that fails, each by itself, so that one does not fail the others."""
    try:
        answers = answer(batch)
    except Exception as failure:  # noqa: BLE001 - the request's own, which says what became of it
        if len(batch) == 1:
            batch[0].future.set_exception(failure)
            return
        for asked in batch:
            _settle(answer, [asked])
        return
    for asked, text in zip(batch, answers, strict=True):
        if isinstance(text, str):
            asked.future.set_result(text)
        else:
            asked.future.set_exception(text)
