"""Nodes with an image: find them, copy them as `ImageNode`, write descriptions into them."""

import base64
import mimetypes
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
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
from llama_index_phospho.description_cache import Description

__all__ = [
    "DESCRIPTION_KEY",
    "READ_AS_TEXT",
    "DescriptionMetadata",
    "as_image_node",
    "has_image",
    "hide",
    "is_image_read_as_text",
]

DESCRIPTION_KEY = "image_description"

READ_AS_TEXT = (
    "ImageError: The reader read the bytes of this image file as text. Nothing was sent. Install"
    " llama-index-readers-file, and pass SimpleDirectoryReader an ImageReader for this type:"
    " file_extractor={'.bmp': ImageReader()}."
)

_IDS = uuid.UUID("6b0a1c0e-58f4-4f0b-9d0f-2a3b1f6f4c55")
"""The namespace of ids that are derived from the ids of documents."""

# Python's table of file types lacks some of these in some versions.
_IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg"),
    *(".jpg", ".png", ".tif", ".tiff", ".webp"),
)
_SAMPLE = 2000  # characters, which show whether a text is binary data


def has_image(node: BaseNode) -> bool:
    """Check whether a node is made for an image, even if the image is missing."""
    if isinstance(node, Node):
        return node.image_resource is not None or isinstance(node, ImageDocument)
    return isinstance(node, ImageNode)


def as_image_node(node: BaseNode) -> ImageNode:
    """Copy a node with an image as an `ImageNode`, because every store keeps that with its image.

    A document becomes a node with another id and the document as its source, as in a splitter.
    Document stores need that reference to replace or delete the node. The id is a UUID, which some
    stores require, and is derived from the id of the document.
    """
    if isinstance(node, ImageNode):
        return node.model_copy(deep=True)
    if not isinstance(node, Node):
        message = f"A {type(node).__name__} cannot have an image."
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
    """Check whether a reader read the bytes of an image file as text.

    `SimpleDirectoryReader` does so with formats for which it has no reader, which are all formats
    if llama-index-readers-file is not installed. Real text, from OCR for example, has no control
    characters.
    """
    kind = node.metadata.get("file_type")
    name = str(node.metadata.get("file_path") or node.metadata.get("file_name") or "").lower()
    kind = kind or mimetypes.guess_type(name)[0]
    if not (str(kind).startswith("image/") or name.endswith(_IMAGE_SUFFIXES)):
        return False
    text = node.get_content(MetadataMode.NONE)[:_SAMPLE]
    return any(unicodedata.category(sign) == "Cc" and not sign.isspace() for sign in text)


def _image_fields(resource: MediaResource | None) -> dict[str, Any]:
    if resource is None:
        return {}
    image = None
    if resource.data:
        source = stored_base64(resource.data)
        image = source.value
        if source.form != "base64":  # the methods of an ImageNode read only plain base64
            content = source.read()
            image = base64.b64encode(content).decode() if isinstance(content, bytes) else None
    return {
        "image": image,
        "image_path": None if resource.path is None else str(resource.path),
        "image_url": None if resource.url is None else str(resource.url),
        "image_mimetype": resource.mimetype,
    }


@dataclass(frozen=True, slots=True)
class DescriptionMetadata:
    """The metadata keys of an extractor; they begin with the key of the description."""

    description: str

    @property
    def error(self) -> str:
        """The key of the error."""
        return f"{self.description}_error"

    @property
    def key(self) -> str:
        """The key of the digest that identifies the description."""
        return f"{self.description}_key"

    @property
    def sha256(self) -> str:
        """The key of the digest of the image that was sent."""
        is_default = self.description == DESCRIPTION_KEY
        return "image_sha256" if is_default else f"{self.description}_sha256"

    @property
    def hidden(self) -> tuple[str, ...]:
        """The keys that embeddings and prompts do not see."""
        names = (f"{self.description}_prompt", f"{self.description}_model")
        return (*names, self.sha256, self.key, self.error)

    def of(self, description: Description, *, prompt: str, key: str) -> dict[str, Any]:
        """Make the metadata of a description."""
        values = {
            self.description: description.text,
            f"{self.description}_prompt": prompt,
            f"{self.description}_model": description.model,
            self.sha256: description.image_sha256,
            self.key: key,
        }
        return {name: value for name, value in values.items() if value is not None}

    def write(self, node: BaseNode, new: Mapping[str, Any], *, into_text: bool) -> None:
        """Write new metadata into a node, and remove the metadata of an earlier run."""
        earlier = node.metadata.get(self.description)
        if new:
            for name in (self.description, *self.hidden):
                node.metadata.pop(name, None)
        node.metadata.update(new)
        if into_text:
            _write_text(node, node.metadata.get(self.description), earlier)
            hide(node, [self.description])  # prompts already have it in the text
        hide(node, self.hidden)


def hide(node: BaseNode, names: Sequence[str]) -> None:
    """Exclude metadata from embeddings and prompts."""
    for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
        keys.extend(name for name in names if name in node.metadata and name not in keys)


def _write_text(node: BaseNode, description: str | None, earlier: str | None) -> None:
    """Append a description to the text of a node, and remove an earlier description."""
    before = text = node.get_content(MetadataMode.NONE)
    if earlier and earlier != description:
        text = text.replace(earlier, "", 1).strip()
    if description is not None and description not in text:
        text = f"{text}\n\n{description}" if text else description
    if text != before:
        node.set_content(text)
