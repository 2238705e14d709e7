"""An engine that sends requests to a vision model on an OpenAI-compatible server.

The server is vLLM, SGLang, llama.cpp, LM Studio, Ollama, or another. Several gateways can use the
same one.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import anyio
import anyio.to_thread

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.images.prepare import PreparedImage, prepare_image
from phospho_multimodal.server.engines import (
    EngineBusy,
    EngineFailed,
    InputImage,
    Question,
    State,
)
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
    HttpResponse,
    Upstream,
    no_answer,
    read_json,
)

__all__ = ["ANSWER_SECONDS", "UPSTREAM_VARIABLE", "OpenAIEngine"]

ANSWER_SECONDS = 55.0
"""How long the upstream may take. The phospho API stops waiting after 60 s."""

UPSTREAM_VARIABLE = "PHOSPHO_UPSTREAM"
"""The environment variable with the upstream's URL, used without `--upstream`."""

_PREPARING = 4  # images that are prepared at the same time
_BAD_REQUEST = frozenset({400, 422})

logger = logging.getLogger(__name__)


class OpenAIEngine:
    """Sends image and prompt to an OpenAI-compatible server, and returns its answer.

    The image is sent as a JPEG or PNG with its EXIF orientation applied, which no server does, and
    never as a URL. Some servers open no URLs (Ollama), or know few types (llama.cpp).
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
        """Check the options; the key is read from `PHOSPHO_UPSTREAM_API_KEY`.

        Args:
            upstream: The server's URL, with or without `/v1`. Default: `PHOSPHO_UPSTREAM`.
            model: The model's name on that server.
            dialect: One of `DIALECTS`. Default: recognized.
            timeout: Seconds that the upstream may take for an answer.
            max_image_side: The longest side of an image, in pixels. Default: what fits into the
                context that the upstream reports.
            use_key: Whether to send the key. A server that was found on localhost does not get it.

        Raises:
            ConfigurationError: An option is missing or cannot be used.
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
        self._refused: dict[str, str | None] = {}  # field → the field that the model takes instead

    @property
    def state(self) -> State:
        """`ok` while the upstream is available and its model is loaded."""
        return "ok" if self._monitor.available else "loading"

    @property
    def at_once(self) -> int:
        """How many concurrent requests the upstream gets, which it reports or the engine learns."""
        return self._monitor.facts.at_once or self._learned().limit

    @property
    def about(self) -> str:
        """The model and its server."""
        title = self._monitor.dialect.title
        return f"the model {self._model} on {title} ({self._upstream.root})"

    async def start(self) -> None:
        """Check the upstream, and continue in the background."""
        self._preparing = anyio.CapacityLimiter(_PREPARING)
        await self._monitor.start()

    async def close(self) -> None:
        """Stop the checks, and close the connections."""
        await self._monitor.close()
        await self._upstream.close()

    async def check(self) -> None:
        """Raise a ConfigurationError if the upstream reports that its model takes no images."""
        upstream = Upstream(self._upstream.base, api_key=self._api_key)
        try:
            listed = read_json(await get_models(upstream))
            dialect = DIALECTS[self._dialect or await recognize(upstream, listed)]
            found = await read_facts(upstream, dialect, listed, self._model)
        except EngineBusy:
            return  # it may start later
        finally:
            await upstream.close()
        if found.takes_images is False:
            raise ConfigurationError(no_images(self._model, dialect))

    async def describe(self, image: InputImage, question: Question) -> str:
        """Send image and prompt to the upstream, and return the model's answer.

        Raises:
            EngineBusy: The upstream is overloaded, late, or unavailable.
            EngineFailed: The upstream rejects the request, or its response has no answer.
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
            _prepare, image.data, side, limiter=self._preparing
        )
        del image  # its pixels may take 300 MB until the answer is there
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
            # In a thread, because the search for the prompt takes long.
            failed = functools.partial(self._upstream.failure, reply, hide=hide)
            raise await anyio.to_thread.run_sync(failed, limiter=self._preparing)
        answer = read_answer(reply, functools.partial(self._upstream.quoted, hide=hide))
        monitor.answered()
        self._learned().answered(busy)
        return answer

    async def _ask(self, image: PreparedImage, question: Question) -> HttpResponse:
        """Send the request, and repeat it without each parameter that the model rejects."""
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
        """Learn from an error which field the model rejects; false if it is another error."""
        refused = without_refused(fields, reply.body.decode(errors="replace"))
        if refused is None:
            return False
        name, instead = refused
        self._refused[name] = instead
        becomes = f"is sent as {instead}" if instead else "is not sent and has no effect"
        logger.warning("The model %s rejects %s, which %s from now on.", self._model, name, becomes)
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


def _prepare(data: bytes, longest_side: int) -> PreparedImage:
    return prepare_image(data, max_image_side=longest_side)
