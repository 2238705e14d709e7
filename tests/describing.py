"""A model that says of each picture what is peculiar to it, and nodes to describe."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.schema import ImageNode

from fault_server import Connection, Received, prediction

__all__ = ["WRITES", "describe", "described", "nodes_of", "told"]

WRITES = {
    "image_description",
    "image_description_prompt",
    "image_description_model",
    "image_description_key",
    "image_sha256",
}
"""What a described picture has in its metadata."""


def describe(connection: Connection, request: Received) -> None:
    """Behave like an endpoint that tells pictures apart."""
    connection.reply(200, prediction(described(request.image)), billed=True)


def described(picture: bytes) -> str:
    """What it says of a file."""
    return f"picture {hashlib.sha256(picture).hexdigest()[:12]}"


def nodes_of(paths: Sequence[Path]) -> list[ImageNode]:
    """Nodes without text or other metadata, as like to each other as can be."""
    return [ImageNode(image_path=str(path)) for path in paths]


def told(node: Any) -> dict[str, Any]:
    """What the metadata of a node say about its picture."""
    return {key: value for key, value in node.metadata.items() if key.startswith("image_")}
