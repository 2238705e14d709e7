"""From inputs to questions: pictures opened, made ready, and told apart, on threads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from phospho_multimodal.batch.job import Job, picture_key
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.batch.pipeline.questions import Question
from phospho_multimodal.batch.sources.select import Item, Source
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.exchange.prediction import build_request
from phospho_multimodal.images.prepare import LinkedImage, SendableImage, prepare_source
from phospho_multimodal.images.source import image_source
from phospho_multimodal.settings import Settings

__all__ = ["Preparation", "Ready", "make_sendable", "size_of"]

_LOOKED_UP = 128  # inputs whose state is looked up together
_TOGETHER = 8  # inputs that one thread makes ready before it hands them on
_MOST_BYTES = 8 * 1024 * 1024  # of pictures, after which both are fewer


@dataclass(slots=True)
class Ready:
    """What some inputs came to.

    Attributes:
        questions: Pictures that are to be asked about.
        done: Inputs that have their row already, by its state: broken ones, and those whose
            picture was answered before.
        duplicates: How many of all were pictures that are asked about elsewhere, or were.
    """

    questions: list[Question] = field(default_factory=list)
    done: Counter[State] = field(default_factory=Counter)
    duplicates: int = 0


class Preparation:
    """Goes through a source once, and makes of its inputs what is sent."""

    def __init__(
        self,
        source: Source,
        journal: Journal,
        job: Job,
        settings: Settings,
        stopped: Callable[[], bool],
    ) -> None:
        """Begin.

        Args:
            source: The inputs.
            journal: What is known about them.
            job: What is asked.
            settings: Of the client.
            stopped: Whether nothing more is wanted.
        """
        self._journal = journal
        self._job = job
        self._settings = settings
        self._stopped = stopped
        self._pending = self._without_row(iter(source))

    def next_inputs(self) -> list[tuple[int, Item]]:
        """Find the next inputs that have no row yet; for one thread at a time.

        Returns:
            Some, with their positions; none at the end.
        """
        inputs: list[tuple[int, Item]] = []
        size = 0
        for position, item in self._pending:
            inputs.append((position, item))
            size += max(_in_memory(item), item.file_size or 0)
            if len(inputs) == _TOGETHER or size >= _MOST_BYTES:
                break
        return inputs

    def make_ready(self, inputs: Sequence[tuple[int, Item]]) -> Ready:
        """Make inputs ready; for any number of threads.

        Args:
            inputs: With their positions.

        Returns:
            What they came to; the journal knows it.

        Raises:
            ConfigurationError: The journal cannot be written.
        """
        ready = Ready()
        images: list[tuple[int, SendableImage, str | None]] = []
        failures: list[tuple[int, PhosphoError]] = []
        for position, item in inputs:
            image = make_sendable(item, self._settings, self._stopped)
            if isinstance(image, PhosphoError):
                if not self._stopped():  # a URL that was given up says nothing about its picture
                    failures.append((position, image))
            else:
                images.append((position, image, item.prompt))
        if failures:
            self._journal.fail(failures, ended=time.time())
            ready.done[State.FAILED] += len(failures)
        found = [(at, picture_key(image, own), *size_of(image)) for at, image, own in images]
        states = self._journal.take(found)
        for (_, image, own), (_, picture, *_), state in zip(images, found, states, strict=True):
            if state is State.PENDING:
                prompt = self._job.prompt if own is None else own
                call = build_request(image, prompt, self._job.asking, self._settings)
                ready.questions.append(Question(picture, call))
                continue
            ready.duplicates += 1
            if state is not State.SENDING:
                ready.done[state] += 1
        return ready

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
    """Make one input ready, or tell why that cannot be.

    Args:
        item: The input.
        settings: Of the client.
        given_up: Asked while a URL is opened: whether nothing more is wanted.

    Returns:
        What is sent, or what is wrong.
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


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Cut where there are many, or where they hold much: an item may hold its picture."""
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
    """Width and height of what is sent, in pixels; not known of a URL that is passed on."""
    if isinstance(image, LinkedImage):
        return None, None
    return image.width, image.height


def _fetched(url: str | None, settings: Settings, given_up: Callable[[], bool]) -> bytes | None:
    if url is None or settings.url_mode == "pass":
        return None
    from phospho_multimodal.images.safe_fetch import fetch_image  # noqa: PLC0415 - loads httpcore

    return fetch_image(url, given_up=given_up)
