"""What answers behind the contract: the protocol of an engine, and the engines by name.

A new engine is a class with a `name` and a `describe`, and one line in `ENGINES`. It is imported
when it is asked for, so that one engine's packages are no other engine's burden.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from phospho_multimodal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from phospho_multimodal.wire import GenerationParameters

__all__ = ["ENGINES", "Engine", "Picture", "Question", "load_engine"]


class Picture:
    """The image of a request, checked; its pixels are decoded when an engine first wants them.

    Attributes:
        data: The file as it was received, after base64.
        format: The file's type, as Pillow names it.
        width: Columns, as the file stores them.
        height: Rows, as the file stores them.
    """

    def __init__(
        self,
        data: bytes,
        format: str,  # noqa: A002 - Pillow's own word for it
        width: int,
        height: int,
        pixels: Image | Callable[[], Image],
    ) -> None:
        self.data = data
        self.format = format
        self.width = width
        self.height = height
        self._pixels = pixels

    @property
    def pixels(self) -> Image:
        """First frame, upright, RGB in sRGB, transparency on white.

        Decoding is the dearest part of a request, and an engine that hands the file on, or only
        looks at its bytes, can do without. Two threads at once may both decode: the same pixels.
        """
        if callable(self._pixels):
            self._pixels = self._pixels()
        return self._pixels


@dataclass(frozen=True)
class Question:
    """What a request asks about its image."""

    text: str
    """The prompt."""
    model: str
    """The model's name as it was asked for."""
    parameters: GenerationParameters
    """The generation parameters; `None` where the request left one out."""


class Engine(Protocol):
    """Turns one picture and one question into one answer."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""

    def describe(self, picture: Picture, question: Question) -> str:
        """Answer, on a worker thread; several threads may be in here at once.

        Whatever is raised becomes the contract's 500, and only its place in the code is logged.
        """


ENGINES = {
    "ocr": ("phospho_multimodal.server.engines.ocr", "OcrEngine"),
    "echo": ("phospho_multimodal.server.engines.echo", "EchoEngine"),
}
"""Name of an engine → its module and its class."""


def load_engine(name: str) -> Engine:
    """Make an engine.

    Args:
        name: One of `ENGINES`.

    Returns:
        The engine, ready to answer.

    Raises:
        ConfigurationError: There is no engine of that name.
        ImportError: A package it needs is not installed; the message names the extra.
    """
    if name not in ENGINES:
        message = f"There is no engine {name!r}. Choose one of: {', '.join(sorted(ENGINES))}."
        raise ConfigurationError(message)
    module_name, class_name = ENGINES[name]
    engine_class = getattr(importlib.import_module(module_name), class_name)
    return cast("Engine", engine_class())
