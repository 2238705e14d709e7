"""The differences between OpenAI-compatible servers, as tables.

A new server needs one entry in `DIALECTS` and one row in `tests/dialect_cases.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phospho_multimodal.contract import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_REPETITION_PENALTY,
    DEFAULT_TOP_P,
    GenerationParameters,
)
from phospho_multimodal.server.engines.model_facts import models

__all__ = ["DIALECTS", "MOST_AT_ONCE", "Dialect", "generation", "of_models", "without_refused"]

MOST_AT_ONCE = 64
"""The highest number of concurrent requests, unless the user sets one."""

_LOWEST_TOP_P = 0.01  # vLLM rejects 0, which the phospho API allows


@dataclass(frozen=True)
class Dialect:
    """How one server differs from the others.

    Attributes:
        title: The server's name, for people.
        penalty: Its name for `repetition_penalty`; `None` if it has no such parameter.
        owner: The value of `owned_by` in its list of models.
        port: Its default port.
        details: Routes outside `/v1` with facts about its models. A route that begins with `POST `
            gets the model's name.
        load: A route that loads a model, and answers when the model is loaded.
        loads_late: Whether the first request may load the model. Such servers stop loading when
            the client disconnects.
        context: The model's context in tokens, if the server does not report it.
        at_once: Concurrent requests at first. Timeouts and answers change the number.
        learns: Whether answers raise that number.
        defaults: Whether the phospho API's defaults are sent for parameters that are not set.
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
        None,  # its OpenAI route does not read repeat_penalty
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
    """Recognize a dialect by the decoded list of models, or return `None`."""
    owners = {owner for m in models(listed) if isinstance(owner := m.get("owned_by"), str)}
    return next((name for name, d in DIALECTS.items() if d.owner and d.owner in owners), None)


def generation(parameters: GenerationParameters, dialect: Dialect) -> dict[str, Any]:
    """Translate the request's parameters into fields of a chat request.

    An unknown server gets `max_tokens` and the parameters that are set. The others also get the
    phospho API's defaults, except for the temperature.
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

If an error names several fields, the first one in this table is changed. So a model that takes
either `temperature` or `top_p` gets the temperature.
"""


def without_refused(fields: Mapping[str, Any], error: str) -> tuple[str, str | None] | None:
    """Find the field that a 400 rejects, and the field to send instead.

    Returns:
        Both names, or `None` if the error is about something else.
    """
    if not _REFUSED.search(error):
        return None
    named = (n for n in _INSTEAD if n in fields and re.search(rf"(?<!\w){n}(?!\w)", error))
    name = next(named, None)
    return None if name is None else (name, _INSTEAD[name])
