"""Prepare images on threads, and skip inputs that have a row or share their image with another."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from phospho_multimodal.batch.job import Job, picture_key
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.schema import TILE
from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.batch.pipeline.questions import Question, TiledQuestion
from phospho_multimodal.batch.sources.select import Item, Source
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.exchange.attempts import RequestState
from phospho_multimodal.exchange.prediction import build_request
from phospho_multimodal.images.prepare import LinkedImage, SendableImage, prepare_source
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import ConversationPlan
from phospho_multimodal.messages.image_parts import Part, Passed, parts_of
from phospho_multimodal.settings import Settings

__all__ = ["Preparation", "Ready", "make_sendable", "size_of"]

_LOOKED_UP = 128  # inputs whose state is looked up together
_TOGETHER = 8  # inputs that one thread prepares before it passes them on
_MOST_BYTES = 8 * 1024 * 1024  # of images, after which both are fewer


@dataclass(slots=True)
class Ready:
    """Prepared inputs.

    Attributes:
        questions: Images to send.
        done: Inputs that have their row already, by its state: broken ones, and those whose
            image was answered before.
        duplicates: Inputs whose image is sent for another input, or was.
    """

    questions: list[Question | TiledQuestion] = field(default_factory=list)
    done: Counter[State] = field(default_factory=Counter)
    duplicates: int = 0


class Preparation:
    """Goes through a source once, and prepares the inputs that have no row."""

    def __init__(
        self,
        source: Source,
        journal: Journal,
        job: Job,
        settings: Settings,
        stopped: Callable[[], bool],
    ) -> None:
        self._journal = journal
        self._job = job
        self._settings = settings
        self._stopped = stopped
        self._pending = self._without_row(iter(source))

    def next_inputs(self) -> list[tuple[int, Item]]:
        """Return the next inputs without a row, with their positions; for one thread at a time."""
        inputs: list[tuple[int, Item]] = []
        size = 0
        for position, item in self._pending:
            inputs.append((position, item))
            size += max(_in_memory(item), item.file_size or 0)
            if len(inputs) == _TOGETHER or size >= _MOST_BYTES:
                break
        return inputs

    def make_ready(self, inputs: Sequence[tuple[int, Item]]) -> Ready:
        """Prepare inputs, and note in the journal what they are; for any number of threads."""
        ready = Ready()
        images: list[tuple[int, list[Part], str | None]] = []
        failures: list[tuple[int, PhosphoError]] = []
        for position, item in inputs:
            parts = make_parts(item, self._settings, self._stopped)
            if not isinstance(parts, PhosphoError):
                images.append((position, parts, item.prompt))
            elif not self._stopped():  # a fetch that was given up says nothing about its image
                failures.append((position, parts))
        if failures:
            self._journal.fail(failures, ended=time.time())
            ready.done[State.FAILED] += len(failures)
        keys = [_key_of(parts, prompt) for _, parts, prompt in images]
        states = self._journal.take(
            (position, key, *_size_of_parts(parts))
            for (position, parts, _), key in zip(images, keys, strict=True)
        )
        for (_, parts, prompt), key, state in zip(images, keys, states, strict=True):
            if state is State.PENDING:
                ready.questions.append(self._question(key, parts, prompt))
                continue
            ready.duplicates += 1
            if state is not State.SENDING:
                ready.done[state] += 1
        return ready

    def _question(
        self, key: bytes, parts: Sequence[Part], prompt: str | None
    ) -> Question | TiledQuestion:
        if len(parts) == 1:
            return Question(key, self._call(parts[0], prompt))
        keys = [TILE + hashlib.sha256(b"%s %d" % (key, at)).digest() for at in range(len(parts))]
        states = self._journal.take(
            (None, tile, *size_of(part.image)) for tile, part in zip(keys, parts, strict=True)
        )
        tiles = zip(keys, parts, states, strict=True)
        return TiledQuestion(
            key,
            tuple((tile, part.name) for tile, part in zip(keys, parts, strict=True)),
            [
                Question(tile, self._call(part, prompt))
                for tile, part, state in tiles
                if state is State.PENDING
            ],
        )

    def _call(self, part: Part, prompt: str | None) -> RequestState:
        text = f"{self._job.prompt if prompt is None else prompt}{part.note}"
        return build_request(part.image, text, self._job.asking, self._settings)

    def _without_row(self, items: Iterator[Item]) -> Iterator[tuple[int, Item]]:
        for chunk in _chunks(items):
            positions = self._journal.pending([item.id for item in chunk])
            for item in chunk:
                if self._stopped():
                    return
                position = positions.get(item.id)
                if position is not None:
                    yield position, item


def make_sendable(
    item: Item, settings: Settings, given_up: Callable[[], bool]
) -> SendableImage | PhosphoError:
    """Prepare one input as one image, or return what is wrong with it.

    Args:
        item: The input.
        settings: The settings of the client.
        given_up: Called while a URL is fetched: whether the image is not wanted any more.
    """
    if item.error is not None:
        return item.error
    try:
        source = image_source(item.image)
        return prepare_source(
            source,
            max_image_side=settings.max_image_side,
            prepare=settings.prepare,
            fetched=_fetched(source.url, settings, given_up),
        )
    except PhosphoError as error:
        return error


def make_parts(
    item: Item, settings: Settings, given_up: Callable[[], bool]
) -> list[Part] | PhosphoError:
    """Prepare one input as an image or as tiles, or return what is wrong with it."""
    if settings.detail != "tiles":
        image = make_sendable(item, settings, given_up)
        return image if isinstance(image, PhosphoError) else [Part(image, "")]
    if item.error is not None:
        return item.error
    try:
        source = image_source(item.image)
        passed = Passed(source, _fetched(source.url, settings, given_up))
        return parts_of(ConversationPlan("", (source,), "single", 0), [passed], settings)
    except PhosphoError as error:
        return error


def _key_of(parts: Sequence[Part], prompt: str | None) -> bytes:
    keys = [picture_key(part.image, prompt) for part in parts]
    return keys[0] if len(keys) == 1 else b"tiles:" + hashlib.sha256(b"".join(keys)).digest()


def _size_of_parts(parts: Sequence[Part]) -> tuple[int | None, int | None]:
    return size_of(parts[0].image) if len(parts) == 1 else (None, None)


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Group items by number and by the memory that they hold: an item may hold its image."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += _in_memory(item)
        if len(chunk) == _LOOKED_UP or size >= _MOST_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _in_memory(item: Item) -> int:
    return len(item.image) if isinstance(item.image, (bytes, bytearray, str)) else 0


def size_of(image: SendableImage) -> tuple[int | None, int | None]:
    """Return width and height in pixels, which are not known for a URL that is passed on."""
    if isinstance(image, LinkedImage):
        return None, None
    return image.width, image.height


def _fetched(url: str | None, settings: Settings, given_up: Callable[[], bool]) -> bytes | None:
    if url is None or settings.url_mode == "pass":
        return None
    from phospho_multimodal.images.safe_fetch import fetch_image  # noqa: PLC0415 - loads httpcore

    return fetch_image(url, given_up=given_up)
