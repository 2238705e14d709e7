"""Looking at pictures, each once: who asks the same at the same time shares one request."""

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast
from weakref import ref

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from langchain_phospho.chat_models import ChatPhospho
from langchain_phospho.errors import langchain_errors
from langchain_phospho.message_images import ShownPicture, message_about, prepared
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
from phospho_multimodal.spending.finalizing import is_finalizing
from phospho_multimodal.spending.processes import after_fork

__all__ = ["NOT_FOR_AGENTS", "ImageDescriber", "ImageQuestion", "RecognizedImage", "answered"]

logger = logging.getLogger("phospho_multimodal")

NOT_FOR_AGENTS = (
    AuthenticationError,
    ConfigurationError,
    PaymentRequiredError,
    SpendingLimitError,
)
"""Errors that no agent can do anything about: its owner has to hear of them."""

_MOST_ANSWERS = 1024
_MOST_KEYS = 8192
_MOST_KEPT = 256
_GLANCE = 1.0  # seconds after which whoever waits checks whether the asker is still there

_Outcome: TypeAlias = AIMessage | Exception
_Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RecognizedImage:
    """A picture that was recognized.

    Attributes:
        key: The same for the same pixels, and for the same URL.
        source: Where to get it from.
    """

    key: str
    source: ImageSource = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageQuestion:
    """A picture and what to ask about it, once in a turn if that may have been billed."""

    image: RecognizedImage
    question: str = field(repr=False)
    turn: str | None = None

    @property
    def key(self) -> _Key:
        """The same for the same question about the same picture."""
        return self.image.key, self.question


class _Answer(futures.Future[_Outcome | None]):
    """An answer that is being waited for, or there already; `None` if its asker gave up."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self._loop: ref[asyncio.AbstractEventLoop] | None = None
        with contextlib.suppress(RuntimeError):  # none runs here
            self._loop = ref(asyncio.get_running_loop())
        # Running cannot be cancelled: one who stops waiting must not stop the others.
        self.set_running_or_notify_cancel()

    def is_to_come(self) -> bool:
        """Whether it is there or will be: the event loop of its asker may have been closed."""
        if self.done() or self._loop is None:
            return True
        loop = self._loop()
        return loop is not None and not loop.is_closed()

    def wait(self) -> _Outcome | None:
        """Wait on a thread, as long as it is to come."""
        while not futures.wait([self], _GLANCE).done:
            if not self.is_to_come():
                return None
        return self.result()

    async def wait_async(self) -> _Outcome | None:
        """Wait on an event loop, as long as it is to come."""
        arrives = asyncio.wrap_future(self)
        while not (await asyncio.wait([arrives], timeout=_GLANCE))[0]:
            if not self.is_to_come():
                return None
        return arrives.result()


class ImageDescriber:
    """Asks one model about pictures, for all threads and event loops."""

    def __init__(self, model: ChatPhospho, config: RunnableConfig | None = None) -> None:
        """Open nothing yet.

        Args:
            model: The model that generates descriptions.
            config: Passed with every call of the model.
        """
        self._model = model
        self._config = config
        self._answers: dict[_Key, _Answer] = {}
        self._in_doubt: dict[tuple[_Key, str], _Answer] = {}
        self._keys: dict[str, str] = {}
        self._kept: dict[str, RecognizedImage] = {}
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._left: deque[tuple[_Key, _Answer]] = deque()  # by finalizers, which may not wait
        # What a thread of the parent waits for never comes to a forked child.
        self._answers = {key: answer for key, answer in self._answers.items() if answer.done()}

    def recognize(self, picture: ShownPicture) -> RecognizedImage | PhosphoError:
        """Tell which picture it is.

        Args:
            picture: What was shown.

        Returns:
            The picture, or why it cannot be looked at.
        """
        if isinstance(picture, PhosphoError):
            return picture
        # An agent shows its whole history again at every step: pixels are looked at once.
        digest = _digest(picture.value)
        with self._lock:
            known = self._keys.get(digest)
        if known is not None:
            return RecognizedImage(known, picture)
        try:
            with langchain_errors():
                image = prepared(picture, self._model)
                key = fingerprint(image)
        except PhosphoError as error:
            return error
        if digest:
            with self._lock:
                self._keys[digest] = key
                if len(self._keys) > _MOST_KEYS:
                    del self._keys[next(iter(self._keys))]
        # Prepared, it need not be prepared again when it is asked about.
        return RecognizedImage(
            key, ImageSource("bytes", image.data) if isinstance(image, PreparedImage) else picture
        )

    def keep(self, recognized: Iterable[RecognizedImage | PhosphoError]) -> None:
        """Keep pictures of instructions, which no state of an agent holds.

        Args:
            recognized: Those of one request, all of which are kept, and of others the last ones.
        """
        recent = {image.key: image for image in recognized if isinstance(image, RecognizedImage)}
        with self._lock:
            for key in recent:
                self._kept.pop(key, None)
            self._kept |= recent
            while len(self._kept) > max(_MOST_KEPT, len(recent)):
                del self._kept[next(iter(self._kept))]

    def kept(self) -> list[RecognizedImage]:
        """List the pictures that are kept."""
        with self._lock:
            return list(self._kept.values())

    def describe(self, questions: Sequence[ImageQuestion]) -> list[_Outcome]:
        """Ask.

        Args:
            questions: Pictures and questions; what was answered before costs nothing.

        Returns:
            An answer for each, or the error in its place.
        """
        outcomes: dict[_Key, _Outcome] = {}
        while missing := [look for look in questions if look.key not in outcomes]:
            mine, others = self._claim(missing, may_wait_for_this_thread=False)
            try:
                if mine:
                    asked = self._model.batch(
                        self._asked(mine), self._config, return_exceptions=True
                    )
                    outcomes |= self._settle(mine, asked)
            finally:
                self._give_up(mine)
            # One whose asker was interrupted has no outcome: it is this one's to ask then.
            outcomes |= _arrived({key: answer.wait() for key, answer in others.items()})
        return [outcomes[look.key] for look in questions]

    async def adescribe(self, questions: Sequence[ImageQuestion]) -> list[_Outcome]:
        """Ask, as `look` does.

        Args:
            questions: Pictures and questions.

        Returns:
            An answer for each, or the error in its place.
        """
        outcomes: dict[_Key, _Outcome] = {}
        while missing := [look for look in questions if look.key not in outcomes]:
            mine, others = self._claim(missing, may_wait_for_this_thread=True)
            try:
                if mine:
                    prompts = await asyncio.to_thread(self._asked, mine)
                    asked = await self._model.abatch(prompts, self._config, return_exceptions=True)
                    outcomes |= self._settle(mine, asked)
            finally:
                self._give_up(mine)
            outcomes |= _arrived({key: await answer.wait_async() for key, answer in others.items()})
        return [outcomes[look.key] for look in questions]

    def _claim(
        self, questions: Sequence[ImageQuestion], *, may_wait_for_this_thread: bool
    ) -> tuple[dict[_Key, tuple[ImageQuestion, _Answer]], dict[_Key, _Answer]]:
        """Part what nobody has asked yet, and is the caller's now, from what somebody has."""
        mine: dict[_Key, tuple[ImageQuestion, _Answer]] = {}
        others: dict[_Key, _Answer] = {}
        here = threading.get_ident()
        with self._lock:
            while self._left:
                self._strike_out(*self._left.popleft())
            for look in questions:
                answer = self._answers.get(look.key)
                if answer is None and look.turn is not None:
                    answer = self._in_doubt.get((look.key, look.turn))
                if look.key in mine:
                    continue
                # A synchronous call on an event loop's thread would wait for the loop it stops.
                if (answer is not None and answer.is_to_come()) and (
                    may_wait_for_this_thread or answer.done() or answer.thread != here
                ):
                    others[look.key] = answer
                else:
                    self._answers[look.key] = answer = _Answer()
                    mine[look.key] = (look, answer)
        return mine, others

    def _asked(self, mine: Mapping[_Key, tuple[ImageQuestion, _Answer]]) -> list[Any]:
        return [
            [message_about(prepared(look.image.source, self._model), look.question)]
            for look, _ in mine.values()
        ]

    def _settle(
        self, mine: Mapping[_Key, tuple[ImageQuestion, _Answer]], outcomes: Sequence[_Outcome]
    ) -> dict[_Key, _Outcome]:
        settled = dict(zip(mine, outcomes, strict=True))
        for key, outcome in settled.items():
            look, answer = mine[key]
            if isinstance(outcome, Exception):
                if look.turn and isinstance(outcome, PhosphoError) and outcome.images_in_doubt:
                    with self._lock:
                        self._in_doubt[key, look.turn] = answer
                self._forget(key, answer)
            else:
                _log(outcome)
            answer.set_result(outcome)
        with self._lock:
            for kept in cast("list[dict[Any, _Answer]]", [self._answers, self._in_doubt]):
                while len(kept) > _MOST_ANSWERS:
                    del kept[next(iter(kept))]
        return settled

    def _give_up(self, mine: Mapping[_Key, tuple[ImageQuestion, _Answer]]) -> None:
        """Let those who wait ask for themselves, if the caller was interrupted."""
        for key, (_, answer) in mine.items():
            if not answer.done():
                self._forget(key, answer)
                answer.set_result(None)

    def _forget(self, key: _Key, answer: _Answer) -> None:
        if is_finalizing():
            self._left.append((key, answer))
            return
        with self._lock:
            self._strike_out(key, answer)

    def _strike_out(self, key: _Key, answer: _Answer) -> None:
        if self._answers.get(key) is answer:
            del self._answers[key]


def answered(outcome: AIMessage | Exception) -> AIMessage:
    """Return an answer, or raise the error in its place.

    Args:
        outcome: One of those that `ImageDescriber.describe` returns.

    Returns:
        The answer.

    Raises:
        PhosphoModelError: There is no answer.
    """
    if isinstance(outcome, Exception):
        with langchain_errors():
            raise outcome
    return outcome


def _log(answer: AIMessage) -> None:
    about = answer.response_metadata
    logger.info(
        "Described an image: %s billed, %s in doubt, %s USD, %s attempts, request id %s",
        *(
            about.get(key)
            for key in ("images_billed", "images_in_doubt", "cost_usd", "attempts", "request_id")
        ),
    )


def _digest(value: Any) -> str:
    if isinstance(value, str):
        value = value.encode()
    # What is neither, such as a PIL image in a message, can change between two calls.
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else ""


def _arrived(outcomes: Mapping[_Key, _Outcome | None]) -> dict[_Key, _Outcome]:
    return {key: outcome for key, outcome in outcomes.items() if outcome is not None}
