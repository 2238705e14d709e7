"""Many questions at once on an event loop: the first error ends a batch, as it does on threads.

LangChain's own `abatch` and `abatch_as_completed` leave the rest to run on after it, billed and
with nobody to hear it, and begin all questions at once, however many there are.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

if TYPE_CHECKING:
    from langchain_phospho.configuration import PhosphoConfiguration as _Model
else:
    _Model = object  # pydantic takes two milliseconds for each class of its own

__all__ = ["Batches"]


class Batches(_Model):
    """The asynchronous batches of a model each of whose answers is paid for."""

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
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
        answers: list[Any] = [None] * len(inputs)
        left = deque(range(len(inputs)))
        failures: list[Exception] = []

        def take(number: int, outcome: AIMessage | Exception) -> None:
            answers[number] = outcome
            if isinstance(outcome, Exception) and not return_exceptions:
                failures.append(outcome)
                left.clear()

        try:
            await self._ask(left, inputs, config, kwargs, take)
        finally:
            left.clear()
        if failures:
            raise failures[0]
        return answers

    @overload
    def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, AIMessage]]: ...

    @overload
    def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: Literal[True],
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, AIMessage | Exception]]: ...

    async def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, AIMessage | Exception]]:
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
        come: asyncio.Queue[tuple[int, AIMessage | Exception] | None] = asyncio.Queue()
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
        take: Callable[[int, AIMessage | Exception], None],
    ) -> None:
        """Ask as long as questions are left, as many at once as may be; hand on each outcome."""
        configs = get_config_list(config, len(inputs))

        async def ask_one_after_the_other() -> None:
            while left:
                number = left.popleft()
                outcome: AIMessage | Exception
                try:
                    outcome = await self.ainvoke(inputs[number], configs[number], **keywords)
                except Exception as error:  # noqa: BLE001 - the taker decides
                    outcome = error
                take(number, outcome)

        # Of more than can be under way, as many can be made ready as there are cores.
        most = self.max_concurrency + (os.cpu_count() or 1)
        together = (configs[0].get("max_concurrency") if configs else None) or most
        await asyncio.gather(*(ask_one_after_the_other() for _ in range(min(together, len(left)))))
