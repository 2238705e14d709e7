"""An engine that runs a vision-language model in this process, on the CPU or a GPU."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server.engines import EngineBusy
from phospho_multimodal.server.engines.batches import Batches
from phospho_multimodal.server.engines.vision_model import DEVICES, DTYPES, VisionModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from phospho_multimodal.server.engines import InputImage, Question, State

__all__ = ["TransformersEngine"]

_LONGEST_SIDE = 2048  # pixels; no model uses more, and waiting images take memory
_PREPARING = 4  # images that are prepared at the same time
_END_SECONDS = 10.0  # for the token in progress

logger = logging.getLogger(__name__)


class TransformersEngine:
    """Answers with a model that `AutoModelForImageTextToText` can load."""

    name = "transformers"

    def __init__(
        self,
        *,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 8,
    ) -> None:
        """Check the model; its weights are loaded after the server has started.

        Args:
            model: A folder, or a name on the model hub.
            device: `auto`, `cpu` or `cuda`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            max_batch: The largest number of prompts in one batch.

        Raises:
            ConfigurationError: An option cannot be used, or the model is broken.
        """
        if not model:
            message = (
                "The engine 'transformers' needs --model, the folder of a vision-language model or"
                " its name on the model hub."
            )
            raise ConfigurationError(message)
        for option, value, known in (("device", device, DEVICES), ("dtype", dtype, DTYPES)):
            if value not in known:
                message = f"There is no {option} {value!r}. Choose one of: {', '.join(known)}."
                raise ConfigurationError(message)
        if max_batch < 1:
            message = f"max_batch must be 1 or greater, got {max_batch}."
            raise ConfigurationError(message)
        self._model = VisionModel(model, device=device, dtype=dtype)
        self._max_batch = max_batch
        self.at_once = 2 * max_batch  # one batch in progress, and one that gathers
        self._batches: Batches | None = None
        self._preparing: anyio.CapacityLimiter | None = None
        self._loading: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """`loading` until the weights are loaded."""
        ready = self._batches is not None and self._batches.ready
        loaded = ready and ready.done() and ready.exception() is None
        return "ok" if loaded else "loading"

    async def start(self) -> None:
        """Begin to load the weights, in the thread that will run the model."""
        self._preparing = anyio.CapacityLimiter(_PREPARING)
        self._batches = Batches(self._model.load, max_batch=self._max_batch)
        self._loading = asyncio.create_task(self._watch(self._batches))

    async def close(self) -> None:
        """End the thread."""
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
        if self._batches is not None:
            self._batches.close()
            if self.state == "ok":  # a load cannot be stopped
                await anyio.to_thread.run_sync(self._batches.join, _END_SECONDS)

    async def describe(self, image: InputImage, question: Question) -> str:
        """Return the model's answer, or raise EngineBusy if it loads or too many requests wait."""
        if self._batches is None or self.state != "ok":
            raise EngineBusy
        pixels = await anyio.to_thread.run_sync(_shrink, image, limiter=self._preparing)
        del image  # its pixels may take 300 MB until the answer is there
        return await self._batches.ask(pixels, question.text, question.parameters)

    async def _watch(self, batches: Batches) -> None:
        try:
            await asyncio.wrap_future(batches.ready)
        except ConfigurationError as failure:
            # A server without a model cannot answer, so this ends the process with a message.
            raise SystemExit(str(failure)) from None
        logger.info("The model is loaded.")


def _shrink(image: InputImage) -> Image:
    pixels = image.pixels
    if max(pixels.size) <= _LONGEST_SIDE:
        return pixels
    smaller = pixels.copy()
    smaller.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return smaller
