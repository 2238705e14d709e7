"""From LangChain messages to the core's turns.

Blocks are read as they stand in a message, by one table of their types: LangChain's own helpers
cost a third of a millisecond each, and leave out forms that are met in practice.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from phospho_multimodal import UnsupportedContentError
from phospho_multimodal.conversation import Part, Role, Turn
from phospho_multimodal.images.source import image_source

__all__ = ["read_block", "read_messages"]

Block: TypeAlias = Mapping[str, Any]

_ROLES: tuple[tuple[type[BaseMessage], Role], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)
_CHAT_ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}

# Where a block of whatever provider keeps an image: its URL, base64 or bytes under one of the first
# keys; under one of the second the same, or a mapping that has it.
_VALUES = ("url", "base64", "data", "bytes", "file_data", "file_url")
_HOLDERS = ("image_url", "source", "image", "file", "inline_data", "inlineData")
_TYPES = ("mime_type", "media_type", "mimeType")
_REFERENCES = ("path", "file_id", "fileId", "file_uri", "fileUri", "s3Location", "id")

_LONGEST_NAME = 40


def read_messages(messages: Sequence[BaseMessage]) -> list[Turn]:
    """Turn messages into turns.

    Args:
        messages: Oldest first.

    Returns:
        A turn for each, in the same order.

    Raises:
        UnsupportedContentError: A message holds something that cannot be sent.
        ImageError: An image's URL cannot be used.
    """
    return [_read_message(message) for message in messages]


def read_block(block: Block) -> Part | None:
    """Read one block of a message, in any provider's form.

    Args:
        block: A content block as it stands in a message.

    Returns:
        Its text or its image; `None` for what a model thought, and for its tool calls.

    Raises:
        UnsupportedContentError: The form is not known, or the endpoint cannot take it.
        ImageError: The image's URL cannot be used.
    """
    return _READERS.get(_kind(block), _refuse)(block)


def _read_message(message: BaseMessage) -> Turn:
    role = _role(message)
    content = message.content
    # No content is no part; text stays one part, whatever stands in it: a URL too.
    parts = _read_content(content) if content else ()
    name = message.name
    if name is None and isinstance(message, ToolMessage):
        name = message.tool_call_id
    return Turn(role, tuple(parts), name)


def _role(message: BaseMessage) -> Role:
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    name = message.role if isinstance(message, ChatMessage) else message.type
    known = _CHAT_ROLES.get(name.lower())
    if known is None:
        roles = ", ".join(_CHAT_ROLES)
        reason = f"A message has the role {_short(name)}, which this model does not know"
        raise _unsupported(reason, f"Use one of: {roles}.")
    return known


def _read_content(content: str | Sequence[str | Block]) -> Iterator[Part]:
    if isinstance(content, str):
        yield content
        return
    for block in content:
        if isinstance(block, str):
            yield block
        elif _kind(block) in _CONTAINERS:
            yield from _read_content(_contents(block))
        else:
            part = read_block(block)
            if part is not None:
                yield part


def _kind(block: Block) -> str:
    """Tell a block's type; some providers write none, and name the block by its only key."""
    kind = block.get("type")
    if isinstance(kind, str):
        return kind
    known = [key for key in block if key in _READERS or key in _CONTAINERS]
    return known[0] if len(known) == 1 else ""  # of two, one would be lost


def _contents(block: Block) -> str | Sequence[str | Block]:
    holder = block.get("toolResult")
    content = (holder if isinstance(holder, Mapping) else block).get("content") or ()
    return [content] if isinstance(content, Mapping) else content


def _read_text(block: Block) -> Part | None:
    text = block.get("text", block.get("refusal"))
    if text is None and block.get("type") in {"text", "output_text"}:
        return None  # a stream leaves such blocks behind, with an index or annotations alone
    if not isinstance(text, str):
        reason = f"A text block of type {_short(_kind(block))} holds no text of its own"
        raise _unsupported(reason, "Put the text itself into it.")
    return text


def _read_json(block: Block) -> Part:
    return json.dumps(block.get("json"), ensure_ascii=False, default=str)


def _read_image(block: Block) -> Part:
    image = _find_image(block)
    if image is None:
        raise _without_image(block)
    return image_source(image)


def _read_file(block: Block) -> Part:
    """Read a block that can be any file: it is an image if it says so."""
    declared = _declared_type(block)
    if declared.startswith("image/"):
        return _read_image(block)
    source = block.get("source")
    if isinstance(source, Mapping) and source.get("type") == "text":
        return str(source.get("data", ""))
    if block.get("source_type") == "text":
        return str(block.get("text", block.get("url", "")))
    if _find_image(block) is None:
        raise _without_image(block)
    what = (
        f"a file of type {_short(declared)}" if declared else "a file that does not tell its type"
    )
    reason = f"A block of type {_short(_kind(block))} holds {what}; only images are taken"
    raise _unsupported(
        reason, "Turn its pages or frames into images, or give an image a mime_type of image/…."
    )


def _pass_over(_block: Block) -> None:
    """Leave out what a model thought or called: its results come in messages of their own."""


def _refuse(block: Block) -> Part:
    keys = ", ".join(_short(key) for key in list(block)[:8])
    kind = _short(_kind(block)) if _kind(block) else "unknown"
    reason = f"A block of type {kind} (keys: {keys}) cannot be sent to this endpoint"
    raise _unsupported(reason, "Send text blocks and image blocks.")


def _read_non_standard(block: Block) -> Part | None:
    value = block.get("value")
    return read_block(value) if isinstance(value, Mapping) else _refuse(block)


def _places(block: Block) -> Iterator[Block]:
    """Walk through a block and the mappings in it that can hold an image."""
    yield block
    for key in _HOLDERS:
        held = block.get(key)
        if isinstance(held, Mapping):
            yield from _places(held)


def _find_image(block: Block) -> str | bytes | None:
    for place in _places(block):
        for key in (*_VALUES, *_HOLDERS):
            value = place.get(key)
            if isinstance(value, (str, bytes)) and value:
                return value
    return None


def _declared_type(block: Block) -> str:
    for place in _places(block):
        for key in _TYPES:
            declared = place.get(key)
            if isinstance(declared, str) and declared:
                return declared.lower()
    value = _find_image(block)
    if isinstance(value, str) and value[:5].lower() == "data:":
        return value[5:64].partition(",")[0].partition(";")[0].lower()
    return ""


def _without_image(block: Block) -> UnsupportedContentError:
    kind = _short(_kind(block))
    keys = {key for place in _places(block) for key in place}
    reference = next((key for key in _REFERENCES if key in keys), None)
    if reference is None:
        reason = f"A block of type {kind} holds no image"
    elif reference == "path":
        reason = f"A block of type {kind} names a path, and no file is opened for a message"
    else:
        reason = (
            f"A block of type {kind} refers to a stored file by its {reference},"
            " which only the service that stores it can open"
        )
    return _unsupported(reason, "Give the image itself: an http(s) URL, a data: URL or base64.")


def _short(name: object) -> str:
    """Name a type or a key in an error: a block's own words may be of any length."""
    text = str(name)
    return repr(text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…")


def _unsupported(reason: str, advice: str) -> UnsupportedContentError:
    return UnsupportedContentError(f"{reason}. Nothing was sent. {advice}")


_PASSED_OVER = [
    "reasoning",
    "reasoning_content",
    "reasoningContent",
    "thinking",
    "redacted_thinking",
    "tool_use",
    "toolUse",
    "tool_call",
    "tool_call_chunk",
    "invalid_tool_call",
    "function_call",
    "functionCall",
    "server_tool_use",
    "server_tool_call",
    "server_tool_call_chunk",
    "server_tool_result",
    "web_search_call",
    "web_search_tool_result",
    "code_execution_tool_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "custom_tool_call",
    "cachePoint",
    "cache_point",
]

_READERS: dict[str, Callable[[Block], Part | None]] = {
    **dict.fromkeys(("text", "text-plain", "input_text", "output_text", "refusal"), _read_text),
    # OpenAI's two, LangChain's and Anthropic's "image" (Bedrock's has no type, but that key).
    **dict.fromkeys(("image_url", "input_image", "image"), _read_image),
    # OpenAI's, LangChain's, Anthropic's and Google's two spellings of it.
    **dict.fromkeys(
        ("file", "input_file", "document", "media", "inline_data", "inlineData"), _read_file
    ),
    **dict.fromkeys(_PASSED_OVER, _pass_over),
    "json": _read_json,
    "non_standard": _read_non_standard,
}

_CONTAINERS = frozenset({"tool_result", "toolResult"})
"""Blocks that hold blocks."""
