"""Single requests to a model server: its models, its dialect, what it reports about a model."""

from __future__ import annotations

import contextlib

import orjson

from phospho_multimodal.server.engines import EngineBusy
from phospho_multimodal.server.engines.dialects import DIALECTS, Dialect, of_models
from phospho_multimodal.server.engines.model_facts import ModelFacts, facts
from phospho_multimodal.server.engines.upstream import HttpResponse, Upstream, no_answer, read_json

__all__ = ["NO_ROUTE", "get_models", "has_chat", "no_images", "read_facts", "recognize"]

NO_ROUTE = frozenset({404, 405})
"""The statuses of a server that does not have the route."""

_SECONDS = 3.0


async def get_models(upstream: Upstream, *, seconds: float = _SECONDS) -> HttpResponse:
    """Get the list of models.

    Returns:
        The response, whatever its status.

    Raises:
        EngineBusy: There is no response.
    """
    return await upstream.send("GET", f"{upstream.base}/models", seconds=seconds)


async def recognize(upstream: Upstream, listed: object) -> str:
    """Find the name of a server's dialect by its decoded list of models."""
    if name := of_models(listed):
        return name
    # Ollama's models of other namespaces have another owner.
    reply = await upstream.send("GET", f"{upstream.root}/api/version", seconds=_SECONDS)
    version = read_json(reply)
    ollama = not no_answer(reply) and isinstance(version, dict) and "version" in version
    return "ollama" if ollama else "generic"


async def has_chat(upstream: Upstream) -> bool:
    """Check whether there is a chat route, which rejects an empty request and bills nothing."""
    reply = await upstream.post("/chat/completions", b"{}", seconds=_SECONDS)
    return reply.status_code not in NO_ROUTE


async def read_facts(
    upstream: Upstream, dialect: Dialect, listed: object, model: str
) -> ModelFacts:
    """Read what a server reports about a model, in its decoded list and on its other routes."""
    documents = [listed]
    for route in dialect.details:
        method, _, path = route.rpartition(" ")
        name = (orjson.dumps({"model": model}),) if method else ()
        with contextlib.suppress(EngineBusy):
            url = upstream.root + path
            reply = await upstream.send(method or "GET", url, *name, seconds=_SECONDS)
            if not no_answer(reply):
                documents.append(read_json(reply))
    return facts(documents, model)


def no_images(model: str, dialect: Dialect) -> str:
    """Format the message that a model takes no images, with what to do."""
    what = (
        "Start llama-server with --mmproj and the model's projector."
        if dialect is DIALECTS["llama.cpp"]
        else "Serve a vision model, and give its name as --model."
    )
    return f"{dialect.title} reports that the model {model!r} takes no images. {what}"
