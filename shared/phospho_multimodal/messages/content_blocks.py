"""Read the content blocks of messages, in the format of any provider, as texts and images.

One table of block kinds decides how a block is read. No helper of a framework is used: they leave
out forms that occur in practice, take a third of a millisecond each, and some open files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote

from phospho_multimodal.errors import ImageError, UnsupportedContentError
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import Part, Role, ToolCall, Turn, omitted_part
from phospho_multimodal.messages.embedded_images import (
    check_tool_text,
    decode_base64,
    is_image_file,
    mark_files,
)

__all__ = ["BLOCK_KINDS", "Block", "BlockKind", "make_turn", "quote_name", "read_content"]

Block: TypeAlias = Mapping[str, Any]

BlockKind: TypeAlias = Literal[
    "text", "json", "image", "file", "blocks", "provider_tool_result", "wrapper", "ignored"
]
"""How a block is read. `"file"` is an image if it says so. `"blocks"` holds more blocks.
`"provider_tool_result"` comes from a tool that runs at the provider. `"wrapper"` holds one block.
`"ignored"` is a thought or a call of the model, whose results come in blocks of their own."""

_TYPES_OF: dict[BlockKind, str] = {
    "text": "text text-plain input_text output_text refusal",
    "json": "json",
    # The first four are OpenAI's. `image` is LangChain's, Anthropic's, MCP's, and Bedrock's key.
    "image": "image_url input_image computer_screenshot image_generation_call image",
    # LangChain, OpenAI, Anthropic and Bedrock, Google (two spellings each), MCP.
    "file": "file input_file document media inline_data inlineData file_data fileData resource",
    # Anthropic, Bedrock, OpenAI.
    "blocks": "tool_result search_result toolResult function_call_output custom_tool_call_output"
    " computer_call_output",
    # LangChain, Anthropic, Google, OpenAI, MCP.
    "provider_tool_result": "server_tool_result web_search_tool_result web_fetch_tool_result"
    " code_execution_tool_result code_execution_result code_interpreter_call mcp_call"
    " mcp_tool_result",
    "wrapper": "non_standard",
    "ignored": "reasoning reasoning_content reasoningContent thinking redacted_thinking tool_use"
    " toolUse tool_call tool_call_chunk invalid_tool_call function_call functionCall"
    " custom_tool_call computer_call server_tool_use server_tool_call server_tool_call_chunk"
    " web_search_call file_search_call executable_code mcp_list_tools mcp_tool_use cachePoint"
    " cache_point",
}

BLOCK_KINDS: dict[str, BlockKind] = {
    name: kind for kind, names in _TYPES_OF.items() for name in names.split()
}
"""All known block types. A block of another type raises an error that names the type."""

# A block holds its image under one of the first keys. A mapping under one of the second keys can
# hold it, too.
_VALUE_KEYS = ("url", "base64", "data", "bytes", "blob", "file_data", "file_url", "result")
_HOLDER_KEYS = (
    *("image_url", "source", "image", "file", "document", "inline_data", "inlineData"),
    *("file_data", "fileData", "resource"),
)
_IMAGE_KEYS = (*_VALUE_KEYS, *_HOLDER_KEYS)
_MEDIA_TYPE_KEYS = ("mime_type", "media_type", "mimeType", "mediaType")
_REFERENCE_KEYS = ("path", "file_id", "fileId", "file_uri", "fileUri", "s3Location", "id")

_ADVICE = {
    "audio": "Put a transcript into a text block.",
    "video": "Put single frames into image blocks.",
}
_LONGEST_NAME = 40
_HEAD = 128


def make_turn(
    role: Role,
    parts: Iterable[Part],
    name: str | None = None,
    calls: tuple[ToolCall, ...] = (),
    *,
    is_older: bool = False,
) -> Turn:
    """Make a turn, and refuse a tool's text that has a file in it.

    In a turn before the newest user turn (`is_older`), a mark replaces the file instead.
    """
    if role == "tool":
        parts = [_check_part(part, name, is_older=is_older) for part in parts]
    return Turn(role, tuple(parts), name, calls)


def read_content(content: object, *, is_older: bool = False) -> list[Part]:
    """Read the texts and images of a message's content, in their order.

    A text stays a text, also if it is a URL. In a message before the newest user message
    (`is_older`), a mark replaces what otherwise raises `UnsupportedContentError` or `ImageError`.
    """
    if isinstance(content, str):
        return [content]
    if isinstance(content, Mapping):
        return _read_block(content, is_older)
    if isinstance(content, Iterable) and not isinstance(content, (bytes, bytearray)):
        parts: list[Part] = []
        for block in content:
            if isinstance(block, Mapping):
                parts += _read_block(block, is_older)
            else:
                parts += read_content(block, is_older=is_older)
        return parts
    if is_older:
        return [omitted_part()]
    reason = f"A block is a {type(content).__name__}. It must be a text or a mapping"
    raise _unsupported(reason, "Send text blocks and image blocks.")


def quote_name(name: object) -> str:
    """Quote a type, a key or a role of a message in an error, with at most 40 characters."""
    text = str(name)
    return repr(text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…")


def _check_part(part: Part, tool: str | None = None, *, is_older: bool) -> Part:
    if is_older and isinstance(part, str):
        return mark_files(part, omitted_part("file").mark)
    check_tool_text(part, tool)
    return part


def _read_block(block: Block, is_older: bool) -> list[Part]:
    name = _type_of(block)
    kind = BLOCK_KINDS.get(name)
    try:
        if kind is None:
            raise _unknown(block)
        return _READERS[kind](block, is_older)
    except (UnsupportedContentError, ImageError) as error:
        if not is_older:
            raise
        return [omitted_part(kind or name, _declared_type(block), reason=error)]


def _type_of(block: Block) -> str:
    """Return a block's type. Bedrock and Google write none: the block's only key is its type."""
    name = block.get("type")
    if isinstance(name, str):
        return name
    known = [key for key in block if key in BLOCK_KINDS]
    return known[0] if len(known) == 1 else ""  # with two known keys, one block would be lost


def _contents(block: Block) -> object:
    holder = block.get("toolResult")
    place = holder if isinstance(holder, Mapping) else block
    return place.get("content") or place.get("output") or place.get("outputs") or ()


def _read_text(block: Block, _: bool) -> list[Part]:
    text = block.get("text", block.get("refusal"))
    if text is None and block.get("type") in {"text", "output_text"}:
        return []  # streams leave such blocks behind, with only an index or annotations
    if not isinstance(text, str):
        reason = f"A text block of type {quote_name(_type_of(block))} has no text"
        raise _unsupported(reason, "Put the text itself into the block.")
    return [text]


def _read_json(block: Block, _: bool) -> list[Part]:
    return [json.dumps(block.get("json"), ensure_ascii=False, default=str)]


def _read_image(block: Block, _: bool) -> list[Part]:
    image = _find_image(block)
    # A message could name any file of this computer, so a path is never opened.
    if image is None or isinstance(image, os.PathLike):
        raise _without_image(block, "path" if image else None)
    if not isinstance(image, (str, bytes, bytearray)):
        # LangChain's cache keys would hold the object's memory address. Another image at the same
        # address would get the cached answer of this image.
        reason = (
            f"A block of type {quote_name(_type_of(block))} holds an object of type"
            f" {type(image).__name__}, which a cache cannot identify"
        )
        raise _unsupported(
            reason, "Give the image as base64, a data: URL, an http(s) URL or bytes."
        )
    return [image_source(image)]


def _read_file(block: Block, is_older: bool) -> list[Part]:
    """Read a block that can be any file. LangChain declares every OpenAI file to be a PDF."""
    declared = _declared_type(block)
    image = _find_image(block)
    if declared.startswith("image/") or _begins_like_an_image(image):
        return _read_image(block, is_older)
    text = _find_text(block)
    if text is not None:
        return [text]
    if image is None:
        raise _without_image(block)
    what = f"a file of type {quote_name(declared)}" if declared else "a file of unknown type"
    reason = f"A block of type {quote_name(_type_of(block))} holds {what}, which is not an image"
    raise _unsupported(
        reason, "Convert its pages or frames to images, or give an image a mime_type of image/…."
    )


def _read_blocks(block: Block, is_older: bool) -> list[Part]:
    parts = read_content(_contents(block), is_older=is_older)
    return [_check_part(part, is_older=is_older) for part in parts]


def _read_provider_tool_result(block: Block, is_older: bool) -> list[Part]:
    return _read_result(_contents(block) or block.get(_type_of(block)), is_older)


def _read_result(content: object, is_older: bool) -> list[Part]:
    """Read the texts and images of a result, and skip forms that only its provider knows."""
    if isinstance(content, str):
        return [_check_part(content, is_older=is_older)]
    if isinstance(content, Mapping):
        if _type_of(content) in BLOCK_KINDS:
            return _read_block(content, is_older)
        return _read_result(_contents(content), is_older)
    parts: list[Part] = []
    for inner in content if isinstance(content, (list, tuple)) else ():
        parts += _read_result(inner, is_older)
    return parts


def _read_wrapper(block: Block, is_older: bool) -> list[Part]:
    value = block.get("value")
    if not isinstance(value, Mapping):
        raise _unknown(block)
    return _read_block(value, is_older)


def _ignore(_: Block, __: bool) -> list[Part]:
    return []


_READERS: dict[BlockKind, Callable[[Block, bool], list[Part]]] = {
    "text": _read_text,
    "json": _read_json,
    "image": _read_image,
    "file": _read_file,
    "blocks": _read_blocks,
    "provider_tool_result": _read_provider_tool_result,
    "wrapper": _read_wrapper,
    "ignored": _ignore,
}


def _places(block: Block) -> list[Block]:
    """List a block and the mappings in it that can hold an image."""
    places = [block]
    for key in _HOLDER_KEYS:
        held = block.get(key)
        if isinstance(held, Mapping):
            places += _places(held)
    return places


def _find_image(block: Block) -> Any:
    for place in _places(block):
        for key in _IMAGE_KEYS:
            value = place.get(key)
            if value is None or isinstance(value, Mapping):
                continue
            if not isinstance(value, (str, bytes)) or value:
                return value
    return None


def _begins_like_an_image(value: object) -> bool:
    if isinstance(value, str):
        head = value[:_HEAD].lstrip()
        if head[:5].lower() == "data:":
            head = unquote(head.partition(",")[2])
        value = b"" if "://" in head else decode_base64(head)
    return isinstance(value, bytes) and is_image_file(value[:_HEAD])


def _find_text(block: Block) -> str | None:
    for place in _places(block):
        is_text = "text" in {place.get("type"), place.get("source_type")}
        for key in ("text", "data", "url") if is_text else ("text",):
            text = place.get(key)
            if isinstance(text, str):
                return text
    return None


def _declared_type(block: Block) -> str:
    for place in _places(block):
        for key in _MEDIA_TYPE_KEYS:
            declared = place.get(key)
            if isinstance(declared, str) and declared:
                return declared.lower()
    value = _find_image(block)
    if isinstance(value, str) and value[:64].lstrip()[:5].lower() == "data:":
        return value[:64].lstrip()[5:].partition(",")[0].partition(";")[0].strip().lower()
    return ""


def _without_image(block: Block, reference: str | None = None) -> UnsupportedContentError:
    kind = quote_name(_type_of(block))
    if reference is None:
        keys = {key for place in _places(block) for key in place}
        reference = next((key for key in _REFERENCE_KEYS if key in keys), None)
    if reference is None:
        reason = f"A block of type {kind} has no image"
    elif reference == "path":
        reason = f"A block of type {kind} has a path, and files that a message names are not opened"
    else:
        reason = (
            f"A block of type {kind} refers to a stored file by its {reference},"
            " which only the service that stores it can open"
        )
    return _unsupported(reason, "Give the image itself: an http(s) URL, a data: URL or base64.")


def _unknown(block: Block) -> UnsupportedContentError:
    name = _type_of(block)
    keys = ", ".join(quote_name(key) for key in list(block)[:8])
    shown = quote_name(name) if name else "unknown"
    reason = f"A block of type {shown} (keys: {keys}) cannot be sent to this endpoint"
    advice = next((words for what, words in _ADVICE.items() if what in name), None)
    return _unsupported(reason, advice or "Send text blocks and image blocks.")


def _unsupported(reason: str, advice: str) -> UnsupportedContentError:
    return UnsupportedContentError(f"{reason}. Nothing was sent. {advice}")
