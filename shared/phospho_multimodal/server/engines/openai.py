"""An engine that asks a vision model behind an OpenAI-compatible server.

The server does the serving: vLLM, SGLang, llama.cpp, LM Studio, Ollama, or another. This engine
speaks phospho's API, and holds no state, so that any number of gateways can stand side by side.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.images.prepare import prepare_image
from phospho_multimodal.server.engines import EngineBusy, EngineFailed
from phospho_multimodal.server.engines.chat import chat_body, read_answer
from phospho_multimodal.server.engines.concurrency import LearnedConcurrency
from phospho_multimodal.server.engines.dialects import (
    DIALECTS,
    generation,
    without_refused,
)
from phospho_multimodal.server.engines.inspection import (
    get_models,
    no_images,
    read_facts,
    recognize,
)
from phospho_multimodal.server.engines.model_facts import image_side
from phospho_multimodal.server.engines.monitor import UpstreamMonitor
from phospho_multimodal.server.engines.upstream import (
    KEY_VARIABLE,
    PASSING,
    Upstream,
    no_answer,
    read_json,
)

if TYPE_CHECKING:
    from typing import Any

    from phospho_multimodal.images.prepare import PreparedImage
    from phospho_multimodal.server.engines import Picture, Question, State
    from phospho_multimodal.server.engines.upstream import HttpResponse

__all__ = ["ANSWER_SECONDS", "UPSTREAM_VARIABLE", "OpenAIEngine"]

ANSWER_SECONDS = 55.0
"""How long the upstream may take: the contract's service gives up after 60 s."""

UPSTREAM_VARIABLE = "PHOSPHO_UPSTREAM"
"""The environment variable with the upstream's URL, for a server that gets no `--upstream`."""

_PREPARING = 4  # images that are prepared at the same time
_BAD_REQUEST = frozenset({400, 422})

logger = logging.getLogger(__name__)


class OpenAIEngine:
    """Sends image and prompt to an OpenAI-compatible server, and returns its answer.

    The image is sent as data, never as a URL, and as an upright JPEG or PNG. Some servers open no
    URLs (Ollama) or know few types (llama.cpp). None of them applies the EXIF orientation.
    """

    name = "openai"

    def __init__(
        self,
        *,
        upstream: str | None = None,
        model: str | None = None,
        dialect: str | None = None,
        timeout: float = ANSWER_SECONDS,
        max_image_side: int | None = None,
        use_key: bool = True,
    ) -> None:
        """Take the address; the key is in `PHOSPHO_UPSTREAM_API_KEY`, if there is one.

        Args:
            upstream: The server's URL, with `/v1` at its end or without. Default:
                `PHOSPHO_UPSTREAM`.
            model: The model's name there.
            dialect: One of `DIALECTS`. By default, it is recognized.
            timeout: Seconds that the upstream may take for an answer.
            max_image_side: Longest side of an image, in pixels. By default, it is chosen so that
                the image fits into the context that the upstream reports.
            use_key: Whether to send the key. A server that was found on localhost does not get it.

        Raises:
            ConfigurationError: One is missing, or cannot be used.
        """
        upstream = upstream or os.environ.get(UPSTREAM_VARIABLE)
        if not upstream or not model:
            message = (
                "The engine 'openai' needs --upstream, the URL of an OpenAI-compatible server, and"
                " --model, the name of a vision model there."
            )
            raise ConfigurationError(message)
        if dialect is not None and dialect not in DIALECTS:
            known = ", ".join(DIALECTS)
            message = f"There is no dialect {dialect!r}. Choose one of: {known}."
            raise ConfigurationError(message)
        _check_positive("timeout", timeout)
        _check_positive("max_image_side", max_image_side)
        self._api_key = os.environ.get(KEY_VARIABLE) if use_key else None
        self._upstream = Upstream(upstream, api_key=self._api_key)
        self._model = model
        self._dialect = dialect
        self._timeout = timeout
        self._max_image_side = max_image_side
        self._monitor = UpstreamMonitor(
            self._upstream, model, dialect, in_use=lambda: self._in_progress > 0
        )
        self._preparing: anyio.CapacityLimiter | None = None
        self._in_progress = 0
        self._concurrency: dict[str, LearnedConcurrency] = {}
        self._refused: dict[str, str | None] = {}  # by the model: field → the field instead

    @property
    def state(self) -> State:
        """`ok` while the upstream is there and its model is loaded."""
        return "ok" if self._monitor.available else "loading"

    @property
    def at_once(self) -> int:
        """How many requests the upstream gets at the same time: reported, or learned."""
        return self._monitor.facts.at_once or self._learned().limit

    @property
    def about(self) -> str:
        """Which model answers."""
        title = self._monitor.dialect.title
        return f"the model {self._model} on {title} ({self._upstream.root})"

    async def start(self) -> None:
        """Look at the upstream; if it is not there yet, look again in the background."""
        self._preparing = anyio.CapacityLimiter(_PREPARING)
        await self._monitor.start()

    async def close(self) -> None:
        """Stop looking, and close the connections."""
        await self._monitor.close()
        await self._upstream.close()

    async def check(self) -> None:
        """Look at the upstream once, without a server around this engine.

        Raises:
            ConfigurationError: The upstream reports that its model takes no images.
        """
        upstream = Upstream(self._upstream.base, api_key=self._api_key)
        try:
            listed = read_json(await get_models(upstream))
            dialect = DIALECTS[self._dialect or await recognize(upstream, listed)]
            found = await read_facts(upstream, dialect, listed, self._model)
        except EngineBusy:
            return  # it may come later
        finally:
            await upstream.close()
        if found.takes_images is False:
            raise ConfigurationError(no_images(self._model, dialect))

    async def describe(self, picture: Picture, question: Question) -> str:
        """Ask the upstream.

        Args:
            picture: The image.
            question: The prompt and the parameters.

        Returns:
            What the model said.

        Raises:
            EngineBusy: The upstream is overloaded, late, or not there.
            EngineFailed: It refused, or what it said is no answer.
        """
        monitor = self._monitor
        if not monitor.available:
            raise EngineBusy
        if monitor.facts.takes_images is False:
            raise EngineFailed(no_images(self._model, monitor.dialect))
        side = self._max_image_side
        if side is None:
            side = image_side(monitor.facts.context or monitor.dialect.context)
        prepared = await anyio.to_thread.run_sync(
            _sendable, picture.data, side, limiter=self._preparing
        )
        del picture  # its pixels may be 300 MB, and the answer takes its time
        await monitor.wait_until_loaded(self._timeout)
        self._in_progress += 1
        try:
            reply = await self._ask(prepared, question)
            busy = self._in_progress
        except EngineBusy as failure:
            logger.warning("The upstream did not answer: %s.", failure)
            monitor.unanswered(failure)
            self._learned().overloaded()
            raise
        finally:
            self._in_progress -= 1
        hide = (question.text,)
        if no_answer(reply):
            # Looking for the prompt in it takes its time; base64 is never repeated anyhow.
            failed = functools.partial(self._upstream.failure, reply, hide=hide)
            raise await anyio.to_thread.run_sync(failed, limiter=self._preparing)
        answer = read_answer(reply, functools.partial(self._upstream.quoted, hide=hide))
        monitor.answered()
        self._learned().answered(busy)
        return answer

    async def _ask(self, image: PreparedImage, question: Question) -> HttpResponse:
        """Send the request, again without each parameter that the model rejects.

        Raises:
            EngineBusy: The upstream is overloaded, late, or not there.
        """
        base64, mime = image.to_base64(), f"image/{image.format.lower()}"
        while True:
            fields = self._fields(question)
            pieces = chat_body(fields, mime, base64, question.text)
            reply = await self._upstream.post("/chat/completions", *pieces, seconds=self._timeout)
            if reply.status_code in PASSING:
                raise self._upstream.failure(reply)
            if reply.status_code not in _BAD_REQUEST or not self._leave_out(fields, reply):
                return reply

    def _fields(self, question: Question) -> dict[str, Any]:
        fields = {"model": self._model, "stream": False}
        for name, value in generation(question.parameters, self._monitor.dialect).items():
            instead = self._refused.get(name, name)
            if instead is not None:
                fields[instead] = value
        return fields

    def _leave_out(self, fields: dict[str, Any], reply: HttpResponse) -> bool:
        """Learn from an error which field the model rejects, and tell whether that is new."""
        refused = without_refused(fields, reply.body.decode(errors="replace"))
        if refused is None:
            return False
        name, instead = refused
        self._refused[name] = instead
        becomes = f"is sent as {instead}" if instead else "is not sent to it and has no effect"
        logger.warning("The model %s rejects %s, which from now on %s.", self._model, name, becomes)
        return True

    def _learned(self) -> LearnedConcurrency:
        dialect = self._monitor.dialect
        if dialect.title not in self._concurrency:
            learned = LearnedConcurrency(dialect.at_once, grows=dialect.learns)
            self._concurrency[dialect.title] = learned
        return self._concurrency[dialect.title]


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        message = f"{name} must be greater than 0, got {value}."
        raise ConfigurationError(message)


def _sendable(data: bytes, longest_side: int) -> PreparedImage:
    return prepare_image(data, max_image_side=longest_side)
