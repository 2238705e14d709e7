"""What answers behind the phospho API: the protocol of an engine, and the engines by name.

A new engine is a class with a `name` and a `describe`, and one line in `ENGINES`. Its module is
imported only when the engine is chosen, so it needs only its own packages.
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
    "InputImage",
    "Question",
    "State",
    "load_engine",
    "running",
    "state",
]


class InputImage:
    """The checked image of a request, whose pixels are decoded when an engine first needs them.

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
        """First frame, EXIF orientation applied, RGB in sRGB, transparency on white.

        Decoding costs most of a request's time. Two threads at once may both decode.
        """
        if callable(self._pixels):
            self._pixels = self._pixels()
        return self._pixels


@dataclass(frozen=True)
class Question:
    """What a request asks about its image.

    Attributes:
        text: The prompt.
        model: The model's name in the request.
        parameters: The generation parameters; `None` where the request leaves one out.
    """

    text: str
    model: str
    parameters: GenerationParameters


class EngineBusy(Exception):  # noqa: N818 - a state, which passes
    """The engine cannot answer now, but later: a 503 with Retry-After.

    Attributes:
        retry_after: Seconds until a retry makes sense.
    """

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class EngineFailed(Exception):  # noqa: N818 - what happened, said by the engine itself
    """The engine has no answer: a 500. Its text is logged, so it must not quote the request."""


State = Literal["loading", "ok"]


class Engine(Protocol):
    """Answers one prompt about one image.

    `name` and `describe` are required. These members are optional:

    - `async def start(self)` and `async def close(self)`: awaited on the server's event loop
      before the first request and after the last one. `start` only begins what takes long, and
      `state` shows when that is done. If `start` fails, the server ends.
    - `state`: `"loading"` or `"ok"`, for `/health`. While it is `"loading"`, requests are a 503.
    - `at_once`: how many requests it gets at the same time by default. It may change.
    - `about`: what answers, for people, such as "the model llava on Ollama".
    - `async def check(self)`: awaited by the command line before the server starts. It raises a
      ConfigurationError if the engine can never answer.
    """

    @property
    def name(self) -> str:
        """The name in `ENGINES`."""

    def describe(self, image: InputImage, question: Question, /) -> str | Awaitable[str]:
        """Answer, in a worker thread, concurrently with other threads.

        An `async def` is awaited on the event loop instead, and cancelled when the client
        disconnects. `EngineBusy` becomes a 503. Every other exception becomes a 500, and the log
        has its traceback without its text, except the text of `EngineFailed`.
        """


ENGINES = {
    "ocr": ("phospho_multimodal.server.engines.ocr", "OcrEngine"),
    "echo": ("phospho_multimodal.server.engines.echo", "EchoEngine"),
    "openai": ("phospho_multimodal.server.engines.openai", "OpenAIEngine"),
    "transformers": ("phospho_multimodal.server.engines.transformers", "TransformersEngine"),
}
"""Name of an engine → its module and its class."""

AT_ONCE = 2
"""How many requests an engine gets at the same time if neither it nor the user sets that."""


def load_engine(name: str, **options: Any) -> Engine:
    """Create an engine.

    Args:
        name: One of `ENGINES`.
        **options: Keywords of the engine's constructor. `None` means that an option is not set.

    Raises:
        ConfigurationError: The engine or one of its options does not exist.
        ImportError: A package is not installed. The message names the extra.
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
        message = f"The engine {name!r} does not use {flags}."
        raise ConfigurationError(message)
    return cast("Engine", engine_class(**given))


@contextlib.asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[None]:
    """Start an engine, and close it at the end, if it has these methods."""
    start, close = getattr(engine, "start", None), getattr(engine, "close", None)
    try:
        if start is not None:
            await start()
        yield
    finally:
        if close is not None:
            await close()


def state(engine: Engine) -> State:
    """Report whether an engine is ready to answer."""
    return cast("State", getattr(engine, "state", "ok"))
