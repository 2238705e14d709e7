"""What a model server reports about a model: whether it takes images, its context, its slots.

Each server reports this in other places. Every response is searched in all of these places, so a
server behind a proxy or with a new name is understood too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ModelFacts", "facts", "has_name", "image_side", "model_name", "models"]

_NAMES = ("id", "name", "model", "key", "model_name")

_CONTEXT = (
    "loaded_context_length",  # LM Studio
    "max_model_len",  # vLLM, SGLang
    "n_ctx",  # llama.cpp
    "context_length",  # OpenRouter, and Ollama's list of loaded models
    "context_window",
    "max_input_tokens",  # litellm
)
_VISION = frozenset({"vision", "multimodal", "image"})
_LM_STUDIO_TYPES = {"vlm": True, "llm": False, "embeddings": False}

_ANSWER_TOKENS = 250  # of the longest answer
_PROMPT_TOKENS = 512  # for the prompt and the chat template
_TOKEN_SIDE = 28  # pixels; Qwen2.5-VL turns 28 × 28 pixels into a token, most models need fewer
_LONGEST_SIDE = 4096  # pixels; no model uses more, and some servers reject more
_SHORTEST_SIDE = 336  # pixels; less is not readable
_USUAL_SIDE = 2048  # pixels, if the context is not known


@dataclass(frozen=True)
class ModelFacts:
    """What a server reports about a model; `None` is not reported.

    Attributes:
        takes_images: Whether the model takes images.
        context: The context in tokens.
        at_once: Concurrent requests of the server.
    """

    takes_images: bool | None = None
    context: int | None = None
    at_once: int | None = None


def models(listed: object) -> list[Mapping[str, Any]]:
    """Read the entries of `data` and of `models` from a list of models, which may be anything."""
    if not isinstance(listed, Mapping):
        return []
    lists = (listed.get("data"), listed.get("models"))
    return [e for each in lists if isinstance(each, list) for e in each if isinstance(e, Mapping)]


def model_name(entry: Mapping[str, Any]) -> str | None:
    """Give the name of a model in a list."""
    return next((entry[key] for key in _NAMES if isinstance(entry.get(key), str)), None)


def has_name(entry: Mapping[str, Any], model: str) -> bool:
    """Check an entry's name; Ollama lists `llava:latest` for `llava`."""
    return any(entry.get(key) in (model, f"{model}:latest") for key in _NAMES)


def facts(documents: Iterable[object], model: str) -> ModelFacts:
    """Read the facts about a model from decoded responses; the last of two values counts."""
    images: bool | None = None
    context: int | None = None
    slots: int | None = None
    for place in _places(documents, model):
        said = _takes_images(place)
        images = images if said is None else said
        context = next(filter(None, (_count(place.get(key)) for key in _CONTEXT)), context)
        slots = _count(place.get("total_slots")) or slots
    return ModelFacts(images, context, slots)


def image_side(context: int | None) -> int:
    """Choose the longest side in pixels with which image, prompt and answer fit into a context."""
    if context is None:
        return _USUAL_SIDE
    tokens = context - _ANSWER_TOKENS - _PROMPT_TOKENS
    side = _TOKEN_SIDE * math.isqrt(max(tokens, 0))
    return min(max(side, _SHORTEST_SIDE), _LONGEST_SIDE)


def _places(documents: Iterable[object], model: str) -> Iterator[Mapping[str, Any]]:
    """Iterate over all objects that may contain a fact about a model."""
    for document in documents:
        if not isinstance(document, Mapping):
            continue
        entries = models(document)
        found = [entry for entry in entries if has_name(entry, model)] if entries else [document]
        for entry in found:
            yield entry
            inner = ("meta", "model_info", "default_generation_settings")
            yield from (i for name in inner if isinstance(i := entry.get(name), Mapping))


def _takes_images(place: Mapping[str, Any]) -> bool | None:
    architecture = place.get("architecture")
    described = architecture if isinstance(architecture, Mapping) else place
    modalities = described.get("input_modalities")
    if isinstance(modalities, list) and modalities:
        return "image" in modalities
    for key in ("capabilities", "modalities"):
        able = place.get(key)
        if isinstance(able, Mapping) and isinstance(able.get("vision"), bool):
            return bool(able["vision"])
        if isinstance(able, list):
            if _VISION.intersection(a for a in able if isinstance(a, str)):
                return True
            if "completion" in able:  # llama.cpp and Ollama list every capability
                return False
    for key in ("has_image_understanding", "supports_vision"):
        if isinstance(place.get(key), bool):
            return bool(place[key])
    kind = place.get("type")
    return _LM_STUDIO_TYPES.get(kind) if isinstance(kind, str) else None


def _count(value: object) -> int | None:
    known = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if known and isinstance(value, int) else None
