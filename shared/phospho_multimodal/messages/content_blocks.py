"""Blocks of a message, in the dialect of any provider, as the texts and images of a turn.

A block is a mapping as it stands in a message. It is read by one table of kinds, without a
framework: their own helpers leave out forms that are met in practice, cost a third of a
millisecond each, and some open what a block names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote

import pybase64

from phospho_multimodal.errors import ImageError, UnsupportedContentError
from phospho_multimodal.images.inspect import sniff
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import Part, Role, Turn, omitted_part
from phospho_multimodal.messages.embedded_images import check_tool_text, mark_files

__all__ = [
    "BLOCK_KINDS",
    "Block",
    "BlockKind",
    "make_turn",
    "quote_name",
    "read_content",
]

Block: TypeAlias = Mapping[str, Any]

BlockKind: TypeAlias = Literal[
    "text", "json", "image", "file", "blocks", "provider_tool_result", "wrapper", "ignored"
]
"""How a block is read. `"file"` is an image if it says so. `"blocks"` holds more blocks.
`"provider_tool_result"` comes from a tool that runs at the provider. `"wrapper"` holds one block.
`"ignored"` is a thought or a call of the model, whose results come in blocks of their own."""

_FORMS: dict[BlockKind, tuple[str, ...]] = {
    "text": ("text", "text-plain", "input_text", "output_text", "refusal"),
    "json": ("json",),
    # OpenAI's four; LangChain's, Anthropic's and MCP's (Bedrock's has no type, but that key).
    "image": (
        "image_url",
        "input_image",
        "computer_screenshot",
        "image_generation_call",
        "image",
    ),
    # LangChain's and OpenAI's, OpenAI's, Anthropic's and Bedrock's, Google's three in two
    # spellings, MCP's.
    "file": (
        "file",
        "input_file",
        "document",
        "media",
        "inline_data",
        "inlineData",
        "file_data",
        "fileData",
        "resource",
    ),
    # Anthropic's two, Bedrock's, OpenAI's three.
    "blocks": (
        "tool_result",
        "search_result",
        "toolResult",
        "function_call_output",
        "custom_tool_call_output",
        "computer_call_output",
    ),
    # Of tools that run at a provider: LangChain's, Anthropic's, Google's, OpenAI's, MCP's.
    "provider_tool_result": (
        "server_tool_result",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "code_execution_result",
        "code_interpreter_call",
        "mcp_call",
        "mcp_tool_result",
    ),
    "wrapper": ("non_standard",),
    "ignored": (
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
        "custom_tool_call",
        "computer_call",
        "server_tool_use",
        "server_tool_call",
        "server_tool_call_chunk",
        "web_search_call",
        "file_search_call",
        "executable_code",
        "mcp_list_tools",
        "mcp_tool_use",
        "cachePoint",
        "cache_point",
    ),
}

BLOCK_KINDS: dict[str, BlockKind] = {
    kind: reading for reading, kinds in _FORMS.items() for kind in kinds
}
"""Every kind of block that is known, and what it is; any other is an error that names it."""

# Where a block keeps an image: under one of the first keys; under one of the second the same, or
# a mapping that has it.
_VALUES = ("url", "base64", "data", "bytes", "blob", "file_data", "file_url", "result")
_HOLDERS = (
    "image_url",
    "source",
    "image",
    "file",
    "document",
    "inline_data",
    "inlineData",
    "file_data",
    "fileData",
    "resource",
)
_KEYS_OF_IMAGES = (*_VALUES, *_HOLDERS)
_TYPES = ("mime_type", "media_type", "mimeType", "mediaType")
_REFERENCES = ("path", "file_id", "fileId", "file_uri", "fileUri", "s3Location", "id")

_ADVICE = {
    "audio": "Put a transcript into a text block.",
    "video": "Put single frames into image blocks.",
}
_LONGEST_NAME = 40
_HEAD = 128


def make_turn(
    role: Role, parts: Iterable[Part], name: str | None = None, *, is_older: bool = False
) -> Turn:
    """Make a turn; a tool's picture must not hide in its text.

    Args:
        role: Who speaks.
        parts: Texts and images, in their order.
        name: The name of the tool or the speaker.
        is_older: Whether the turn is before the newest user turn; a mark then replaces such a file.

    Returns:
        The turn.

    Raises:
        UnsupportedContentError: The text of a tool holds a file in base64, or as shown bytes.
    """
    if role == "tool":
        parts = [_checked_part(part, name, is_older=is_older) for part in parts]
    return Turn(role, tuple(parts), name)


def read_content(content: object, *, is_older: bool = False) -> Iterator[Part]:
    """Read all of what a message, or a result within it, holds.

    Args:
        content: A text, a block, or a list of them.
        is_older: Whether the message is before the newest user message. A mark then replaces what
            is otherwise an error.

    Yields:
        Its texts and images, in their order. A text stays one, whatever stands in it: a URL too.

    Raises:
        UnsupportedContentError: A form is not known, or the endpoint cannot take it.
        ImageError: An image's URL cannot be used.
    """
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        yield from _read_block(content, is_older)
    elif isinstance(content, Iterable) and not isinstance(content, (bytes, bytearray)):
        for block in content:
            if isinstance(block, Mapping):
                yield from _read_block(block, is_older)
            else:
                yield from read_content(block, is_older=is_older)
    elif is_older:
        yield omitted_part()
    else:
        reason = f"A block is a {type(content).__name__}, and neither a text nor a mapping"
        raise _unsupported(reason, "Send text blocks and image blocks.")


def quote_name(name: object) -> str:
    """Name a type, a key or a role in an error: a message's own words may be of any length.

    Args:
        name: What a message says.

    Returns:
        It in quotes, with at most 40 characters.
    """
    text = str(name)
    return repr(text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…")


def _checked_part(part: Part, tool: str | None = None, *, is_older: bool) -> Part:
    if is_older and isinstance(part, str):
        return mark_files(part, omitted_part("file").mark)
    check_tool_text(part, tool)
    return part


def _read_block(block: Block, is_older: bool) -> Iterator[Part]:
    return _read_older_block(block) if is_older else _read_known_block(block)


def _read_older_block(block: Block) -> Iterator[Part]:
    try:
        yield from _read_known_block(block, is_older=True)
    except (UnsupportedContentError, ImageError) as error:
        # Blocks in this block have caught their own: nothing of it was read before.
        kind = _kind(block)
        yield omitted_part(BLOCK_KINDS.get(kind, kind), _declared_type(block), reason=error)


def _read_known_block(block: Block, *, is_older: bool = False) -> Iterator[Part]:
    reading = BLOCK_KINDS.get(_kind(block))
    if reading is None:
        raise _unknown(block)
    if reading in _READERS:
        read = _READERS[reading](block)
        if read is not None:
            yield read
    elif reading == "wrapper":
        value = block.get("value")
        if not isinstance(value, Mapping):
            raise _unknown(block)
        yield from _read_block(value, is_older)
    elif reading == "blocks":
        for part in read_content(_contents(block), is_older=is_older):
            yield _checked_part(part, is_older=is_older)
    elif reading == "provider_tool_result":
        yield from _read_found(_contents(block) or block.get(_kind(block)), is_older)


def _kind(block: Block) -> str:
    """Tell a block's type; some providers write none, and name the block by its only key."""
    kind = block.get("type")
    if isinstance(kind, str):
        return kind
    known = [key for key in block if key in BLOCK_KINDS]
    return known[0] if len(known) == 1 else ""  # of two, one would be lost


def _contents(block: Block) -> object:
    holder = block.get("toolResult")
    place = holder if isinstance(holder, Mapping) else block
    return place.get("content") or place.get("output") or place.get("outputs") or ()


def _read_found(content: object, is_older: bool) -> Iterator[Part]:
    """Read the texts and images of a result that has further forms, known to its provider alone."""
    if isinstance(content, str):
        yield _checked_part(content, is_older=is_older)
    elif isinstance(content, Mapping):
        if _kind(content) in BLOCK_KINDS:
            yield from _read_block(content, is_older)
        else:
            yield from _read_found(_contents(content), is_older)
    elif isinstance(content, (list, tuple)):
        for inner in content:
            yield from _read_found(inner, is_older)


def _read_text(block: Block) -> Part | None:
    text = block.get("text", block.get("refusal"))
    if text is None and block.get("type") in {"text", "output_text"}:
        return None  # a stream leaves such blocks behind, with an index or annotations alone
    if not isinstance(text, str):
        reason = f"A text block of type {quote_name(_kind(block))} holds no text of its own"
        raise _unsupported(reason, "Put the text itself into it.")
    return text


def _read_json(block: Block) -> Part:
    return json.dumps(block.get("json"), ensure_ascii=False, default=str)


def _read_image(block: Block) -> Part:
    image = _find_image(block)
    # A path that came with a message is a file that it can steal, in whatever form it is written.
    if image is None or isinstance(image, os.PathLike):
        raise _without_image(block, "path" if image else None)
    if not isinstance(image, (str, bytes, bytearray)):
        # A framework's cache knows an object by its repr, its place in memory: the next picture
        # that is put there would be given the answer of this one.
        reason = (
            f"A block of type {quote_name(_kind(block))} holds an object of type"
            f" {type(image).__name__}, which a cache cannot tell from another one"
        )
        raise _unsupported(
            reason, "Give the image as base64, a data: URL, an http(s) URL or bytes."
        )
    return image_source(image)


def _read_file(block: Block) -> Part:
    """Read a block that can be any file: it is an image if it says so, or if its bytes do.

    LangChain calls every OpenAI file a PDF before a model sees it.
    """
    declared = _declared_type(block)
    if declared.startswith("image/") or _begins_like_an_image(_find_image(block)):
        return _read_image(block)
    text = _find_text(block)
    if text is not None:
        return text
    if _find_image(block) is None:
        raise _without_image(block)
    what = (
        f"a file of type {quote_name(declared)}"
        if declared
        else "a file that does not tell its type"
    )
    reason = f"A block of type {quote_name(_kind(block))} holds {what}; only images are taken"
    raise _unsupported(
        reason, "Turn its pages or frames into images, or give an image a mime_type of image/…."
    )


def _unknown(block: Block) -> UnsupportedContentError:
    kind = _kind(block)
    keys = ", ".join(quote_name(key) for key in list(block)[:8])
    name = quote_name(kind) if kind else "unknown"
    reason = f"A block of type {name} (keys: {keys}) cannot be sent to this endpoint"
    advice = next((words for what, words in _ADVICE.items() if what in kind), None)
    return _unsupported(reason, advice or "Send text blocks and image blocks.")


_READERS: dict[BlockKind, Callable[[Block], Part | None]] = {
    "text": _read_text,
    "json": _read_json,
    "image": _read_image,
    "file": _read_file,
}


def _places(block: Block) -> Iterator[Block]:
    """Walk through a block and the mappings in it that can hold an image."""
    yield block
    for key in _HOLDERS:
        held = block.get(key)
        if isinstance(held, Mapping):
            yield from _places(held)


def _find_image(block: Block) -> Any:
    for place in _places(block):
        for key in _KEYS_OF_IMAGES:
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
        value = b"" if "://" in head else _decoded(head)
    # A format has its name in capitals there, and what is no image has words.
    return isinstance(value, bytes) and (sniff(value[:_HEAD]) or "").isupper()


def _decoded(head: str) -> bytes:
    try:
        return pybase64.b64decode(head[: len(head) // 4 * 4])
    except ValueError:
        return b""


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
        for key in _TYPES:
            declared = place.get(key)
            if isinstance(declared, str) and declared:
                return declared.lower()
    value = _find_image(block)
    if isinstance(value, str) and value[:64].lstrip()[:5].lower() == "data:":
        return value[:64].lstrip()[5:].partition(",")[0].partition(";")[0].strip().lower()
    return ""


def _without_image(block: Block, reference: str | None = None) -> UnsupportedContentError:
    kind = quote_name(_kind(block))
    if reference is None:
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


def _unsupported(reason: str, advice: str) -> UnsupportedContentError:
    return UnsupportedContentError(f"{reason}. Nothing was sent. {advice}")
