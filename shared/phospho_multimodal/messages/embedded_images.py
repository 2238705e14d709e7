"""Find image files in the text of a tool result, where the model cannot see them.

A framework converts to text what a tool returns in an unknown form, such as a single block or
bytes. The image would never be seen, and the prompt would have a megabyte of base64.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator
from itertools import pairwise

import pybase64

from phospho_multimodal.errors import UnsupportedContentError
from phospho_multimodal.images.inspect import sniff
from phospho_multimodal.images.source import ImageSource

__all__ = [
    "LONGEST_RUN",
    "check_tool_text",
    "decode_base64",
    "is_image_file",
    "mark_files",
    "split_embedded_images",
]

LONGEST_RUN = 4096
"""Characters of a file that raise an error in a tool's text.

In 175 MB of documentation, source code and configuration, the longest run of base64 symbols that
is not a file is a certificate of 2,665 characters.
"""

# Base64 has 64 symbols. Digits in a base up to 32, genes, proteins and dashes have fewer than 40.
_FEWEST_SYMBOLS = 40
_SAMPLE = 16_384
_HEAD = 60

_SYMBOL = r"[A-Za-z0-9+/_-]"
_BREAK = r"(?:\r?\n|(?:\\r)?\\n)"  # plain, or as JSON escapes it
_LINE_BREAK = re.compile(_BREAK)

# Nothing must follow a match, so that the search takes linear time.
_BASE64_RUN = re.compile(rf"(?:{_SYMBOL}{{60,}}{_BREAK}?)+")
# The repr of bytes that begin like an image.
_SHOWN_BYTES = re.compile(
    r"\bb(['\"])(?=\\x89PNG|\\xff\\xd8\\xff|GIF8|RIFF|II\*|MM\\x00|BM)"
    rf"(?:[^\\'\"]|\\.|(?!\1).){{,{LONGEST_RUN}}}"
)

# The parts of a file around its run: the data: prefix, a short last line, the padding.
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,\Z", re.IGNORECASE)
_LONGEST_DATA_URL = 60
_LAST_LINE = re.compile(rf"{_SYMBOL}{{0,59}}=(?:{_BREAK}?=)?|{_SYMBOL}{{1,59}}(?=[\r\n\\\"']|\Z)")
_TAIL = 16
_ENDS_OF_FILES = (b"\xff\xd9", b"IEND\xaeB`\x82", b"\x00;")  # JPEG, PNG, GIF
_LONGEST_WRAPPED_LINE = 998  # RFC 5322; base64 has 64 or 76


def check_tool_text(text: object, name: str | None = None) -> None:
    """Raise `UnsupportedContentError` if a tool's text holds a file as base64 or shown bytes."""
    if not isinstance(text, str) or len(text) < LONGEST_RUN:
        return
    if _holds_a_file(text):
        message = (
            f"The result of {f'the tool {name[:40]!r}' if name else 'a tool'} is text with a file"
            f" of {LONGEST_RUN:,} characters or more, which the model cannot see. Nothing was sent."
            " Return a list of content blocks from the tool, with the image in an image block."
            " Frameworks convert a single block, bytes and unknown blocks to text."
        )
        raise UnsupportedContentError(message)


def mark_files(text: str, mark: str) -> str:
    """Replace each file in a tool's text with a mark."""
    if len(text) < LONGEST_RUN:
        return text
    spans = [(start, _end_of_file(text, start, end)) for start, end in _base64_runs(text)]
    for start, _ in _shown_bytes(text):
        end = _end_of_literal(text, start)
        # A truncated literal has no end, so the rest of the text is the file.
        spans.append((start, end if end > start else len(text)))
    kept: list[str] = []
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            kept += [text[done:start], mark]
            done = end
    return "".join([*kept, text[done:]])


def split_embedded_images(text: str) -> list[str | ImageSource]:
    """Split a tool's text into its texts and the images in it, in their order.

    A file of another type, and an image with less than `LONGEST_RUN` characters, stays text.
    """
    if len(text) < LONGEST_RUN:
        return [text]
    parts: list[str | ImageSource] = []
    done = 0
    for start, end, image in sorted(_images(text), key=lambda found: found[:2]):
        if start >= done:
            parts += [text[done:start], image]
            done = end
    parts.append(text[done:])
    return [part for part in parts if part] if done else [text]


def _images(text: str) -> Iterator[tuple[int, int, ImageSource]]:
    for run in _base64_runs(text):
        for start, end in _files(text, *run):
            if _is_image(text, start):
                named = _DATA_URL.search(text, max(0, start - _LONGEST_DATA_URL), start)
                image = ImageSource("base64", _LINE_BREAK.sub("", text[start:end]))
                yield named.start() if named else start, end, image
    for start, _ in _shown_bytes(text):
        end = _end_of_literal(text, start)
        # The literal can be truncated, or a hostile text that only begins like one.
        with contextlib.suppress(SyntaxError, ValueError, MemoryError):
            data: bytes = ast.literal_eval(text[start:end])
            if is_image_file(data):
                yield start, end, ImageSource("bytes", data)


def _files(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Split a run where another image begins: two images on adjacent lines look like one run."""
    lines = []
    at = start
    for line_break in _LINE_BREAK.finditer(text, start, end):
        lines.append((at, line_break.start()))
        at = line_break.end()
    if at < end:
        lines.append((at, end))
    width = lines[0][1] - start
    for (before, before_end), (line, line_end) in pairwise(lines):
        is_new = (
            before_end - before < width
            or line_end - line > _LONGEST_WRAPPED_LINE
            or decode_base64(text[before_end - _TAIL : before_end]).endswith(_ENDS_OF_FILES)
        )
        if is_new and _is_image(text, line):
            yield start, before_end
            start, width = line, line_end - line
    yield start, _end_of_file(text, start, end)


def _end_of_file(text: str, start: int, end: int) -> int:
    """Return the end of a file, whose last line is shorter than the lines of its run."""
    last = _LAST_LINE.match(text, end)
    if last is not None:
        lines = _LINE_BREAK.split(text[start:end])
        is_one_of_many = len(lines) > 2  # noqa: PLR2004 - after a single break there is nothing
        is_whole = not (sum(map(len, lines)) + len(last[0])) % 4
        if "=" in last[0] or (is_one_of_many and is_whole):
            return last.end()  # otherwise it is a word after the file
    return start + len(text[start:end].rstrip("\r\n"))


def _holds_a_file(text: str) -> bool:
    return any(True for _ in _base64_runs(text)) or any(True for _ in _shown_bytes(text))


def _base64_runs(text: str) -> Iterator[tuple[int, int]]:
    for run in _BASE64_RUN.finditer(text):
        start, end = run.span()
        if text[start - 1 : start] == "\\":  # the run begins with the "n" of an escaped line break
            start += 1
        if end - start >= LONGEST_RUN and _is_file(text, start, end):
            yield start, end


def _shown_bytes(text: str) -> Iterator[tuple[int, int]]:
    for run in _SHOWN_BYTES.finditer(text):
        if run.end() - run.start() >= LONGEST_RUN:
            yield run.span()


def _is_file(text: str, start: int, end: int) -> bool:
    if len(set(text[start : min(end, start + _SAMPLE)])) >= _FEWEST_SYMBOLS:
        return True
    # An uncompressed blank image has few symbols, but a known header.
    return sniff(_head(text, start)) not in {None, "text"}


def _end_of_literal(text: str, start: int) -> int:
    """Return the end of a bytes literal, or its start if it is truncated.

    A regular expression would keep millions of steps in memory.
    """
    quote, at = text[start + 1], start + 2
    while (at := text.find(quote, at)) >= 0:
        before = at
        while text[before - 1] == "\\":
            before -= 1
        at += 1
        if (at - 1 - before) % 2 == 0:
            return at
    return start


def _is_image(text: str, start: int) -> bool:
    return is_image_file(_head(text, start))


def is_image_file(data: bytes) -> bool:
    """Return whether data begins like an image file."""
    kind = sniff(data) or ""
    if kind == "BMP":  # words can begin with its two letters, but not with four zero bytes
        return data[6:10] == bytes(4)
    return kind.isupper()  # `sniff` names image formats in capitals


def _head(text: str, start: int) -> bytes:
    """Decode the beginning of a run."""
    return decode_base64(_LINE_BREAK.sub("", text[start : start + _HEAD + 4])[:_HEAD])


def decode_base64(symbols: str) -> bytes:
    """Decode the whole groups of four symbols; return nothing if it is not base64."""
    symbols = symbols[: len(symbols) // 4 * 4].replace("-", "+").replace("_", "/")
    try:
        return pybase64.b64decode(symbols)
    except ValueError:
        return b""
