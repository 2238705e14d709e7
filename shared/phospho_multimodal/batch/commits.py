"""Notes in the journal from an event loop: many at once, and each awaited until it is on disk."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from phospho_multimodal.batch.journal import Journal
from phospho_multimodal.batch.steps import Step

__all__ = ["GroupCommit"]


class GroupCommit:
    """Hands steps to the journal on one thread; what comes meanwhile goes together, next time.

    A disk takes as long for one note as for sixty-four.
    """

    def __init__(self, journal: Journal) -> None:
        """Prepare.

        Args:
            journal: Where steps are noted.
        """
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="phospho-journal")
        self._waiting: list[tuple[Step, asyncio.Future[int]]] = []
        self._busy = False

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
        self._waiting.append((step, noted))
        if not self._busy:
            self._begin()
        return await noted

    def note_at_last(self, step: Step) -> None:
        """Note a step that nobody can wait for any more, since its task is being cancelled.

        Args:
            step: What happened.
        """
        self._thread.submit(self._journal.commit, [step])

    def close(self) -> None:
        """End the thread, once it has noted what it was given."""
        self._thread.shutdown()

    def _begin(self) -> None:
        self._busy = True
        group, self._waiting = self._waiting, []
        steps = [step for step, _ in group]
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._journal.commit, steps)
        work.add_done_callback(lambda done: self._end(group, done))

    def _end(
        self, group: list[tuple[Step, asyncio.Future[int]]], done: asyncio.Future[list[int]]
    ) -> None:
        failure = done.exception()
        counts = [0] * len(group) if failure is not None else done.result()
        for (_, noted), count in zip(group, counts, strict=True):
            if noted.done():  # cancelled
                continue
            if failure is not None:
                noted.set_exception(failure)
            else:
                noted.set_result(count)
        self._busy = False
        if self._waiting:
            self._begin()
