"""Gathers requests that arrive at the same time into batches for the one thread of a model.

A model answers several prompts faster in one batch than one after another.
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

__all__ = ["Answer", "Batches", "PendingQuestion"]

_GATHER_SECONDS = 0.005  # how long a request waits for others
_WAITING_BATCHES = 4  # full batches that may wait; more would be answered after a minute


@dataclass(eq=False)
class PendingQuestion:
    """A request that waits for its answer.

    Attributes:
        image: RGB, EXIF orientation applied.
        text: The prompt.
        parameters: Only requests with equal parameters share a batch.
        future: The answer.
        arrived: When the request arrived.
        gone: Set when nobody waits for the answer any more, so that the model can stop.
    """

    image: Image
    text: str
    parameters: GenerationParameters
    future: Future[str] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    gone: threading.Event = field(default_factory=threading.Event)


Answer = Callable[[Sequence[PendingQuestion]], Sequence[str | Exception]]
"""Answers a batch with a text or an exception for each request, or raises for all of them."""


class Batches:
    """One thread that loads a model, and then gives it batch after batch.

    Attributes:
        ready: Done when the model is loaded, or has the exception if that failed.
    """

    def __init__(self, load: Callable[[], Answer], *, max_batch: int) -> None:
        self.ready: Future[None] = Future()
        self.ready.set_running_or_notify_cancel()  # a cancelled waiter must not cancel it
        self._load = load
        self._max_batch = max_batch
        self._waiting: deque[PendingQuestion] = deque()
        self._in_progress: Sequence[PendingQuestion] = ()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon, so that a load that hangs on a network does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def ask(self, image: Image, text: str, parameters: GenerationParameters) -> str:
        """Wait for an answer.

        Raises:
            EngineBusy: Too many requests wait, or the thread is closed.
        """
        pending = PendingQuestion(image, text, parameters)
        del image
        with self._changed:
            if self._closed or len(self._waiting) >= _WAITING_BATCHES * self._max_batch:
                raise EngineBusy
            self._waiting.append(pending)
            self._changed.notify()
        try:
            return await asyncio.wrap_future(pending.future)
        finally:
            pending.gone.set()

    def close(self) -> None:
        """Reject the waiting requests with EngineBusy, and end the thread after its next step."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            for pending in self._in_progress:
                pending.gone.set()
            self._changed.notify()
        for pending in waiting:
            if pending.future.set_running_or_notify_cancel():
                pending.future.set_exception(EngineBusy())

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread after `close`."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            answer = self._load()
        except BaseException as failure:  # noqa: BLE001 - raised by whoever reads `ready`
            self.ready.set_exception(failure)
            return
        self.ready.set_result(None)
        while batch := self._next():
            _settle(answer, batch)
            with self._changed:
                self._in_progress = ()
            del batch  # its images, before the wait for the next batch

    def _next(self) -> list[PendingQuestion]:
        """Take the oldest request and those that can share its batch; nothing when closed."""
        with self._changed:
            while not self._closed:
                self._waiting = deque(each for each in self._waiting if not each.gone.is_set())
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                same = [each for each in self._waiting if each.parameters == first.parameters]
                batch = same[: self._max_batch]
                left = first.arrived + _GATHER_SECONDS - time.monotonic()
                if len(batch) < self._max_batch and left > 0:
                    self._changed.wait(left)
                    continue
                self._waiting = deque(each for each in self._waiting if each not in batch)
                # From here on a future cannot be cancelled; one that just was is left out.
                batch = [each for each in batch if each.future.set_running_or_notify_cancel()]
                if batch:
                    self._in_progress = batch
                    return batch
            return []


def _settle(answer: Answer, batch: Sequence[PendingQuestion]) -> None:
    """Answer a batch; if that fails, answer each request by itself."""
    try:
        answers = answer(batch)
    except Exception as failure:  # noqa: BLE001 - raised again in the request
        if len(batch) == 1:
            batch[0].future.set_exception(failure)
            return
        for pending in batch:
            _settle(answer, [pending])
        return
    for pending, text in zip(batch, answers, strict=True):
        if isinstance(text, str):
            pending.future.set_result(text)
        else:
            pending.future.set_exception(text)
