"""Read LlamaIndex messages, blocks and nodes as turns of the core.

This module reads fields. It calls no helper of the framework, because `resolve_image`, `inline_url`
and others open URLs and files without a limit. A path comes only from a field that holds a path,
never from `metadata`. The core's own table reads mappings.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    BaseContentBlock,
    BaseRecursiveContentBlock,
    CachePoint,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.schema import BaseNode, ImageNode, Node, NodeWithScore

from phospho_multimodal import ConfigurationError, ImageError, UnsupportedContentError
from phospho_multimodal.images.source import ImageSource, image_source
from phospho_multimodal.messages.content_blocks import make_turn, read_content
from phospho_multimodal.messages.conversation import (
    Part,
    Role,
    ToolCall,
    Turn,
    count_older_turns,
    omitted_part,
)

__all__ = [
    "has_image",
    "is_image_block",
    "message_turns",
    "prompt_turns",
    "single_image",
    "stored_base64",
    "tool_calls",
]

_ROLES: dict[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_KINDS = {ImageBlock: "image", DocumentBlock: "file", AudioBlock: "audio", VideoBlock: "video"}
_IGNORED = (CachePoint, ThinkingBlock, ToolCallBlock)
_ADVICE: dict[type, str] = {
    DocumentBlock: "Put its text into a TextBlock, or its pages as images into ImageBlocks.",
    AudioBlock: "Put a transcript into a TextBlock.",
    VideoBlock: "Put single frames into ImageBlocks.",
}

_HEAD = 64  # characters of base64: enough to tell a string from an image
# Base64 or a URL where the bytes of an image should be. No supported image format begins with 48
# such characters, because each has zeros or bytes beyond ASCII in its header.
_STRING = re.compile(rb"(?:data:|https?://|[A-Za-z0-9+/=_\s-]*\Z)", re.IGNORECASE)

_Block = BaseContentBlock | Mapping[str, Any]
"""A block; a mapping that was put into a message after validation."""


def message_turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Turn messages, oldest first, into turns with their tool calls. This opens no image.

    In turns before the newest user turn, a mark replaces what cannot be sent.
    """
    called: dict[str | None, str] = {
        call.id: call.name for message in messages for call in tool_calls(message) if call.id
    }
    older = count_older_turns(_ROLES[message.role] for message in messages)
    return [
        _turn(message, called, is_older=index < older) for index, message in enumerate(messages)
    ]


def tool_calls(message: ChatMessage) -> tuple[ToolCall, ...]:
    """Read the tool calls of a message."""
    return tuple(
        ToolCall(
            block.tool_name,
            block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {},
            block.tool_call_id,
        )
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    )


def has_image(messages: Sequence[ChatMessage]) -> bool:
    """Check whether a block of the messages is an image, even if its image is missing."""
    return any(_holds_image(block) for message in messages for block in message.blocks)


def is_image_block(block: object) -> bool:
    """Check whether a block is an image."""
    if isinstance(block, DocumentBlock):
        return (block.document_mimetype or "").startswith("image/")
    return isinstance(block, ImageBlock)


def prompt_turns(prompt: str, formatted: object, image_documents: object) -> list[Turn]:
    """Turn the arguments of a completion into its user turn.

    The second argument of an `LLM` is a bool, `formatted`. That of a `MultiModalLLM` is the images.
    """
    if not isinstance(formatted, bool):
        if image_documents is not None and formatted is not None:
            message = (
                "Images were passed twice: as the second argument and as image_documents=."
                " Nothing was sent. Pass them once."
            )
            raise ConfigurationError(message)
        image_documents = formatted if image_documents is None else image_documents
    if image_documents is None:
        documents: Sequence[object] = ()
    elif isinstance(image_documents, (list, tuple)):
        documents = image_documents
    else:
        documents = (image_documents,)
    return [Turn("user", (str(prompt), *map(single_image, documents)))]


def single_image(document: object) -> ImageSource:
    """Read a node, a block, or anything else that the core takes as an image."""
    if isinstance(document, NodeWithScore):
        document = document.node
    if isinstance(document, Mapping):
        parts = tuple(read_content(document))
        if len(parts) == 1 and isinstance(parts[0], ImageSource):
            return parts[0]
        message = "A mapping among the images is not an image block. Nothing was sent. Remove it."
        raise UnsupportedContentError(message)
    if isinstance(document, ImageNode):
        return _source(document, document.image, document.image_path, document.image_url)
    if isinstance(document, Node) and document.image_resource is not None:  # an ImageDocument
        resource = document.image_resource
        return _source(document, resource.data, resource.path, resource.url)
    if isinstance(document, BaseNode):
        raise _no_image(document, document.metadata)
    if isinstance(document, BaseContentBlock):
        return _block_image(document)
    return image_source(document)


def _turn(message: ChatMessage, called: Mapping[str | None, str], *, is_older: bool) -> Turn:
    role = _ROLES[message.role]
    name = message.additional_kwargs.get("name")
    if role == "tool" and not name:  # agents pass only the id of the call
        call = message.additional_kwargs.get("tool_call_id")
        name = called.get(call, call)
    parts = (part for block in _blocks(message) for part in _parts(block, is_older=is_older))
    turn = make_turn(role, parts, None if name is None else str(name), is_older=is_older)
    calls = tool_calls(message)
    return replace(turn, calls=calls) if calls else turn


def _blocks(message: ChatMessage) -> Iterator[_Block]:
    """Yield the blocks of a message, and each image of `additional_kwargs["images"]` once.

    Core appends these images to the blocks each time it validates the message: when the message is
    created, and again in every event that carries it.
    """
    seen: set[bytes] = set()
    repeats = bool(message.additional_kwargs.get("images"))
    for block in message.blocks:
        if repeats and isinstance(block, ImageBlock) and isinstance(block.image, bytes):
            if block.image in seen:
                continue
            seen.add(block.image)
        yield block


def _parts(block: _Block, *, is_older: bool) -> Iterator[Part]:
    """Yield the texts and images of a block; in an older turn, a mark in place of an error."""
    if isinstance(block, Mapping):
        yield from read_content(block, is_older=is_older)
    elif isinstance(block, BaseRecursiveContentBlock):
        for nested in block.nested_blocks:
            yield from _parts(nested, is_older=is_older)
    elif isinstance(block, TextBlock):
        yield block.text
    elif not isinstance(block, _IGNORED):
        try:
            yield _block_image(block)
        except (UnsupportedContentError, ImageError) as error:
            if not is_older:
                raise
            media_type = getattr(block, "document_mimetype", None)
            yield omitted_part(_KINDS.get(type(block), ""), media_type, reason=error)


def _holds_image(block: _Block) -> bool:
    if isinstance(block, Mapping):
        return any(isinstance(part, ImageSource) for part in read_content(block, is_older=True))
    if isinstance(block, BaseRecursiveContentBlock):
        return any(_holds_image(nested) for nested in block.nested_blocks)
    return is_image_block(block)


def _block_image(block: BaseContentBlock) -> ImageSource:
    if isinstance(block, ImageBlock):
        return _source(block, block.image, block.path, block.url)
    if isinstance(block, DocumentBlock) and is_image_block(block):
        return _source(block, block.data, block.path, block.url)
    raise _unsupported(block)


def _source(owner: object, data: Any, path: Path | str | None, url: object) -> ImageSource:
    """Choose what to read the image of a block or node from: data, else the path, else the URL."""
    if data:
        return stored_base64(data) if isinstance(data, bytes) else image_source(data)
    if path:
        return image_source(Path(path))
    if url:
        # Pydantic's AnyUrl has rewritten the host, the default port, dots in the path, and what is
        # not ASCII. The query keeps its signature; `image=` keeps the whole URL.
        return image_source(str(url))
    raise _no_image(owner)


def stored_base64(data: bytes) -> ImageSource:
    """Read the bytes of a block or node, which stores them as base64.

    It encodes everything that was not base64, also a `data:` URL, or base64 with line breaks.
    """
    try:
        head = base64.b64decode(data[:_HEAD], validate=True)
    except binascii.Error:  # set after validation: the bytes themselves
        return image_source(data)
    if _STRING.match(head):
        try:
            text = base64.b64decode(data).decode("ascii")
        except ValueError:
            pass  # not a string: the core says what it is
        else:
            return image_source(text)
    return ImageSource("base64", data.decode("ascii", "replace"))


def _no_image(owner: object, metadata: Mapping[str, Any] | None = None) -> ImageError:
    message = (
        f"The {type(owner).__name__} holds no image: its data, path and URL are empty."
        " Nothing was sent."
    )
    if str((metadata or {}).get("file_type")).startswith("image/"):
        # SimpleDirectoryReader without a reader for images: it reads their bytes as text.
        message += (
            " It is the text of an image file: install llama-index-readers-file, which reads image"
            " files as images, or pass an ImageBlock with the path."
        )
    return ImageError(message)


def _unsupported(block: BaseContentBlock) -> UnsupportedContentError:
    form = type(block).__name__
    if isinstance(block, DocumentBlock):
        form += f" ({block.document_mimetype or 'of unknown type'})"
    advice = _ADVICE.get(type(block), "Remove it, or put its content into a TextBlock.")
    return UnsupportedContentError(
        f"The message has a {form}, and this endpoint accepts only text and images."
        f" Nothing was sent. {advice}"
    )
