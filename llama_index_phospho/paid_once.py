"""Asking about many images, about each distinct one once."""

import asyncio
import contextvars
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

from llama_index.core.base.llms.types import BaseContentBlock, CompletionResponse, ImageBlock
from llama_index.core.schema import BaseNode

from llama_index_phospho.content import prompt_turns
from llama_index_phospho.description_cache import Description, DescriptionStore
from llama_index_phospho.fields import PARAMETERS
from llama_index_phospho.llms import Phospho
from phospho_multimodal import ImageError, PhosphoError, UnexpectedReplyError
from phospho_multimodal.batch.sources.signed_urls import without_signature
from phospho_multimodal.contract import checked_parameters
from phospho_multimodal.exchange import steps as steps_of_core
from phospho_multimodal.images.prepare import LinkedImage, SendableImage, prepare_source
from phospho_multimodal.images.safe_fetch import fetch_image
from phospho_multimodal.images.source import ImageSource

__all__ = ["Ask", "PaidOnce", "Steps", "arun_all", "arun_steps", "run_all", "run_steps"]

T = TypeVar("T")

Pictured: TypeAlias = BaseNode | BaseContentBlock
"""A node or block with an image."""

_LOOK_AGAIN = 0.05  # seconds, while somebody else pays for the description that is wanted


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request."""

    llm: Phospho
    prompt: str
    # What is prepared goes through the llm's own preparation as it is. A block or a string, since
    # core's events hold the arguments, and have to be written down by who reads them.
    image: object


@dataclass(frozen=True, slots=True)
class _Wait:
    """Wait a moment, while another pass asks about the same image."""


Step: TypeAlias = Callable[[], Any] | Ask | _Wait
"""What only a driver can do: blocking work, a request, or a pause."""
Steps: TypeAlias = Generator[Step, Any, T]
"""Work that does no I/O: it yields steps, and a driver sends their results back."""
Progress: TypeAlias = Callable[[Iterable[Any], int], Iterable[Any]]
"""Passes finished tasks on, and counts them."""


def run_steps(steps: Steps[T]) -> T:
    """Do the steps in this thread."""
    return steps_of_core.run_steps(steps, _perform)


async def arun_steps(steps: Steps[T]) -> T:
    """Do the steps with await."""
    return await steps_of_core.run_steps_async(steps, _perform_async)


def _perform(step: Step) -> Any:
    if isinstance(step, Ask):
        return step.llm.complete(step.prompt, image_documents=[step.image])
    return time.sleep(_LOOK_AGAIN) if isinstance(step, _Wait) else step()


async def _perform_async(step: Step) -> Any:
    if isinstance(step, Ask):
        return await step.llm.acomplete(step.prompt, image_documents=[step.image])
    if isinstance(step, _Wait):
        return await asyncio.sleep(_LOOK_AGAIN)
    return await asyncio.to_thread(step)


@dataclass(slots=True)
class PaidOnce:
    """One pass over some images.

    Attributes:
        llm: The model that describes.
        prompt: The prompt for each image.
        store: Where descriptions are kept.
        keys: The key of each image that was prepared, by a digest of the unprepared image.
        stopped_by: The error that ended the pass. Nothing is sent after it.
    """

    llm: Phospho
    prompt: str
    store: DescriptionStore
    keys: dict[str, str]
    stopped_by: BaseException | None = None
    _failures: dict[str, PhosphoError] = field(default_factory=dict)

    def stop(self, reason: BaseException) -> None:
        """Send nothing more. The first reason stays."""
        if self.stopped_by is None:
            self.stopped_by = reason

    def identify(self, node: Pictured) -> tuple[str, SendableImage | None]:
        """Find the key under which the description of a node's image is kept.

        Args:
            node: A node or block with an image.

        Returns:
            A digest of all that decides about the description: the image as it is sent, the prompt,
            the model and its parameters. And the prepared image, if it had to be prepared.

        Raises:
            PhosphoError: The image cannot be read.
        """
        source = _source(node)
        given = self._digest_of_given(source)
        # What a URL leads to can change: only fetching it tells.
        if source.url is None and given in self.keys:
            return self.keys[given], None
        image = self._prepared(source)
        identity = (
            without_signature(image.to_wire()) if isinstance(image, LinkedImage) else image.sha256
        )
        self.keys[given] = key = self._digest(identity)
        return key, image

    def known(self, node: Pictured) -> str | None:
        """Return what a pass would find out about an image without a request.

        Args:
            node: A node or block with an image.

        Returns:
            The key of its description, or why the image cannot be read; `None` if it would be
            asked about, or fetched for the first time.
        """
        try:
            source = _source(node)
            if source.url is not None and self.llm.url_mode == "fetch":
                key = self.keys.get(self._digest_of_given(source))
            else:
                key, _ = self.identify(node)
        except ImageError as error:
            return str(error)
        except PhosphoError:
            return None
        return key if key is not None and self.store.find(key) is not None else None

    def describe(
        self, node: Pictured, key: str, image: SendableImage | None
    ) -> Steps[Description | None]:
        """Find the description, or wait for the one that is in progress, or pay for it.

        Args:
            node: A node or block with an image.
            key: The key of the image.
            image: The prepared image, if there is one.

        Returns:
            The description; `None` if the pass has been stopped.

        Raises:
            PhosphoError: There is no description.
        """
        # No step in between: what is cancelled there would leave a claim that nobody gives up.
        while not self.store.claim(key):
            description = self.store.find(key)
            if description is not None or self.stopped_by is not None:
                return description
            yield _Wait()
        try:
            if key in self._failures:  # the same image in another node
                raise self._failures[key]
            if self.stopped_by is not None:
                return None
            if image is None:
                image = yield partial(self._prepared, _source(node))
            sent = image.url if isinstance(image, LinkedImage) else ImageBlock(image=image.data)
            description = _described((yield Ask(self.llm, self.prompt, sent)))
            self.store.keep(key, description)  # at once, without a step: it is paid for
        except PhosphoError as error:
            self._failures[key] = error
            raise
        finally:
            self.store.release(key)
        return description

    def _prepared(self, source: ImageSource) -> SendableImage:
        fetched = None
        if source.url is not None and self.llm.url_mode == "fetch":
            fetched = fetch_image(source.url, given_up=lambda: self.stopped_by is not None)
        return prepare_source(
            source,
            max_image_side=self.llm.max_image_side,
            # The model makes tiles itself, of all the pixels that there are.
            prepare=self.llm.prepare and self.llm.detail == "auto",
            fetched=fetched,
        )

    def _digest_of_given(self, source: ImageSource) -> str:
        """Tell the image as it was given from others, before it is prepared."""
        llm = self.llm
        if source.url is not None:
            return self._digest(without_signature(source.url), llm.url_mode)
        content: Any = source.value if source.form == "base64" else source.read()
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(content).hexdigest()
        return self._digest(digest, llm.max_image_side, llm.prepare)

    def _digest(self, picture: str, *more: object) -> str:
        values = self.llm.call_values({})
        told: dict[str, Any] = {
            "picture": picture,
            "prompt": self.prompt,
            "model": values["model"],
            "base_url": self.llm.base_url,
            "parameters": checked_parameters({name: values[name] for name in PARAMETERS}),
            "stop": values["stop"],
            **({} if self.llm.detail == "auto" else {"max_tiles": self.llm.max_tiles}),
        }
        if more:
            told["more"] = more
        # A digest, since a URL or a prompt can hold a secret.
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def run_all(work: Sequence[Steps[None]], run: PaidOnce, workers: int, progress: Progress) -> None:
    """Do some work in threads, until it is done or the pass ends.

    Args:
        work: The work for each image.
        run: The pass.
        workers: How many threads.
        progress: Counts finished tasks.

    Raises:
        PhosphoError: It ended the pass. Requests in progress have ended, too.
    """

    def do(steps: Steps[None]) -> None:
        if run.stopped_by is None:
            try:
                run_steps(steps)
            except Exception as error:  # noqa: BLE001 - raised when those in progress have ended
                run.stop(error)

    # Threads and not an event loop: one may be running already, as in a notebook.
    with ThreadPoolExecutor(workers, "phospho-describe") as pool:
        tasks = [pool.submit(contextvars.copy_context().run, do, steps) for steps in work]
        try:
            for ended in progress(as_completed(tasks), len(tasks)):
                ended.result()
        except BaseException as interruption:
            run.stop(interruption)
            raise
    if run.stopped_by is not None:
        raise run.stopped_by


async def arun_all(
    work: Sequence[Steps[None]], run: PaidOnce, workers: int, progress: Progress
) -> None:
    """Do as `run_all`, with await."""
    slots = asyncio.Semaphore(workers)

    async def do(steps: Steps[None]) -> None:
        async with slots:
            if run.stopped_by is None:
                try:
                    await arun_steps(steps)
                except Exception as error:  # noqa: BLE001 - as above
                    run.stop(error)

    # Core's run_jobs would leave them running, and paying, when this is cancelled.
    tasks = [asyncio.create_task(do(steps)) for steps in work]
    try:
        for ended in progress(asyncio.as_completed(tasks), len(tasks)):
            await ended
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if run.stopped_by is not None:
        raise run.stopped_by


def _source(node: Pictured) -> ImageSource:
    (turn,) = prompt_turns("", formatted=None, image_documents=[node])
    (source,) = turn.images
    return source


def _described(response: CompletionResponse) -> Description:
    if not response.text.strip():
        message = "The description is empty; it was billed. Ask another prompt, or ask again."
        raise UnexpectedReplyError(message)
    raw: Any = response.raw
    (shown,) = raw["images"]
    return Description(response.text, raw["model_name"], shown.get("sha256"))
