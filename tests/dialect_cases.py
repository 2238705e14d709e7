"""What each kind of model server reports about itself: one row for each dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CASES", "CONTEXT", "DialectCase"]

CONTEXT = 8192
"""The context that every server of the table reports, in tokens."""

MODEL = "a-model"


@dataclass(frozen=True)
class DialectCase:
    """How a server of one dialect looks from outside.

    Attributes:
        owner: `owned_by` in its list of models.
        penalty: Its name for `repetition_penalty`.
        entry: What else its list has for a model.
        vision: Routes that report that the model takes images, with their bodies.
        text_only: The same routes for a model that takes none; empty if it does not report that.
        reports_context: Whether it reports the context.
    """

    owner: str
    penalty: str | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    text_only: Mapping[str, Any] = field(default_factory=dict)
    reports_context: bool = True


def _props(*, vision: bool) -> dict[str, Any]:
    settings = {"n_ctx": CONTEXT, "params": {}}
    modalities = {"vision": vision, "audio": False}
    return {"default_generation_settings": settings, "total_slots": 3, "modalities": modalities}


def _lm_studio(kind: str) -> dict[str, Any]:
    entry = {"id": MODEL, "type": kind, "state": "loaded", "max_context_length": 131072}
    return {"data": [{**entry, "loaded_context_length": CONTEXT}]}


_LOADED = {"models": [{"name": f"{MODEL}:latest", "model": MODEL, "context_length": CONTEXT}]}

CASES = {
    "vllm": DialectCase("vllm", "repetition_penalty", {"max_model_len": CONTEXT}),
    "sglang": DialectCase(
        "sglang",
        "repetition_penalty",
        {"max_model_len": CONTEXT},
        {"/model_info": {"model_path": MODEL, "has_image_understanding": True}},
        {"/model_info": {"model_path": MODEL, "has_image_understanding": False}},
    ),
    "llama.cpp": DialectCase(
        "llamacpp",
        "repeat_penalty",
        {"meta": {"n_ctx_train": 131072}},
        {"/props": _props(vision=True)},
        {"/props": _props(vision=False)},
    ),
    "lmstudio": DialectCase(
        "organization_owner",
        "repeat_penalty",
        {},
        {"/api/v0/models": _lm_studio("vlm")},
        {"/api/v0/models": _lm_studio("llm")},
    ),
    "ollama": DialectCase(
        "library",
        None,
        {},
        {
            "/api/version": {"version": "0.12.3"},
            "/api/show": {"capabilities": ["completion", "vision"], "model_info": {}},
            "/api/ps": _LOADED,
            "/api/generate": {"done": True, "done_reason": "load"},
        },
        {"/api/show": {"capabilities": ["completion", "tools"]}, "/api/ps": _LOADED},
    ),
    "generic": DialectCase("somebody", reports_context=False),
}
"""Name of a dialect → how its servers look."""
