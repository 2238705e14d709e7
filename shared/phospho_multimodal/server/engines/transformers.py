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

    from phospho_multimodal.server.engines import Picture, Question, State

__all__ = ["TransformersEngine"]

_LONGEST_SIDE = 2048  # pixels; what models look at, and what a waiting picture may weigh
_PREPARING = 4  # pictures at once
_END_SECONDS = 10.0  # for the token at work

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
        """Look at the model; its weights are loaded after the server has started.

        Args:
            model: A folder, or a name on the model hub.
            device: `auto`, `cpu` or `cuda`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            max_batch: How many questions are answered in one go at most.

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
            message = f"A batch holds one question at least, not {max_batch}."
            raise ConfigurationError(message)
        self._model = VisionModel(model, device=device, dtype=dtype)
        self._max_batch = max_batch
        self.at_once = 2 * max_batch  # one batch at work, and one that gathers
        self._batches: Batches | None = None
        self._preparing: anyio.CapacityLimiter | None = None
        self._loading: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """`loading` until the weights are there."""
        ready = self._batches is not None and self._batches.ready
        loaded = ready and ready.done() and ready.exception() is None
        return "ok" if loaded else "loading"

    async def start(self) -> None:
        """Begin to load the weights, on the thread that will run the model."""
        self._preparing = anyio.CapacityLimiter(_PREPARING)
        self._batches = Batches(self._model.load, most=self._max_batch)
        self._loading = asyncio.create_task(self._watch(self._batches))

    async def close(self) -> None:
        """End the thread."""
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
        if self._batches is not None:
            self._batches.close()
            if self.state == "ok":  # what still loads cannot be told to end
                await anyio.to_thread.run_sync(self._batches.join, _END_SECONDS)

    async def describe(self, picture: Picture, question: Question) -> str:
        """Ask the model.

        Args:
            picture: The image.
            question: The prompt and the parameters.

        Returns:
            What the model said.

        Raises:
            EngineBusy: It still loads, or too many wait.
        """
        if self._batches is None or self.state != "ok":
            raise EngineBusy
        image = await anyio.to_thread.run_sync(_reduced, picture, limiter=self._preparing)
        del picture  # its pixels may be 300 MB, and the answer takes its time
        return await self._batches.ask(image, question.text, question.parameters)

    async def _watch(self, batches: Batches) -> None:
        try:
            await asyncio.wrap_future(batches.ready)
        except ConfigurationError as failure:
            # There is nothing that a server without a model could do: this ends it, with a text.
            raise SystemExit(str(failure)) from None
        logger.info("The model is loaded.")


def _reduced(picture: Picture) -> Image:
    pixels = picture.pixels
    if max(pixels.size) <= _LONGEST_SIDE:
        return pixels
    smaller = pixels.copy()
    smaller.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return smaller
