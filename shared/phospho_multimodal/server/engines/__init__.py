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
    from PIL.Image import Image

    from phospho_multimodal.wire import GenerationParameters

__all__ = ["ENGINES", "Engine", "Picture", "Question", "load_engine"]


@dataclass(frozen=True)
class Picture:
    """The image of a request, checked and decoded."""

    data: bytes
    """The file as it was received, after base64."""
    format: str
    """The file's type, as Pillow names it."""
    width: int
    """Columns, as the file stores them."""
    height: int
    """Rows, as the file stores them."""
    pixels: Image
    """First frame, upright, RGB in sRGB, transparency on white."""


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
