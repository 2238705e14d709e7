"""Many questions at once: the first error ends a batch, on threads and on an event loop.

LangChain's own `abatch` and `abatch_as_completed` leave the rest to run on after it, billed and
with nobody to hear it, and begin all questions at once, however many there are. Its own `batch`
sees an error once all answers before it have come, and asks on until then.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config

__all__ = ["Batches"]

Answer = TypeVar("Answer")

if TYPE_CHECKING:

    class _Asked(Runnable[LanguageModelInput, Answer]):
        max_concurrency: int

else:
    _Asked = Generic  # pydantic takes two milliseconds for each class of its own


class Batches(_Asked[Answer]):
    """The batches of a model, or of what asks one, each of whose answers is paid for."""

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Answer]:
        """Ask many questions, on threads.

        Args:
            inputs: The questions.
            config: One for all, or one for each; the `max_concurrency` of the first counts, and
                without one there are as many threads as Python's executor has.
            return_exceptions: Give an error in the place of its answer, and ask all the others.
                Otherwise the first error is raised once the answers under way have come, and the
                rest is not asked.
            **kwargs: Keywords of each call.

        Returns:
            The answers, in the order of the questions.
        """
        outcomes = _Outcomes(len(inputs), return_exceptions=return_exceptions)
        configs = get_config_list(config, len(inputs))

        def ask_next() -> None:
            try:
                number = outcomes.left.popleft()
            except IndexError:
                return  # an error ended the batch
            try:
                outcomes.take(number, self.invoke(inputs[number], configs[number], **kwargs))
            except Exception as error:  # noqa: BLE001 - returned, or raised at the end
                outcomes.take(number, error)

        if len(inputs) == 1:
            ask_next()
        elif inputs:
            with get_executor_for_config(configs[0]) as executor:
                try:
                    for asking in [executor.submit(ask_next) for _ in inputs]:
                        asking.result()
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
        """Ask many questions.

        Args:
            inputs: The questions.
            config: One for all, or one for each; the `max_concurrency` of the first counts, and
                without one the model's own.
            return_exceptions: Give an error in the place of its answer, and ask all the others.
                Otherwise the first error is raised once the answers under way have come, and the
                rest is not asked.
            **kwargs: Keywords of each call.

        Returns:
            The answers, in the order of the questions.
        """
        outcomes = _Outcomes(len(inputs), return_exceptions=return_exceptions)
        try:
            await self._ask(outcomes.left, inputs, config, kwargs, outcomes.take)
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
        """Ask many questions, and give each answer as it comes.

        Args:
            inputs: The questions.
            config: As in `abatch`.
            return_exceptions: Give an error as an answer. Otherwise the first is raised, and the
                rest is not asked; nor is it if nobody listens any more.
            **kwargs: Keywords of each call.

        Yields:
            The number of a question, from 0, and its answer.
        """
        left = deque(range(len(inputs)))
        come: asyncio.Queue[tuple[int, Answer | Exception] | None] = asyncio.Queue()
        asking = asyncio.ensure_future(
            self._ask(left, inputs, config, kwargs, lambda *one: come.put_nowait(one))
        )
        asking.add_done_callback(lambda _: come.put_nowait(None))
        try:
            while (one := await come.get()) is not None:
                if isinstance(one[1], Exception) and not return_exceptions:
                    raise one[1]
                yield one
            await asking
        except asyncio.CancelledError:
            asking.cancel()
            raise
        finally:
            left.clear()

    async def _ask(
        self,
        left: deque[int],
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None,
        keywords: Mapping[str, Any],
        take: Callable[[int, Answer | Exception], None],
    ) -> None:
        """Ask as long as questions are left, as many at once as may be; hand on each outcome."""
        configs = get_config_list(config, len(inputs))

        async def ask_one_after_the_other() -> None:
            while left:
                number = left.popleft()
                outcome: Answer | Exception
                try:
                    outcome = await self.ainvoke(inputs[number], configs[number], **keywords)
                except Exception as error:  # noqa: BLE001 - the taker decides
                    outcome = error
                take(number, outcome)

        # Of more than can be under way, as many can be made ready as there are cores.
        most = self.max_concurrency + (os.cpu_count() or 1)
        together = (configs[0].get("max_concurrency") if configs else None) or most
        await asyncio.gather(*(ask_one_after_the_other() for _ in range(min(together, len(left)))))


class _Outcomes:
    """What comes of a batch, until its first error ends it.

    Attributes:
        left: The numbers of the questions that nobody has asked yet.
    """

    def __init__(self, questions: int, *, return_exceptions: bool) -> None:
        self.left = deque(range(questions))
        self._of: list[Any] = [None] * questions
        self._failures: list[Exception] = []
        self._return_exceptions = return_exceptions

    def take(self, number: int, outcome: Any) -> None:
        self._of[number] = outcome
        if isinstance(outcome, Exception) and not self._return_exceptions:
            self._failures.append(outcome)
            self.left.clear()

    def answers(self) -> list[Any]:
        """Give all, or raise the first error that came."""
        if self._failures:
            raise self._failures[0]
        return self._of
