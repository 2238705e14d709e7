"""Describe images, each once. Concurrent callers with the same question share one request."""

import asyncio
import hashlib
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from langchain_phospho.chat_models import ChatPhospho
from langchain_phospho.errors import langchain_errors
from langchain_phospho.message_images import ShownImage, message_about, prepared
from phospho_multimodal import (
    AuthenticationError,
    ConfigurationError,
    PaymentRequiredError,
    PhosphoError,
    SpendingLimitError,
)
from phospho_multimodal.images.pixel_hash import fingerprint
from phospho_multimodal.images.prepare import PreparedImage
from phospho_multimodal.images.source import ImageSource

__all__ = ["NOT_FOR_AGENTS", "ImageDescriber", "ImageQuestion", "RecognizedImage", "answered"]

logger = logging.getLogger("phospho_multimodal")

NOT_FOR_AGENTS = (
    AuthenticationError,
    ConfigurationError,
    PaymentRequiredError,
    SpendingLimitError,
)
"""Errors that an agent cannot solve. They are raised, so that its owner notices them."""

_MOST_ANSWERS = 1024
_MOST_KEYS = 8192
_MOST_KEPT = 256

_Outcome: TypeAlias = AIMessage | Exception
_Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RecognizedImage:
    """An image and its key, which is the same for the same pixels and for the same URL."""

    key: str
    source: ImageSource = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageQuestion:
    """A prompt about an image.

    If an answer may have been billed without arriving, it is not requested again in the same
    `turn` of the user.
    """

    image: RecognizedImage
    prompt: str = field(repr=False)
    turn: str | None = None

    @property
    def key(self) -> _Key:
        """The same for the same prompt about the same image."""
        return self.image.key, self.prompt


class _Answer(futures.Future[_Outcome | None]):
    """An answer that exists, or that one caller requests; `None` if that caller gave up."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        # A running future cannot be cancelled: a waiting caller must not cancel it for all.
        self.set_running_or_notify_cancel()


class ImageDescriber:
    """Describes images with one model, for all threads and event loops."""

    def __init__(self, model: ChatPhospho, config: RunnableConfig | None = None) -> None:
        """Open nothing yet; `config` is passed with each call of the model."""
        self._model = model
        self._config = config
        # Reentrant, because the garbage collector can end an abandoned call inside this lock.
        self._lock = threading.RLock()
        self._answers: dict[_Key, _Answer] = {}
        self._in_doubt: dict[tuple[_Key, str | None], _Answer] = {}
        self._keys: dict[str, str] = {}
        self._kept: dict[str, RecognizedImage] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without answers: another process requests and pays its own."""
        return type(self), (self._model, self._config)

    def recognize(self, image: ShownImage) -> RecognizedImage | PhosphoError:
        """Return the image with its key, or the reason why it cannot be described."""
        if isinstance(image, PhosphoError):
            return image
        # An agent shows its whole history at every step, so pixels are read only once.
        digest = _digest(image.value)
        known = self._keys.get(digest)
        if known is not None:
            return RecognizedImage(known, image)
        try:
            with langchain_errors():
                sendable = prepared(image, self._model)
                key = fingerprint(sendable)
        except PhosphoError as error:
            return error
        if digest:
            with self._lock:
                self._keys[digest] = key
                _drop_oldest(self._keys, _MOST_KEYS)
        if isinstance(sendable, PreparedImage):  # so that it is not prepared again
            return RecognizedImage(key, ImageSource("bytes", sendable.data))
        return RecognizedImage(key, image)

    def keep(self, images: Iterable[RecognizedImage | PhosphoError]) -> None:
        """Keep the images of an agent's instructions, which no agent state holds."""
        recent = {image.key: image for image in images if isinstance(image, RecognizedImage)}
        with self._lock:
            for key in recent:
                self._kept.pop(key, None)
            self._kept |= recent
            _drop_oldest(self._kept, max(_MOST_KEPT, len(recent)))

    def kept(self) -> list[RecognizedImage]:
        """List the images of instructions."""
        with self._lock:
            return list(self._kept.values())

    def describe(self, questions: Sequence[ImageQuestion]) -> list[_Outcome]:
        """Return an answer or an error for each question. A known answer is not billed again."""
        outcomes: dict[_Key, _Outcome] = {}
        while missing := [each for each in questions if each.key not in outcomes]:
            mine, others = self._claim(missing, may_wait_for_this_thread=False)
            try:
                if mine:
                    prompts = self._prompts(mine)
                    made = self._model.batch(prompts, self._config, return_exceptions=True)
                    outcomes |= self._settle(mine, made)
            finally:
                self._give_up(mine)
            for key, answer in others.items():
                if (outcome := answer.result()) is not None:
                    outcomes[key] = outcome
        return [outcomes[each.key] for each in questions]

    async def adescribe(self, questions: Sequence[ImageQuestion]) -> list[_Outcome]:
        """Do the same as `describe`."""
        outcomes: dict[_Key, _Outcome] = {}
        while missing := [each for each in questions if each.key not in outcomes]:
            mine, others = self._claim(missing, may_wait_for_this_thread=True)
            try:
                if mine:
                    prompts = await asyncio.to_thread(self._prompts, mine)
                    made = await self._model.abatch(prompts, self._config, return_exceptions=True)
                    outcomes |= self._settle(mine, made)
            finally:
                self._give_up(mine)
            for key, answer in others.items():
                if (outcome := await asyncio.wrap_future(answer)) is not None:
                    outcomes[key] = outcome
        return [outcomes[each.key] for each in questions]

    def _claim(
        self, questions: Sequence[ImageQuestion], *, may_wait_for_this_thread: bool
    ) -> tuple[dict[_Key, tuple[ImageQuestion, _Answer]], dict[_Key, _Answer]]:
        """Claim the questions that nobody has asked, and find the answers to the others."""
        mine: dict[_Key, tuple[ImageQuestion, _Answer]] = {}
        others: dict[_Key, _Answer] = {}
        thread = threading.get_ident()
        with self._lock:
            for question in questions:
                key = question.key
                if key in mine:
                    continue
                answer = self._answers.get(key) or self._in_doubt.get((key, question.turn))
                # Deadlock: a synchronous call would block the event loop that it waits for.
                if answer is not None and (
                    may_wait_for_this_thread or answer.done() or answer.thread != thread
                ):
                    others[key] = answer
                else:
                    self._answers[key] = answer = _Answer()
                    mine[key] = (question, answer)
        return mine, others

    def _prompts(self, mine: Mapping[_Key, tuple[ImageQuestion, _Answer]]) -> list[Any]:
        return [
            [message_about(prepared(question.image.source, self._model), question.prompt)]
            for question, _ in mine.values()
        ]

    def _settle(
        self, mine: Mapping[_Key, tuple[ImageQuestion, _Answer]], outcomes: Sequence[_Outcome]
    ) -> dict[_Key, _Outcome]:
        settled = dict(zip(mine, outcomes, strict=True))
        with self._lock:
            for key, outcome in settled.items():
                question, answer = mine[key]
                if isinstance(outcome, Exception):
                    is_in_doubt = isinstance(outcome, PhosphoError) and outcome.images_in_doubt
                    if is_in_doubt and question.turn is not None:
                        self._in_doubt[key, question.turn] = answer
                    self._forget(key, answer)
                else:
                    _log(outcome)
                answer.set_result(outcome)
            _drop_oldest(self._answers, _MOST_ANSWERS)
            _drop_oldest(self._in_doubt, _MOST_ANSWERS)
        return settled

    def _give_up(self, mine: Mapping[_Key, tuple[ImageQuestion, _Answer]]) -> None:
        """Let the waiting callers request the answers, if this caller was interrupted."""
        for key, (_, answer) in mine.items():
            if not answer.done():
                self._forget(key, answer)
                answer.set_result(None)

    def _forget(self, key: _Key, answer: _Answer) -> None:
        with self._lock:
            if self._answers.get(key) is answer:
                del self._answers[key]


def answered(outcome: AIMessage | Exception) -> AIMessage:
    """Return an answer, or raise the error in its place."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _log(answer: AIMessage) -> None:
    metadata = answer.response_metadata
    logger.info(
        "Described an image: %s billed, %s in doubt, %s USD, %s attempts, request id %s",
        *(
            metadata.get(key)
            for key in ("images_billed", "images_in_doubt", "cost_usd", "attempts", "request_id")
        ),
    )


def _digest(value: Any) -> str:
    if isinstance(value, str):
        value = value.encode()
    # Any other object, such as a PIL image in a message, can change between two calls.
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else ""


def _drop_oldest(entries: dict[Any, Any], most: int) -> None:
    while len(entries) > most:
        del entries[next(iter(entries))]
