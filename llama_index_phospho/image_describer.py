"""Describe many images, each distinct image once."""

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

from llama_index_phospho.content import single_image
from llama_index_phospho.description_cache import Description, DescriptionStore
from llama_index_phospho.fields import PARAMETERS
from llama_index_phospho.llms import Phospho
from phospho_multimodal import ImageError, PhosphoError, UnexpectedReplyError
from phospho_multimodal.batch.sources.signed_urls import without_signature
from phospho_multimodal.contract import checked_parameters
from phospho_multimodal.exchange import steps as core_steps
from phospho_multimodal.images.prepare import LinkedImage, SendableImage, prepare_source
from phospho_multimodal.images.safe_fetch import fetch_image
from phospho_multimodal.images.source import ImageSource

__all__ = ["Ask", "ImageDescriber", "Steps", "arun_all", "arun_steps", "run_all", "run_steps"]

T = TypeVar("T")

_WAIT = 0.05  # seconds, while another caller pays for the same description


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a prompt about an image: a URL or a block, since LlamaIndex's events contain it."""

    llm: Phospho
    prompt: str
    image: object


@dataclass(frozen=True, slots=True)
class _Wait:
    """Wait while another caller pays for the same description."""


Step: TypeAlias = Callable[[], Any] | Ask | _Wait
"""I/O that a driver performs: blocking work, a request, or a pause."""
Steps: TypeAlias = Generator[Step, Any, T]
"""Work without I/O: it yields steps, and a driver sends their results back."""
Progress: TypeAlias = Callable[[Iterable[Any], int], Iterable[Any]]
"""Yields finished tasks, and counts them."""


def run_steps(steps: Steps[T]) -> T:
    """Run the steps in this thread."""
    return core_steps.run_steps(steps, _perform)


async def arun_steps(steps: Steps[T]) -> T:
    """Run the steps on this event loop."""
    return await core_steps.run_steps_async(steps, _perform_async)


def _perform(step: Step) -> Any:
    if isinstance(step, Ask):
        return step.llm.complete(step.prompt, image_documents=[step.image])
    return time.sleep(_WAIT) if isinstance(step, _Wait) else step()


async def _perform_async(step: Step) -> Any:
    if isinstance(step, Ask):
        return await step.llm.acomplete(step.prompt, image_documents=[step.image])
    return await (asyncio.sleep(_WAIT) if isinstance(step, _Wait) else asyncio.to_thread(step))


@dataclass(slots=True)
class ImageDescriber:
    """One run over the images of nodes or blocks.

    Attributes:
        keys: The key of each image that was prepared, by a digest of the unprepared image.
        stopped_by: The error that ended the run. Nothing is sent after it.
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

    def identify(self, owner: BaseNode | BaseContentBlock) -> tuple[str, SendableImage | None]:
        """Return the key of an image, and the prepared image if it had to be prepared.

        The key is a digest of the image that is sent, the prompt, the model and its parameters.
        """
        source = single_image(owner)
        given = self._digest_unprepared(source)
        # The image behind a URL can change, so a URL is prepared again.
        if source.url is None and given in self.keys:
            return self.keys[given], None
        image = self._prepare(source)
        identity = (
            without_signature(image.to_wire()) if isinstance(image, LinkedImage) else image.sha256
        )
        self.keys[given] = key = self._digest(identity)
        return key, image

    def find_key(self, owner: BaseNode | BaseContentBlock) -> str | None:
        """Return the key of a described image, or the error of an unreadable one.

        Return `None` if a run would send a request, or download the image for the first time.
        """
        try:
            source = single_image(owner)
            if source.url is not None and self.llm.url_mode == "fetch":
                key = self.keys.get(self._digest_unprepared(source))
            else:
                key, _ = self.identify(owner)
        except ImageError as error:
            return str(error)
        except PhosphoError:
            return None
        return key if key is not None and self.store.find(key) is not None else None

    def describe(
        self, owner: BaseNode | BaseContentBlock, key: str, image: SendableImage | None
    ) -> Steps[Description | None]:
        """Find the description, wait for another caller to pay for it, or pay for it.

        Return `None` if the run was stopped.
        """
        # No step between claim and `try`: if a step were cancelled there, the claim would stay.
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
                image = yield partial(self._prepare, single_image(owner))
            sent = image.url if isinstance(image, LinkedImage) else ImageBlock(image=image.data)
            description = _read((yield Ask(self.llm, self.prompt, sent)))
            self.store.keep(key, description)  # no step before this: it is billed
        except PhosphoError as error:
            self._failures[key] = error
            raise
        finally:
            self.store.release(key)
        return description

    def _prepare(self, source: ImageSource) -> SendableImage:
        fetched = None
        if source.url is not None and self.llm.url_mode == "fetch":
            fetched = fetch_image(source.url, given_up=lambda: self.stopped_by is not None)
        return prepare_source(
            source,
            max_image_side=self.llm.max_image_side,
            # The model makes tiles itself, from all pixels.
            prepare=self.llm.prepare and self.llm.detail == "auto",
            fetched=fetched,
        )

    def _digest_unprepared(self, source: ImageSource) -> str:
        llm = self.llm
        if source.url is not None:
            return self._digest(without_signature(source.url), llm.url_mode)
        content: Any = source.value if source.form == "base64" else source.read()
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(content).hexdigest()
        return self._digest(digest, llm.max_image_side, llm.prepare)

    def _digest(self, image: str, *more: object) -> str:
        """Make a key; a digest, because URLs and prompts can contain secrets."""
        values = self.llm.call_values({})
        parts: dict[str, Any] = {
            "picture": image,  # stored keys depend on these names
            "prompt": self.prompt,
            "model": values["model"],
            "base_url": self.llm.base_url,
            "parameters": checked_parameters({name: values[name] for name in PARAMETERS}),
            "stop": values["stop"],
            **({} if self.llm.detail == "auto" else {"max_tiles": self.llm.max_tiles}),
        }
        if more:
            parts["more"] = more
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def run_all(
    work: Sequence[Steps[None]], run: ImageDescriber, workers: int, progress: Progress
) -> None:
    """Do the work in threads. If an error ends the run, raise it after the requests in progress."""

    def do(steps: Steps[None]) -> None:
        if run.stopped_by is None:
            try:
                run_steps(steps)
            except Exception as error:  # noqa: BLE001 - raised below
                run.stop(error)

    # Threads, because an event loop may be running already, as in a notebook.
    with ThreadPoolExecutor(workers, "phospho-describe") as pool:
        tasks = [pool.submit(contextvars.copy_context().run, do, steps) for steps in work]
        try:
            for finished in progress(as_completed(tasks), len(tasks)):
                finished.result()
        except BaseException as interruption:
            run.stop(interruption)
            raise
    if run.stopped_by is not None:
        raise run.stopped_by


async def arun_all(
    work: Sequence[Steps[None]], run: ImageDescriber, workers: int, progress: Progress
) -> None:
    """Do the same as `run_all`, async."""
    slots = asyncio.Semaphore(workers)

    async def do(steps: Steps[None]) -> None:
        async with slots:
            if run.stopped_by is None:
                try:
                    await arun_steps(steps)
                except Exception as error:  # noqa: BLE001 - raised below
                    run.stop(error)

    # LlamaIndex's run_jobs would not cancel the tasks when it is cancelled, and they would pay.
    tasks = [asyncio.create_task(do(steps)) for steps in work]
    try:
        for finished in progress(asyncio.as_completed(tasks), len(tasks)):
            await finished
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if run.stopped_by is not None:
        raise run.stopped_by


def _read(response: CompletionResponse) -> Description:
    if not response.text.strip():
        message = "The description is empty. It was billed. Change the prompt, or try again."
        raise UnexpectedReplyError(message)
    raw: Any = response.raw
    (image,) = raw["images"]
    return Description(response.text, raw["model_name"], image.get("sha256"))
