"""What everybody who asks has to know of the endpoint: its model's name and its longest answer."""

from __future__ import annotations

__all__ = ["CONTEXT_WINDOW", "DEFAULT_MODEL", "MAX_NEW_TOKENS", "MODEL_PREFIX"]

MODEL_PREFIX = "phospho-multimodal"
"""The server accepts any model name that begins like this."""

DEFAULT_MODEL = MODEL_PREFIX

MAX_NEW_TOKENS = 250
"""The longest answer that can be asked for, in tokens."""

CONTEXT_WINDOW = 4096
"""Tokens of a request, as frameworks reckon. The vendor does not document the model's own limit,
and this is a cautious value."""
