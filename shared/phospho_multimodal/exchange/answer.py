"""From the turns of a conversation to the answer, on top of one prediction."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

from phospho_multimodal.errors import ImageError
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.exchange.prediction import GenerationOptions, Prediction, predict
from phospho_multimodal.exchange.steps import RunInThread, Step
from phospho_multimodal.images.prepare import prepare_source
from phospho_multimodal.images.source import ImageSource
from phospho_multimodal.messages.conversation import (
    ImagePolicy,
    Turn,
    mark_unreadable,
    plan_conversation,
)
from phospho_multimodal.settings import Settings

__all__ = ["answer_turns"]


def answer_turns(
    shared: ClientState, turns: Sequence[Turn], policy: ImagePolicy, asking: GenerationOptions
) -> Generator[Step, Any, Prediction]:
    """Ask what a conversation asks.

    An image that cannot be read is an error only in the newest turn. In an older turn, a mark
    replaces the image, and the next older image decides.

    Args:
        shared: What the client's calls share.
        turns: Oldest first.
        policy: What to do with several images, and with none.
        asking: How it is asked.

    Yields:
        Steps for the client to do.

    Returns:
        The answer.

    Raises:
        PhosphoError: See `phospho_multimodal.errors`.
    """
    while True:
        plan = plan_conversation(turns, policy)
        try:
            return (yield from predict(shared, plan, asking))
        except ImageError:  # nothing was sent
            if not plan.is_about_older_turn:
                raise
            find = partial(_unreadable, plan.images, shared.settings)
            reasons = yield RunInThread(find, computes=True)
            if not reasons:
                raise
        turns = mark_unreadable(turns, reasons)


def _unreadable(images: Sequence[ImageSource], settings: Settings) -> dict[int, str]:
    """Tell which images cannot be read, by their `id()`, and why."""

    def reason(image: ImageSource) -> str:
        try:
            side = settings.max_image_side
            prepare_source(image, max_image_side=side, prepare=settings.prepare)
        except ImageError as error:
            return str(error)
        return ""

    return {id(image): why for image in images if (why := reason(image))}
