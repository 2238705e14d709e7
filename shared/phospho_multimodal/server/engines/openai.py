"""An engine that asks a vision model behind an OpenAI-compatible server.

The server does the serving: vLLM, SGLang, llama.cpp, LM Studio, Ollama, or another. This one keeps
the contract, and holds no state, so that any number of them can stand side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import orjson

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.images.prepare import prepare_image
from phospho_multimodal.server.engines import EngineBusy, EngineFailed
from phospho_multimodal.server.engines.dialects import (
    DIALECTS,
    Dialect,
    generation,
    models,
    of_models,
)
from phospho_multimodal.server.engines.upstream import (
    KEY_VARIABLE,
    Upstream,
    no_answer,
    read_json,
)

if TYPE_CHECKING:
    from phospho_multimodal.exchange import Reply
    from phospho_multimodal.images.prepare import PreparedImage
    from phospho_multimodal.server.engines import Picture, Question, State

__all__ = ["ANSWER_SECONDS", "OpenAIEngine"]

ANSWER_SECONDS = 55.0
"""How long the upstream may take: the contract's service gives up after 60 s."""

_LOOK_SECONDS = 3.0  # for a list of models
_LOOK_AGAIN = 2.0  # seconds between two looks at an upstream that is not there yet
_LONGEST_SIDE = 4096  # pixels; no model looks at more, and some servers refuse to
_PREPARING = 4  # pictures at once
_MOST_NAMES = 10  # of an upstream's models, in a log
_REFUSED = frozenset({401, 403})

_REASONS = ("stop", "length", "content_filter", "tool_calls")  # no set: what came may be a list

_MARK = b"{picture}"
_HERE = {"type": "image_url", "image_url": {"url": _MARK.decode()}}

logger = logging.getLogger(__name__)


class OpenAIEngine:
    """Hands picture and question to an OpenAI-compatible server, and its answer back.

    The picture goes as data, never as a URL, and as a JPEG or PNG that lies upright: servers open
    no URLs (Ollama), know few types (llama.cpp), and none of them minds the EXIF orientation.
    """

    name = "openai"
    at_once = 64

    def __init__(
        self,
        *,
        upstream: str | None = None,
        model: str | None = None,
        dialect: str | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> None:
        """Take the address; the key is in `PHOSPHO_UPSTREAM_API_KEY`, if there is one.

        Args:
            upstream: The server's URL, with `/v1` at its end or without.
            model: The model's name there.
            dialect: One of `DIALECTS`; `None` finds out when the engine is started.
            timeout: Seconds for an answer.

        Raises:
            ConfigurationError: One is missing, or cannot be used.
        """
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
        self._upstream = Upstream(upstream, api_key=os.environ.get(KEY_VARIABLE))
        self._model = model
        self._timeout = timeout
        self._dialect: Dialect | None = None if dialect is None else DIALECTS[dialect]
        self._preparing: anyio.CapacityLimiter | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """`loading` until the upstream was there and its dialect is known."""
        return "loading" if self._dialect is None else "ok"

    async def start(self) -> None:
        """Look at the upstream; if it is not there yet, go on looking in the background."""
        self._preparing = anyio.CapacityLimiter(_PREPARING)
        if self._dialect is not None:
            self._tell(self._dialect)
            return
        try:
            await self._look()
        except EngineBusy:
            self._looking = asyncio.create_task(self._look_until_there())

    async def close(self) -> None:
        """Let go of the connections."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        await self._upstream.close()

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
        if self._dialect is None:
            raise EngineBusy
        prepared = await anyio.to_thread.run_sync(_sendable, picture.data, limiter=self._preparing)
        del picture  # its pixels may be 300 MB, and the answer takes its time
        fields = {"model": self._model, "stream": False}
        fields |= generation(question.parameters, self._dialect)
        image, text = prepared.to_base64(), question.text
        pieces = _chat_body(fields, f"image/{prepared.format.lower()}", image, text)
        reply = await self._upstream.post("/chat/completions", *pieces, seconds=self._timeout)
        if no_answer(reply):
            # Looking for the prompt in it takes its time; base64 is never repeated anyhow.
            failure = functools.partial(self._upstream.failure, reply, hide=(text,))
            raise await anyio.to_thread.run_sync(failure, limiter=self._preparing)
        return _content(reply)

    async def _look_until_there(self) -> None:
        while self._dialect is None:
            await asyncio.sleep(_LOOK_AGAIN)
            with contextlib.suppress(EngineBusy):
                await self._look()

    async def _look(self) -> None:
        """Find out what the upstream is."""
        upstream = self._upstream
        reply = await upstream.get(f"{upstream.base}/models", seconds=_LOOK_SECONDS)
        listed = None
        if no_answer(reply):
            failure = upstream.failure(reply)
            if isinstance(failure, EngineBusy):  # llama.cpp's 503 while it loads its model
                raise failure
            if reply.status_code in _REFUSED:
                logger.warning("%s. Set its key in %s.", failure, KEY_VARIABLE)
        else:
            listed = read_json(reply)
        name = of_models(listed)
        if name is None and await self._is_ollama():
            name = "ollama"  # models of other namespaces are not owned by its library
        dialect = DIALECTS[name or "generic"]
        self._check_model(listed)
        self._tell(dialect)
        self._dialect = dialect

    async def _is_ollama(self) -> bool:
        reply = await self._upstream.get(
            f"{self._upstream.root}/api/version", seconds=_LOOK_SECONDS
        )
        version = read_json(reply)
        return not no_answer(reply) and isinstance(version, dict) and "version" in version

    def _check_model(self, listed: object) -> None:
        names = [str(model.get("id")) for model in models(listed)]
        # Ollama lists llava:latest for llava.
        if names and not {self._model, f"{self._model}:latest"} & set(names):
            some = ", ".join(names[:_MOST_NAMES])
            logger.warning("The upstream does not list the model %s, but: %s.", self._model, some)

    def _tell(self, dialect: Dialect) -> None:
        logger.info("The upstream %s is %s.", self._upstream.root, dialect.title)
        if dialect.penalty is None:
            logger.warning(
                "The upstream is %s, which takes no repetition_penalty: that parameter is checked"
                " and then has no effect. Another --dialect may know it.",
                dialect.title,
            )


def _sendable(data: bytes) -> PreparedImage:
    return prepare_image(data, max_image_side=_LONGEST_SIDE)


def _chat_body(fields: dict[str, Any], mime: str, image: bytes, text: str) -> tuple[bytes, ...]:
    """Write a chat request in pieces, so that the picture is not copied to stand in its place.

    The picture comes first: models were trained with the question after it, and nothing of the
    user's can be mistaken for its mark.
    """
    content = [_HERE, {"type": "text", "text": text}]
    messages = {"messages": [{"role": "user", "content": content}]}
    before, after = orjson.dumps(messages | fields).split(_MARK, 1)
    return before, f"data:{mime};base64,".encode(), image, after


def _content(reply: Reply) -> str:
    """Take the answer out of a chat completion; what is wrong is told without its words."""
    completion = read_json(reply)
    try:
        choice = completion["choices"][0]
        content = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        message = "The upstream's 200 holds no choices[0].message.content."
        raise EngineFailed(message) from None
    if not isinstance(content, str) or not content.strip():
        reason = choice.get("finish_reason")
        # One of these alone is repeated: anything else could be the picture's or the prompt's.
        known = reason if reason in _REASONS else "unknown"
        message = (
            f"The upstream's answer is empty (finish_reason: {known}). A model that thinks first"
            " can use up max_new_tokens on it: serve one that does not, or turn that off."
        )
        raise EngineFailed(message)
    return content.strip()
