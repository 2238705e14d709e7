"""The differences between the servers that call themselves OpenAI-compatible, as tables.

A new server needs one entry in `DIALECTS` and one row in `tests/dialect_cases.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phospho_multimodal.contract import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_REPETITION_PENALTY,
    DEFAULT_TOP_P,
)
from phospho_multimodal.server.engines.model_facts import models

if TYPE_CHECKING:
    from phospho_multimodal.contract import GenerationParameters

__all__ = ["DIALECTS", "MOST_AT_ONCE", "Dialect", "generation", "of_models", "without_refused"]

MOST_AT_ONCE = 64
"""Concurrent requests that any server gets at most, unless the user says."""

_LOWEST_TOP_P = 0.01  # vLLM rejects the contract's 0, which means the likeliest token only


@dataclass(frozen=True)
class Dialect:
    """How one server differs from the others.

    Attributes:
        title: Its name, for people.
        penalty: Its name for the contract's `repetition_penalty`; `None` if it has none.
        owner: What its list of models has in `owned_by`.
        port: Where it listens unless it is configured otherwise.
        details: Routes beside `/v1` with facts about its models. A route with a `POST ` in front
            gets the model's name.
        load: A route that loads a model and answers when it is loaded.
        loads_late: Whether a model may be loaded with the first request only. Some servers stop to
            load it when the client that asked for it disconnects.
        context: Tokens that a model has room for where the server does not report it.
        at_once: Concurrent requests it gets at first; later timeouts and answers change this.
        learns: Whether more requests are sent after successful answers.
        defaults: Whether the contract's defaults are sent where a request sets no parameter.
    """

    title: str
    penalty: str | None = None
    owner: str | None = None
    port: int | None = None
    details: tuple[str, ...] = ()
    load: str | None = None
    loads_late: bool = True
    context: int | None = None
    at_once: int = 8
    learns: bool = True
    defaults: bool = True


DIALECTS = {
    "vllm": Dialect(
        "vLLM", "repetition_penalty", "vllm", port=8000, loads_late=False, at_once=MOST_AT_ONCE
    ),
    "sglang": Dialect(
        "SGLang",
        "repetition_penalty",
        "sglang",
        port=30000,
        details=("/model_info", "/get_model_info"),
        loads_late=False,
        at_once=MOST_AT_ONCE,
    ),
    "llama.cpp": Dialect(
        "llama.cpp", "repeat_penalty", "llamacpp", port=8080, details=("/props",), at_once=1
    ),
    "lmstudio": Dialect(
        "LM Studio",
        "repeat_penalty",
        "organization_owner",
        port=1234,
        details=("/api/v0/models",),
        context=4096,
        at_once=4,
    ),
    "ollama": Dialect(
        "Ollama",
        None,  # its own API has a repeat_penalty; its OpenAI route does not read it
        "library",
        port=11434,
        details=("POST /api/show", "/api/ps"),
        load="/api/generate",
        context=4096,
        at_once=1,  # OLLAMA_NUM_PARALLEL, which it does not report
        learns=False,
    ),
    "generic": Dialect("an OpenAI-compatible server", defaults=False),
}
"""Name of a dialect → how that server differs."""


def of_models(listed: object) -> str | None:
    """Recognize a server by its list of models.

    Args:
        listed: The body of `GET /v1/models`, decoded.

    Returns:
        The dialect's name, or `None` if the list does not show it.
    """
    owners = {owner for m in models(listed) if isinstance(owner := m.get("owned_by"), str)}
    return next((name for name, d in DIALECTS.items() if d.owner and d.owner in owners), None)


def generation(parameters: GenerationParameters, dialect: Dialect) -> dict[str, Any]:
    """Translate the contract's parameters.

    Args:
        parameters: The request's.
        dialect: The server that gets them.

    Returns:
        Fields of a chat request. A server that is not known gets `max_tokens` and the parameters
        that the request sets. The others also get the contract's defaults, except a temperature.
    """
    fields: dict[str, Any] = {"max_tokens": parameters.max_new_tokens or DEFAULT_MAX_NEW_TOKENS}
    if parameters.top_p is not None:
        fields["top_p"] = max(parameters.top_p, _LOWEST_TOP_P)
    elif dialect.defaults:
        fields["top_p"] = DEFAULT_TOP_P
    if parameters.temperature is not None:
        fields["temperature"] = parameters.temperature
    if dialect.penalty is not None:
        fields[dialect.penalty] = parameters.repetition_penalty or DEFAULT_REPETITION_PENALTY
    return fields


# ---- parameters that a model rejects

_REFUSED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed"
    r"|deprecated|cannot both|both be|both specified|only one of|mutually exclusive|use 'max_",
    re.IGNORECASE,
)

_INSTEAD: dict[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "top_p": None,
    "repetition_penalty": None,
    "repeat_penalty": None,
    "temperature": None,
}
"""Field that a model may reject → the field to send instead; `None` leaves it out.

Of several fields that an error names, the first one here is meant: models that take either
`temperature` or `top_p` keep the temperature.
"""


def without_refused(fields: Mapping[str, Any], error: str) -> tuple[str, str | None] | None:
    """Find out which field of a chat request a server rejects.

    Args:
        fields: The request's fields.
        error: What the server's 400 says.

    Returns:
        The field, and the field to send instead of it; `None` if the error is about something else.
    """
    if not _REFUSED.search(error):
        return None
    named = (n for n in _INSTEAD if n in fields and re.search(rf"(?<!\w){n}(?!\w)", error))
    name = next(named, None)
    return None if name is None else (name, _INSTEAD[name])
