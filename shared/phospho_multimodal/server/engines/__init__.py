"""What answers behind the contract: the protocol of an engine, and the engines by name.

A new engine is a class with a `name` and a `describe`, and one line in `ENGINES`. It is imported
when it is asked for, so that one engine's packages are no other engine's burden.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from phospho_multimodal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from PIL.Image import Image

    from phospho_multimodal.contract import GenerationParameters

__all__ = [
    "AT_ONCE",
    "ENGINES",
    "Engine",
    "EngineBusy",
    "EngineFailed",
    "Picture",
    "Question",
    "State",
    "load_engine",
    "running",
    "state",
]


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


class EngineBusy(Exception):  # noqa: N818 - a state, which passes
    """The engine cannot answer now, and will be able to: a 503 with Retry-After.

    Attributes:
        retry_after: Seconds until another try makes sense.
    """

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class EngineFailed(Exception):  # noqa: N818 - what happened, said by the engine itself
    """The engine has no answer: the contract's 500.

    Unlike any other exception, its text is logged: it must quote neither prompt, picture nor key.
    """


State = Literal["loading", "ok"]


class Engine(Protocol):
    """Turns one picture and one question into one answer.

    `name` and `describe` are all that an engine must have. These it may have besides:

    - `async def start(self)` and `async def close(self)`: awaited on the server's event loop
      before the first request and after the last. What takes long is begun in `start`, not
      finished there, and `state` tells when it is done. A failed start ends the server.
    - `state`: `"loading"` or `"ok"`, for `/health`; while it loads, questions are a 503.
    - `at_once`: how many questions it is given at the same time, unless the user says. It may
      change while the server runs.
    - `about`: what answers, for people: "the model llava on Ollama".
    - `async def check(self)`: awaited by the command line before the server starts. It raises a
      ConfigurationError if the engine can never answer.
    """

    @property
    def name(self) -> str:
        """The name it is chosen by."""

    def describe(self, picture: Picture, question: Question) -> str | Awaitable[str]:
        """Answer, on a worker thread; several threads may be in here at once.

        If it is an `async def` instead, it is awaited on the server's event loop, and cancelled
        when the client leaves.

        `EngineBusy` becomes a 503. Whatever else is raised becomes the contract's 500, and only
        its place in the code is logged, unless it is `EngineFailed`.
        """


ENGINES = {
    "ocr": ("phospho_multimodal.server.engines.ocr", "OcrEngine"),
    "echo": ("phospho_multimodal.server.engines.echo", "EchoEngine"),
    "openai": ("phospho_multimodal.server.engines.openai", "OpenAIEngine"),
    "transformers": ("phospho_multimodal.server.engines.transformers", "TransformersEngine"),
}
"""Name of an engine → its module and its class."""

AT_ONCE = 2
"""How many questions an engine is given at the same time if neither it nor the user says."""


def load_engine(name: str, **options: Any) -> Engine:
    """Make an engine.

    Args:
        name: One of `ENGINES`.
        **options: The engine's own, as its constructor names them; `None` is one that was not set.

    Returns:
        The engine.

    Raises:
        ConfigurationError: There is no engine of that name, or it knows no such option.
        ImportError: A package it needs is not installed; the message names the extra.
    """
    if name not in ENGINES:
        message = f"There is no engine {name!r}. Choose one of: {', '.join(sorted(ENGINES))}."
        raise ConfigurationError(message)
    module_name, class_name = ENGINES[name]
    engine_class = getattr(importlib.import_module(module_name), class_name)
    given = {option: value for option, value in options.items() if value is not None}
    unknown = given.keys() - inspect.signature(engine_class).parameters.keys()
    if unknown:
        flags = ", ".join(sorted(f"--{option.replace('_', '-')}" for option in unknown))
        message = f"The engine {name!r} has no use for {flags}."
        raise ConfigurationError(message)
    return cast("Engine", engine_class(**given))


@contextlib.asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[None]:
    """Start an engine, and close it in the end, if it wants to be."""
    start, close = getattr(engine, "start", None), getattr(engine, "close", None)
    try:
        if start is not None:
            await start()
        yield
    finally:
        if close is not None:
            await close()


def state(engine: Engine) -> State:
    """Tell whether an engine is ready to answer."""
    return cast("State", getattr(engine, "state", "ok"))
