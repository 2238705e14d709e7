"""Many questions at once on an event loop: the first error ends a batch, as it does on threads.

LangChain's own `abatch` leaves the rest to run on after it, billed and with nobody to hear it, and
begins all questions of a batch at once, however many there are.
"""

import asyncio
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

if TYPE_CHECKING:
    from langchain_phospho.chat_models import ChatPhospho

__all__ = ["ask_all"]


async def ask_all(
    model: "ChatPhospho",
    inputs: Sequence[LanguageModelInput],
    config: RunnableConfig | list[RunnableConfig] | None,
    keywords: Mapping[str, Any],
    *,
    return_exceptions: bool,
) -> list[AIMessage]:
    """Ask many questions; see `ChatPhospho.abatch`.

    Args:
        model: Who is asked.
        inputs: The questions.
        config: One for all, or one for each.
        keywords: Of each call.
        return_exceptions: Give an error in the place of its answer.

    Returns:
        The answers, in the order of the questions.
    """
    configs = get_config_list(config, len(inputs))
    answers: list[Any] = [None] * len(inputs)
    left = deque(range(len(inputs)))
    failures: list[Exception] = []

    async def ask_one_after_the_other() -> None:
        while left:
            number = left.popleft()
            try:
                answers[number] = await model.ainvoke(inputs[number], configs[number], **keywords)
            except Exception as error:  # noqa: BLE001 - given or raised below
                answers[number] = error
                if not return_exceptions:
                    failures.append(error)
                    left.clear()

    # Of more than can be under way, as many can be made ready as there are cores.
    most = model.max_concurrency + (os.cpu_count() or 1)
    together = min((configs[0].get("max_concurrency") if configs else None) or most, len(inputs))
    try:
        await asyncio.gather(*(ask_one_after_the_other() for _ in range(together)))
    finally:
        left.clear()
    if failures:
        raise failures[0]
    return answers
