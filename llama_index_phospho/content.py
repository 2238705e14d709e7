"""Messages, blocks and nodes of LlamaIndex as turns of the core.

Fields are read, and no helper of the framework is called: `resolve_image`, `inline_url` and their
like open URLs and files without a limit. A path is taken from a field that is one, never from
`metadata`. A mapping, where one gets in, is read by the core's own table.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
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
    Turn,
    count_older_turns,
    omitted_part,
)

__all__ = ["has_image", "is_image_block", "message_turns", "prompt_turns", "stored_base64"]

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

_PASSED_OVER = (CachePoint, ThinkingBlock, ToolCallBlock)

_HEAD = 64  # characters of base64: enough to tell a string from an image
# Base64 or a URL where the bytes of an image should be. No format that is supported begins with
# 48 such characters: its header holds zeros, or bytes beyond ASCII.
_STRING = re.compile(rb"(?:data:|https?://|[A-Za-z0-9+/=_\s-]*\Z)", re.IGNORECASE)


def message_turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Turn messages into turns.

    Args:
        messages: Oldest first.

    Returns:
        A turn for each; no image was opened. In turns before the newest user turn, a mark replaces
        what cannot be sent.

    Raises:
        UnsupportedContentError: The newest turn holds what this endpoint cannot be sent.
        ImageError: A block for an image in the newest turn holds none.
    """
    called: dict[str | None, str] = {
        block.tool_call_id: block.tool_name
        for message in messages
        for block in message.blocks
        if isinstance(block, ToolCallBlock) and block.tool_call_id
    }
    older = count_older_turns(_ROLES[message.role] for message in messages)
    return [
        _turn(message, called, is_older=index < older) for index, message in enumerate(messages)
    ]


def has_image(messages: Sequence[ChatMessage]) -> bool:
    """Tell whether there is an image in some messages; none is opened.

    Args:
        messages: Oldest first.

    Returns:
        Whether a block is an image, or what should be one.
    """
    return any(_holds_image(block) for message in messages for block in message.blocks)


def is_image_block(block: object) -> bool:
    """Tell whether a block is an image."""
    if isinstance(block, DocumentBlock):
        return (block.document_mimetype or "").startswith("image/")
    return isinstance(block, ImageBlock)


def prompt_turns(prompt: str, formatted: object, image_documents: object) -> list[Turn]:
    """Turn the arguments of a completion into its one turn.

    Args:
        prompt: The question.
        formatted: The second argument: a bool for an `LLM`, images for a `MultiModalLLM`.
        image_documents: Images, or one image: blocks, nodes, documents, or whatever else the core
            takes as an image.

    Returns:
        A user turn.

    Raises:
        ConfigurationError: Images were given twice.
        UnsupportedContentError: A block is no image.
        ImageError: Something is no image, or holds none.
    """
    if not isinstance(formatted, bool):
        if image_documents is not None and formatted is not None:
            message = (
                "Images were given twice: as the second argument and as image_documents=."
                " Nothing was sent. Give them once."
            )
            raise ConfigurationError(message)
        image_documents = formatted if image_documents is None else image_documents
    if image_documents is None:
        documents: Sequence[object] = ()
    elif isinstance(image_documents, (list, tuple)):
        documents = image_documents
    else:
        documents = (image_documents,)
    return [Turn("user", (str(prompt), *(_document(document) for document in documents)))]


def _turn(message: ChatMessage, called: Mapping[str | None, str], *, is_older: bool) -> Turn:
    role = _ROLES[message.role]
    name = message.additional_kwargs.get("name")
    if role == "tool" and not name:  # agents tell the call's id alone
        call = message.additional_kwargs.get("tool_call_id")
        name = called.get(call, call)
    read = _older_parts if is_older else _parts
    parts = (part for block in _blocks(message) for part in read(block))
    return make_turn(role, parts, None if name is None else str(name), is_older=is_older)


def _blocks(message: ChatMessage) -> Iterator[BaseContentBlock]:
    """Give the blocks of a message, and each picture of `additional_kwargs["images"]` once.

    Core appends those pictures to the blocks each time the message is validated: when it is made,
    and again in every event that carries it.
    """
    if not message.additional_kwargs.get("images"):
        yield from message.blocks
        return
    seen: set[bytes] = set()
    for block in message.blocks:
        if isinstance(block, ImageBlock) and isinstance(block.image, bytes):
            if block.image in seen:
                continue
            seen.add(block.image)
        yield block


def _parts(block: BaseContentBlock | Mapping[str, Any]) -> Iterator[Part]:
    """Give the texts and images of a block."""
    if isinstance(block, Mapping):  # put there after validation
        yield from read_content(block)
        return
    if isinstance(block, TextBlock):
        yield block.text
    elif isinstance(block, (ImageBlock, DocumentBlock)):
        yield _image(block)
    elif isinstance(block, BaseRecursiveContentBlock):
        for nested in block.nested_blocks:
            yield from _parts(nested)
    elif not isinstance(block, _PASSED_OVER):
        raise _unsupported(block)


def _holds_image(block: BaseContentBlock | Mapping[str, Any]) -> bool:
    if isinstance(block, Mapping):
        return any(isinstance(part, ImageSource) for part in read_content(block, is_older=True))
    if isinstance(block, BaseRecursiveContentBlock):
        return any(_holds_image(nested) for nested in block.nested_blocks)
    return is_image_block(block)


def _older_parts(block: BaseContentBlock | Mapping[str, Any]) -> Iterator[Part]:
    """Give the texts and images of a block of an older message; nothing in it is an error."""
    if isinstance(block, Mapping):
        yield from read_content(block, is_older=True)
    elif isinstance(block, BaseRecursiveContentBlock):
        for nested in block.nested_blocks:
            yield from _older_parts(nested)
    else:
        try:
            yield from _parts(block)
        except (UnsupportedContentError, ImageError) as error:
            media_type = getattr(block, "document_mimetype", None)
            yield omitted_part(_KINDS.get(type(block), ""), media_type, reason=error)


def _image(block: BaseContentBlock) -> ImageSource:
    if isinstance(block, ImageBlock):
        return _source(block, block.image, block.path, block.url)
    if isinstance(block, DocumentBlock) and (block.document_mimetype or "").startswith("image/"):
        return _source(block, block.data, block.path, block.url)
    raise _unsupported(block)


def _document(document: object) -> ImageSource:
    """Read one of `image_documents`."""
    if isinstance(document, NodeWithScore):
        document = document.node
    if isinstance(document, Mapping):
        parts = tuple(read_content(document))
        if len(parts) == 1 and isinstance(parts[0], ImageSource):
            return parts[0]
        message = "A mapping among the images is no image block. Nothing was sent. Take it out."
        raise UnsupportedContentError(message)
    if isinstance(document, ImageNode):
        return _source(document, document.image, document.image_path, document.image_url)
    if isinstance(document, Node) and document.image_resource is not None:  # an ImageDocument
        resource = document.image_resource
        return _source(document, resource.data, resource.path, resource.url)
    if isinstance(document, BaseNode):
        raise _no_image(document, document.metadata)
    if isinstance(document, BaseContentBlock):
        return _image(document)
    return image_source(document)


def _source(owner: object, data: Any, path: Path | str | None, url: object) -> ImageSource:
    """Choose what an owner's image is read from: what is at hand comes before what is far."""
    if data:
        return stored_base64(data) if isinstance(data, bytes) else image_source(data)
    if path:
        return image_source(Path(path))
    if url:
        # A block's URL is as pydantic's AnyUrl has rewritten it: host, default port, dots in the
        # path, what is not ASCII. The query keeps its signature; `image=` keeps the whole URL.
        return image_source(str(url))
    raise _no_image(owner)


def stored_base64(data: bytes) -> ImageSource:
    """Read bytes out of a block or node, which keeps them as base64.

    What was no base64 when it was handed over is encoded, and so is a `data:` URL, or base64 with
    line breaks: a string where bytes were expected.
    """
    try:
        head = base64.b64decode(data[:_HEAD], validate=True)
    except binascii.Error:  # put there after validation: bytes as they are
        return image_source(data)
    if _STRING.match(head):
        try:
            text = base64.b64decode(data).decode("ascii")
        except ValueError:
            pass  # no string after all: the core says what it is
        else:
            return image_source(text)
    return ImageSource("base64", data.decode("ascii", "replace"))


def _no_image(owner: object, metadata: Mapping[str, Any] | None = None) -> ImageError:
    message = (
        f"The {type(owner).__name__} holds no image: neither data, nor a path, nor a URL."
        " Nothing was sent."
    )
    if str((metadata or {}).get("file_type")).startswith("image/"):
        # What SimpleDirectoryReader makes of a picture: its bytes, read as text.
        message += (
            " It is the text of an image file: install llama-index-readers-file, which reads one"
            " as an image, or hand over an ImageBlock with its path."
        )
    return ImageError(message)


def _unsupported(block: BaseContentBlock) -> UnsupportedContentError:
    form = type(block).__name__
    advice = "Take it out, or put what it says into a TextBlock."
    if isinstance(block, DocumentBlock):
        form += f" ({block.document_mimetype or 'of unknown type'})"
        advice = "Put its text into a TextBlock, or its pages as pictures into ImageBlocks."
    elif isinstance(block, AudioBlock):
        advice = "Put a transcript into a TextBlock."
    elif isinstance(block, VideoBlock):
        advice = "Put single frames into ImageBlocks."
    return UnsupportedContentError(
        f"There is a {form}, and this endpoint takes text and images only. Nothing was sent."
        f" {advice}"
    )
