"""What every caller needs to know of the endpoint: model name, longest answer, size of images."""

from __future__ import annotations

__all__ = [
    "CONTEXT_WINDOW",
    "DEFAULT_IMAGE_SIDE",
    "DEFAULT_MAX_TILES",
    "DEFAULT_MODEL",
    "MAX_NEW_TOKENS",
    "MODEL_PREFIX",
]

MODEL_PREFIX = "phospho-multimodal"
"""The server accepts any model name that begins like this."""

DEFAULT_MODEL = MODEL_PREFIX

MAX_NEW_TOKENS = 250
"""The longest answer that can be asked for, in tokens."""

DEFAULT_IMAGE_SIDE = 1536
"""Longest side of what is sent, in pixels."""

DEFAULT_MAX_TILES = 8
"""The most tiles of one image, each of which is one billed request."""

CONTEXT_WINDOW = 4096
"""Tokens of a request, as frameworks reckon. The vendor does not document the model's own limit,
and this is a cautious value."""
