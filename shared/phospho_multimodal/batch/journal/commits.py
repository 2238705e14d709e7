"""Notes in the journal from an event loop: many at once, and each awaited until it is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import Step

__all__ = ["GroupCommit"]


class GroupCommit:
    """Hands steps to the journal on one thread; what comes meanwhile goes together, next time.

    A disk takes as long for one note as for sixty-four. Steps are noted in the order in which they
    were told, whatever becomes of who told them: a question is not sent after it has ended.
    """

    def __init__(self, journal: Journal) -> None:
        """Prepare.

        Args:
            journal: Where steps are noted.
        """
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="phospho-journal")
        self._lock = threading.Lock()
        self._waiting: list[tuple[Step, asyncio.Future[int] | None]] = []

    async def begin_attempt(self, picture: bytes) -> None:
        """Let an attempt begin: in one process nothing more is to be waited for."""

    async def note(self, step: Step) -> int:
        """Note a step.

        A caller that is cancelled meanwhile does not take it back.

        Args:
            step: What happened, or is going to.

        Returns:
            How many inputs have their row by it.

        Raises:
            ConfigurationError: The journal cannot be written.
        """
        noted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tell(step, noted)
        return await noted

    def note_at_last(self, step: Step) -> None:
        """Note a step that nobody can wait for any more, since its task is being cancelled.

        Args:
            step: What happened.
        """
        self._tell(step, None)

    def close(self) -> None:
        """End the thread, once it has noted all that it was told."""
        self._thread.shutdown()

    def _tell(self, step: Step, noted: asyncio.Future[int] | None) -> None:
        with self._lock:
            self._waiting.append((step, noted))
            first = len(self._waiting) == 1
        if first:  # for the others, the thread comes anyway
            self._thread.submit(self._commit)

    def _commit(self) -> None:
        with self._lock:
            group, self._waiting = self._waiting, []
        counts: list[int] = []
        failure: BaseException | None = None
        try:
            counts = self._journal.commit([step for step, _ in group])
        except BaseException as error:  # noqa: BLE001 - it is raised where the step was told
            failure = error
        told: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int]]] = {}
        for (_, noted), count in zip(group, counts or [0] * len(group), strict=True):
            if noted is not None:
                told.setdefault(noted.get_loop(), []).append((noted, count))
        for loop, futures in told.items():
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits there
                loop.call_soon_threadsafe(_answer, futures, failure)


def _answer(futures: list[tuple[asyncio.Future[int], int]], failure: BaseException | None) -> None:
    for noted, count in futures:
        if noted.done():  # cancelled
            continue
        if failure is None:
            noted.set_result(count)
        else:
            noted.set_exception(failure)
