"""Which nodes have an image, and the `ImageNode` that such a node becomes."""

import base64
import mimetypes
import unicodedata
import uuid
from copy import deepcopy
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
)

from llama_index_phospho.content import stored_base64

__all__ = ["READ_AS_TEXT", "as_image_node", "has_image", "is_image_read_as_text"]

READ_AS_TEXT = (
    "ImageError: The reader took the bytes of this image file for a text. Nothing was sent. Install"
    " llama-index-readers-file, and give SimpleDirectoryReader an ImageReader for this type:"
    " file_extractor={'.bmp': ImageReader()}."
)

_IDS = uuid.UUID("6b0a1c0e-58f4-4f0b-9d0f-2a3b1f6f4c55")
"""The namespace of ids that are derived from the ids of documents."""

# What Python's table of file types does not know in every version.
_IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg"),
    *(".jpg", ".png", ".tif", ".tiff", ".webp"),
)
_PART = 2000  # characters that are enough to tell binary data from text


def has_image(node: BaseNode) -> bool:
    """Return whether a node is for an image, even if that image is missing."""
    if isinstance(node, Node):
        return node.image_resource is not None or isinstance(node, ImageDocument)
    return isinstance(node, ImageNode)


def as_image_node(node: BaseNode) -> ImageNode:
    """Make an `ImageNode`, which every store keeps with its image, of a node with an image.

    A document gets a node with another id, which refers to the document as its source, as a
    splitter's nodes do. Core's document stores find the node by that reference when they replace or
    delete the document. The id is a UUID, as some stores demand, and derived from the document's.

    Args:
        node: A node for which `has_image` holds. It is not changed.

    Returns:
        A copy, if it is an `ImageNode` already; else an `ImageNode` with the same content.
    """
    if isinstance(node, ImageNode):
        return node.model_copy(deep=True)
    if not isinstance(node, Node):
        message = f"A {type(node).__name__} has no image."
        raise TypeError(message)
    node_id, relationships = node.node_id, dict(node.relationships)
    if isinstance(node, Document):
        node_id = str(uuid.uuid5(_IDS, node_id))
        relationships.setdefault(NodeRelationship.SOURCE, node.as_related_node_info())
    return ImageNode(
        id_=node_id,
        text=node.get_content(MetadataMode.NONE),
        embedding=node.embedding,
        metadata=deepcopy(node.metadata),
        excluded_embed_metadata_keys=list(node.excluded_embed_metadata_keys),
        excluded_llm_metadata_keys=list(node.excluded_llm_metadata_keys),
        relationships=relationships,
        metadata_template=node.metadata_template,
        metadata_separator=node.metadata_separator,
        text_template=node.text_template,
        **_image_fields(node.image_resource),
    )


def is_image_read_as_text(node: BaseNode) -> bool:
    """Return whether a reader took the bytes of an image file for a text.

    `SimpleDirectoryReader` does so with formats that it has no reader for, and with all of them
    where llama-index-readers-file is not installed. A text that OCR read in an image has no control
    characters, so it is not reported.
    """
    kind = node.metadata.get("file_type")
    name = str(node.metadata.get("file_path") or node.metadata.get("file_name") or "").lower()
    kind = kind or mimetypes.guess_type(name)[0]
    if not (str(kind).startswith("image/") or name.endswith(_IMAGE_SUFFIXES)):
        return False
    text = node.get_content(MetadataMode.NONE)[:_PART]
    return any(unicodedata.category(sign) == "Cc" and not sign.isspace() for sign in text)


def _image_fields(resource: MediaResource | None) -> dict[str, Any]:
    if resource is None:
        return {}
    image = None
    if resource.data:
        source = stored_base64(resource.data)
        image = source.value
        if source.form != "base64":  # an ImageNode's own methods read plain base64 only
            content = source.read()
            image = base64.b64encode(content).decode() if isinstance(content, bytes) else None
    return {
        "image": image,
        "image_path": None if resource.path is None else str(resource.path),
        "image_url": None if resource.url is None else str(resource.url),
        "image_mimetype": resource.mimetype,
    }
