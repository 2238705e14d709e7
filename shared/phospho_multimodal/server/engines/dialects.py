"""What tells the servers apart that all call themselves OpenAI-compatible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phospho_multimodal.wire import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_REPETITION_PENALTY,
    DEFAULT_TOP_P,
)

if TYPE_CHECKING:
    from phospho_multimodal.wire import GenerationParameters

__all__ = ["DIALECTS", "Dialect", "generation", "of_models"]

_LOWEST_TOP_P = 0.01  # vLLM refuses the contract's 0, which means the likeliest token alone


@dataclass(frozen=True)
class Dialect:
    """How one server is spoken to.

    Attributes:
        title: Its name, for people.
        penalty: What it calls the contract's `repetition_penalty`; `None` if it has no such thing.
        owner: What its list of models says in `owned_by`.
    """

    title: str
    penalty: str | None = None
    owner: str | None = None


DIALECTS = {
    "vllm": Dialect("vLLM", "repetition_penalty", "vllm"),
    "sglang": Dialect("SGLang", "repetition_penalty", "sglang"),
    "llama.cpp": Dialect("llama.cpp", "repeat_penalty", "llamacpp"),
    "lmstudio": Dialect("LM Studio", "repeat_penalty", "organization_owner"),
    # Its own API has a repeat_penalty; its OpenAI route does not read it.
    "ollama": Dialect("Ollama", None, "library"),
    "generic": Dialect("an OpenAI-compatible server"),
}
"""Name of a dialect → what it is."""


def of_models(listed: object) -> str | None:
    """Recognise a server by its list of models.

    Args:
        listed: The body of `GET /v1/models`, decoded.

    Returns:
        The dialect's name, if the list tells.
    """
    owners = {model.get("owned_by") for model in models(listed)}
    return next((name for name, d in DIALECTS.items() if d.owner and d.owner in owners), None)


def models(listed: object) -> list[Mapping[str, Any]]:
    """Take the entries out of a list of models, whatever else came."""
    entries = listed.get("data") if isinstance(listed, Mapping) else None
    return [e for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []


def generation(parameters: GenerationParameters, dialect: Dialect) -> dict[str, Any]:
    """Translate the contract's parameters, with the contract's defaults for those not set.

    Args:
        parameters: Of the question.
        dialect: Whom it is for.

    Returns:
        Fields of a chat request. The temperature is the upstream's own unless it was set.
    """
    top_p = DEFAULT_TOP_P if parameters.top_p is None else max(parameters.top_p, _LOWEST_TOP_P)
    fields: dict[str, Any] = {
        "max_tokens": parameters.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        "top_p": top_p,
    }
    if parameters.temperature is not None:
        fields["temperature"] = parameters.temperature
    if dialect.penalty is not None:
        fields[dialect.penalty] = parameters.repetition_penalty or DEFAULT_REPETITION_PENALTY
    return fields
