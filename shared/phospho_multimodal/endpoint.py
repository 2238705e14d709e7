"""What everybody who asks has to know of the endpoint: its model's name and its longest answer."""

from __future__ import annotations

__all__ = ["DEFAULT_MODEL", "MAX_NEW_TOKENS", "MODEL_PREFIX"]

MODEL_PREFIX = "phospho-multimodal"
"""The server accepts any model name that begins like this."""

DEFAULT_MODEL = MODEL_PREFIX

MAX_NEW_TOKENS = 250
"""The longest answer that can be asked for, in tokens."""
