"""Batches that stop at the first error, on threads and on an event loop.

LangChain's own `abatch` and `abatch_as_completed` start all calls at once, and the rest continues
after an error, although nobody reads the billed answers. LangChain's own `batch` notices an error
only when all answers before it have arrived, and starts more calls until then.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config

__all__ = ["Batches"]

Answer = TypeVar("Answer")


class Batches(Runnable[LanguageModelInput, Answer]):
    """The batch methods of `ChatPhospho` and of its structured output."""

    max_concurrency: int

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Answer]:
        """Answer many prompts on threads, in their order.

        Args:
            inputs: The prompts.
            config: One for all prompts, or one for each. `max_concurrency` of the first one limits
                the threads. By default, Python's executor decides.
            return_exceptions: Return an error in place of its answer, and continue. Otherwise, no
                call starts after the first error, which is raised when the running calls end.
            **kwargs: Keywords of each call.

        Returns:
            The answers.
        """
        outcomes = _Outcomes(len(inputs), return_exceptions=return_exceptions)
        configs = get_config_list(config, len(inputs))

        def call_next() -> None:
            try:
                number = outcomes.left.popleft()
            except IndexError:
                return  # an error ended the batch
            try:
                outcomes.add(number, self.invoke(inputs[number], configs[number], **kwargs))
            except Exception as error:  # noqa: BLE001 - returned, or raised at the end
                outcomes.add(number, error)

        if len(inputs) == 1:
            call_next()
        elif inputs:
            with get_executor_for_config(configs[0]) as executor:
                try:
                    for running in [executor.submit(call_next) for _ in inputs]:
                        running.result()
                finally:
                    outcomes.left.clear()
        return outcomes.answers()

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Answer]:
        """Answer many prompts, in their order.

        Args:
            inputs: The prompts.
            config: One for all prompts, or one for each. `max_concurrency` of the first one limits
                the concurrent calls. By default, the model's own limit decides.
            return_exceptions: As in `batch`.
            **kwargs: Keywords of each call.

        Returns:
            The answers.
        """
        outcomes = _Outcomes(len(inputs), return_exceptions=return_exceptions)
        try:
            await self._call_all(outcomes.left, inputs, config, kwargs, outcomes.add)
        finally:
            outcomes.left.clear()
        return outcomes.answers()

    @overload
    def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, Answer]]: ...

    @overload
    def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: Literal[True],
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, Answer | Exception]]: ...

    async def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, Answer | Exception]]:
        """Answer many prompts, and yield each answer when it arrives.

        Args:
            inputs: The prompts.
            config: As in `abatch`.
            return_exceptions: Yield an error like an answer. Otherwise the first error is raised.
                After that, and if the iterator is closed, no further call starts.
            **kwargs: Keywords of each call.

        Yields:
            The index of a prompt and its answer.
        """
        left = deque(range(len(inputs)))
        arrived: asyncio.Queue[tuple[int, Answer | Exception] | None] = asyncio.Queue()
        calls = asyncio.ensure_future(
            self._call_all(left, inputs, config, kwargs, lambda *one: arrived.put_nowait(one))
        )
        calls.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while (one := await arrived.get()) is not None:
                if isinstance(one[1], Exception) and not return_exceptions:
                    raise one[1]
                yield one
            await calls
        except asyncio.CancelledError:
            calls.cancel()
            raise
        finally:
            left.clear()

    async def _call_all(
        self,
        left: deque[int],
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None,
        keywords: Mapping[str, Any],
        add: Callable[[int, Answer | Exception], None],
    ) -> None:
        """Call the model while prompts are left, and pass each outcome to `add`."""
        configs = get_config_list(config, len(inputs))

        async def call_one_after_the_other() -> None:
            while left:
                number = left.popleft()
                outcome: Answer | Exception
                try:
                    outcome = await self.ainvoke(inputs[number], configs[number], **keywords)
                except Exception as error:  # noqa: BLE001 - `add` decides
                    outcome = error
                add(number, outcome)

        # A few more calls than may be sent at the same time, so that their images are ready.
        default = self.max_concurrency + (os.cpu_count() or 1)
        most = (configs[0].get("max_concurrency") if configs else None) or default
        await asyncio.gather(*(call_one_after_the_other() for _ in range(min(most, len(left)))))


class _Outcomes:
    """The outcomes of a batch, and the indexes of the prompts that are left."""

    def __init__(self, count: int, *, return_exceptions: bool) -> None:
        self.left = deque(range(count))
        self._outcomes: list[Any] = [None] * count
        self._failures: list[Exception] = []
        self._return_exceptions = return_exceptions

    def add(self, number: int, outcome: Any) -> None:
        self._outcomes[number] = outcome
        if isinstance(outcome, Exception) and not self._return_exceptions:
            self._failures.append(outcome)
            self.left.clear()

    def answers(self) -> list[Any]:
        """Return all answers, or raise the first error that arrived."""
        if self._failures:
            raise self._failures[0]
        return self._outcomes
