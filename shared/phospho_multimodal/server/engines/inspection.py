"""Single looks at a model server: its list of models, its kind, what it reports about a model."""

from __future__ import annotations

import contextlib

import orjson

from phospho_multimodal.server.engines import EngineBusy
from phospho_multimodal.server.engines.dialects import DIALECTS, Dialect, of_models
from phospho_multimodal.server.engines.model_facts import ModelFacts, facts
from phospho_multimodal.server.engines.upstream import HttpResponse, Upstream, no_answer, read_json

__all__ = ["NO_ROUTE", "get_models", "has_chat", "no_images", "read_facts", "recognize"]

NO_ROUTE = frozenset({404, 405})
"""What a server answers that has no such route."""

_LOOK_SECONDS = 3.0


async def get_models(upstream: Upstream, *, seconds: float = _LOOK_SECONDS) -> HttpResponse:
    """Get the list of models.

    Args:
        upstream: The server.
        seconds: How long it may take.

    Returns:
        The response, whatever its status.

    Raises:
        EngineBusy: There was none.
    """
    return await upstream.send("GET", f"{upstream.base}/models", seconds=seconds)


async def recognize(upstream: Upstream, listed: object) -> str:
    """Find out which of the dialects a server speaks.

    Args:
        upstream: The server.
        listed: Its list of models, decoded.

    Returns:
        The dialect's name.

    Raises:
        EngineBusy: The server is not there any more.
    """
    if name := of_models(listed):
        return name
    # Ollama's models of other namespaces are not owned by its library.
    reply = await upstream.send("GET", f"{upstream.root}/api/version", seconds=_LOOK_SECONDS)
    version = read_json(reply)
    ollama = not no_answer(reply) and isinstance(version, dict) and "version" in version
    return "ollama" if ollama else "generic"


async def has_chat(upstream: Upstream) -> bool:
    """Tell whether there is a chat route: it rejects an empty request, and bills nothing.

    Raises:
        EngineBusy: The server is not there.
    """
    reply = await upstream.post("/chat/completions", b"{}", seconds=_LOOK_SECONDS)
    return reply.status_code not in NO_ROUTE


async def read_facts(
    upstream: Upstream, dialect: Dialect, listed: object, model: str
) -> ModelFacts:
    """Read what a server reports about a model, in its list and on its other routes.

    Args:
        upstream: The server.
        dialect: Its dialect.
        listed: Its list of models, decoded.
        model: The model's name there.

    Returns:
        The facts; a route that does not answer has none.
    """
    documents = [listed]
    for route in dialect.details:
        method, _, path = route.rpartition(" ")
        name = (orjson.dumps({"model": model}),) if method else ()
        with contextlib.suppress(EngineBusy):
            url = upstream.root + path
            reply = await upstream.send(method or "GET", url, *name, seconds=_LOOK_SECONDS)
            if not no_answer(reply):
                documents.append(read_json(reply))
    return facts(documents, model)


def no_images(model: str, dialect: Dialect) -> str:
    """Say that a model takes no images, and what to do."""
    what = (
        "Start llama-server with --mmproj and the model's projector."
        if dialect is DIALECTS["llama.cpp"]
        else "Serve a vision model, and give its name as --model."
    )
    return f"{dialect.title} reports that the model {model!r} takes no images. {what}"
