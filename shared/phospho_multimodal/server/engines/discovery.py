"""Finds a vision model that another server on localhost already runs."""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import dataclass
from typing import Any

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server.engines import EngineBusy
from phospho_multimodal.server.engines.chat import chat_body
from phospho_multimodal.server.engines.dialects import DIALECTS, Dialect
from phospho_multimodal.server.engines.inspection import (
    get_models,
    no_images,
    read_facts,
    recognize,
)
from phospho_multimodal.server.engines.model_facts import has_name, model_name, models
from phospho_multimodal.server.engines.openai import UPSTREAM_VARIABLE
from phospho_multimodal.server.engines.upstream import (
    KEY_VARIABLE,
    Upstream,
    UpstreamAway,
    no_answer,
    read_json,
)

__all__ = ["EngineChoice", "choose_engine"]

LOCAL_SERVERS = {
    name: DIALECTS[name].port for name in ("ollama", "lmstudio", "llama.cpp", "vllm", "sglang")
}
"""Dialect → its usual port on localhost, in the order in which they are chosen."""

PULL = "ollama pull qwen2.5vl:3b"
"""The command that installs a vision model."""

_GUIDE = "cookbook/guides/real_vision_model.md"

_OCR = (
    "No vision model was found, so the engine 'ocr' answers: it reads text and measures the image,"
    " and recognizes no objects."
)
_TO_DO = f"For a real model, install Ollama, run `{PULL}`, and start again. See {_GUIDE}."

_LOOK_SECONDS = 1.0  # a server on localhost answers in milliseconds
_NAMED_SECONDS = 10.0  # a server that the user names may be slow
_TRY_SECONDS = 15.0  # for one token about an image of 32 × 32 pixels
_MAX_MODELS = 32  # of one server
_MAX_TRIES = 2  # models of one server that get a test image
_KEY_WANTED = frozenset({401, 403})

_GREY_SQUARE = base64.b64decode(  # 32 × 32 pixels, a PNG
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAABWESUoAAAAGElEQVR42mNsYMAPmBhGFYwqGFUwQhUAAJe+"
    "AMD8WknZAAAAAElFTkSuQmCC"
)


@dataclass(frozen=True)
class EngineChoice:
    """The chosen engine.

    Attributes:
        engine: The engine's name.
        options: The engine's options.
        notice: Lines that say what was found, what was looked for, and what to do.
    """

    engine: str
    options: dict[str, Any]
    notice: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A model that takes images."""

    title: str
    upstream: str
    model: str


def choose_engine(
    *, upstream: str | None = None, model: str | None = None, skip_port: int | None = None
) -> EngineChoice:
    """Choose a vision model of another server, or OCR if there is none.

    It looks at `PHOSPHO_UPSTREAM`, then at the usual ports of model servers on localhost.

    Args:
        upstream: The only server to look at.
        model: The only model to choose.
        skip_port: This server's own port, where it does not look.

    Raises:
        ConfigurationError: `upstream` or `model` is given, and no such model was found.
    """
    return asyncio.run(_choose(upstream, model, skip_port))


async def _choose(upstream: str | None, model: str | None, skip_port: int | None) -> EngineChoice:
    looked: list[str] = []
    named = upstream or os.environ.get(UPSTREAM_VARIABLE)
    if named:
        server = Upstream(named, api_key=os.environ.get(KEY_VARIABLE))
        result = await _look(server, model, seconds=_NAMED_SECONDS)
        if isinstance(result, _Found):
            return _chosen(result, use_key=True)
        looked.append(f"{server.root} ({result})")
    if not upstream:
        local = {name: port for name, port in LOCAL_SERVERS.items() if port != skip_port}
        servers = [Upstream(f"http://127.0.0.1:{port}", api_key=None) for port in local.values()]
        looks = (_look(server, model, seconds=_LOOK_SECONDS) for server in servers)
        for name, server, result in zip(local, servers, await asyncio.gather(*looks), strict=True):
            if isinstance(result, _Found):
                return _chosen(result, use_key=False)
            looked.append(f"{DIALECTS[name].title} at {server.root} ({result})")
    places = "; ".join(looked)
    if upstream or model:
        what = f"The model {model!r} was not found" if model else "No vision model was found"
        advice = "Give --engine openai and --model to use a model that was not found."
        message = f"{what}. Looked at: {places}. {advice}"
        raise ConfigurationError(message)
    return EngineChoice("ocr", {}, (_OCR, f"Looked for: {places}.", _TO_DO))


def _chosen(found: _Found, *, use_key: bool) -> EngineChoice:
    options = {"upstream": found.upstream, "model": found.model, "use_key": use_key}
    line = (
        f"Found the vision model {found.model} on {found.title} ({found.upstream}). It answers."
        " --engine ocr reads text instead."
    )
    return EngineChoice("openai", options, (line,))


async def _look(server: Upstream, wanted: str | None, *, seconds: float) -> _Found | str:
    """Look for a vision model on one server, or say why there is none."""
    try:
        reply = await get_models(server, seconds=seconds)
        if reply.status_code in _KEY_WANTED:
            return f"wants a key: give --upstream, and the key in {KEY_VARIABLE}"
        if isinstance(server.failure(reply), EngineBusy):
            return "is loading its model or busy: start again when it is ready"
        listed = None if no_answer(reply) else read_json(reply)
        if not models(listed):
            return "lists no models"
        return await _choose_model(server, listed, wanted)
    except UpstreamAway as away:
        return "nothing answers" if away.no_connection else "does not answer in time"
    finally:
        await server.close()


async def _choose_model(server: Upstream, listed: object, wanted: str | None) -> _Found | str:
    dialect = DIALECTS[await recognize(server, listed)]
    entries = models(listed)
    if wanted is not None:
        entries = [entry for entry in entries if has_name(entry, wanted)]
        names = [wanted] if entries else []
    else:
        names = list(dict.fromkeys(filter(None, map(model_name, entries))))[:_MAX_MODELS]
    known = {name: await read_facts(server, dialect, listed, name) for name in names}
    seeing = [name for name in names if known[name].takes_images]
    # A model whose context is reported is loaded already.
    seeing.sort(key=lambda name: known[name].context is None)
    silent = [name for name in names if known[name].takes_images is None]
    if not seeing and wanted is not None:
        seeing = silent
    elif not seeing and server.is_local:  # a test costs nothing there
        seeing = [n for n in silent[:_MAX_TRIES] if await _answers_about_an_image(server, n)]
    if seeing:
        return _Found(dialect.title, server.base, seeing[0])
    return _why_none(dialect, names, silent, wanted)


def _why_none(dialect: Dialect, names: list[str], silent: list[str], wanted: str | None) -> str:
    if not names:
        return f"{dialect.title} does not list it"
    if silent and wanted is None:
        return f"{dialect.title} does not report which of its models take images: give --model"
    if wanted is not None:
        return no_images(wanted, dialect)
    return f"{dialect.title} has no model that takes images"


async def _answers_about_an_image(server: Upstream, model: str) -> bool:
    """Send a test image; a model without image input answers with an error."""
    fields = {"model": model, "stream": False, "max_tokens": 1}
    image = base64.b64encode(_GREY_SQUARE)
    pieces = chat_body(fields, "image/png", image, "What is this?")
    try:
        reply = await server.post("/chat/completions", *pieces, seconds=_TRY_SECONDS)
    except EngineBusy:
        return False
    answer = read_json(reply)
    return not no_answer(reply) and isinstance(answer, dict) and bool(answer.get("choices"))
