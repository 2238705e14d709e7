"""What a tool gave back as text: a picture must not hide in it.

A framework makes text of what a tool returns in a form that it does not know, a single block or
bytes for one. The picture is then never seen, and a megabyte of base64 is the prompt.
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
"""Characters of a file that a tool's text may hold.

In 175 MB of documentation, source code and configuration the longest run of base64's symbols that
is no file in base64 is a certificate of 2,665 characters.
"""

# Digits in any base up to 32, genes, proteins and rules of dashes have fewer than base64's 64.
_FEWEST_SYMBOLS = 40
_SAMPLE = 16_384
_HEAD = 60

_SYMBOL = r"[A-Za-z0-9+/_-]"
_BREAK = r"(?:\r?\n|(?:\\r)?\\n)"  # plain, or as JSON spells it
_LINE_BREAK = re.compile(_BREAK)

# Nothing has to follow a match, so that the search takes linear time.
_BASE64_RUN = re.compile(rf"(?:{_SYMBOL}{{60,}}{_BREAK}?)+")
# Bytes as Python shows them: as many of them as settle it.
_SHOWN_BYTES = re.compile(
    r"\bb(['\"])(?=\\x89PNG|\\xff\\xd8\\xff|GIF8|RIFF|II\*|MM\\x00|BM)"
    rf"(?:[^\\'\"]|\\.|(?!\1).){{,{LONGEST_RUN}}}"
)

# What belongs to a file beside its run: what names its type, its short last line, its padding.
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,\Z", re.IGNORECASE)
_LONGEST_DATA_URL = 60
_LAST_LINE = re.compile(rf"{_SYMBOL}{{0,59}}=(?:{_BREAK}?=)?|{_SYMBOL}{{1,59}}(?=[\r\n\\\"']|\Z)")
_TAIL = 16
_ENDS_OF_FILES = (b"\xff\xd9", b"IEND\xaeB`\x82", b"\x00;")  # JPEG, PNG, GIF
_LONGEST_WRAPPED_LINE = 998  # RFC 5322; base64 has 64 or 76


def check_tool_text(text: object, name: str | None = None) -> None:
    """Refuse a text with a file in it.

    Args:
        text: A part of what a tool gave back; what is no text passes.
        name: The tool's.

    Raises:
        UnsupportedContentError: It holds `LONGEST_RUN` characters or more of a file: in base64, or
            as Python shows the bytes of an image.
    """
    if not isinstance(text, str) or len(text) < LONGEST_RUN:
        return
    if _holds_a_file(text):
        message = (
            f"The result of {f'the tool {name[:40]!r}' if name else 'a tool'} is text, with"
            f" {LONGEST_RUN:,} characters or more of a file in it that the model cannot see there."
            " Nothing was sent. Let the tool return a list of content blocks, with the picture in"
            " an image block: a single block, bytes, and blocks that a framework does not know are"
            " made into text."
        )
        raise UnsupportedContentError(message)


def mark_files(text: str, mark: str) -> str:
    """Replace every file in a text that `check_tool_text` would refuse.

    Args:
        text: What a tool gave back.
        mark: The words that replace a file.

    Returns:
        The text without files.
    """
    if len(text) < LONGEST_RUN:
        return text
    spans = [(start, _end_of_file(text, start, end)) for start, end in _base64_runs(text)]
    for start, _ in _shown_bytes(text):
        end = _end_of_literal(text, start)
        # A literal that is cut off has no end: the rest of the text is the file.
        spans.append((start, end if end > start else len(text)))
    kept: list[str] = []
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            kept += [text[done:start], mark]
            done = end
    return "".join([*kept, text[done:]])


def split_embedded_images(text: str) -> list[str | ImageSource]:
    """Take the pictures out of a tool's text, for who can look at them.

    Args:
        text: What a tool gave back.

    Returns:
        Its texts and pictures, in their order; the text alone if there is no picture in it. A file
        of another kind, and a picture of less than `LONGEST_RUN` characters, stays text.
    """
    if len(text) < LONGEST_RUN:
        return [text]
    parts: list[str | ImageSource] = []
    done = 0
    for start, end, picture in sorted(_pictures(text), key=lambda found: found[:2]):
        if start >= done:
            parts += [text[done:start], picture]
            done = end
    parts.append(text[done:])
    return [part for part in parts if part] if done else [text]


def _pictures(text: str) -> Iterator[tuple[int, int, ImageSource]]:
    for run in _base64_runs(text):
        for start, end in _files(text, *run):
            if _is_picture(text, start):
                named = _DATA_URL.search(text, max(0, start - _LONGEST_DATA_URL), start)
                picture = ImageSource("base64", _LINE_BREAK.sub("", text[start:end]))
                yield named.start() if named else start, end, picture
    for start, _ in _shown_bytes(text):
        end = _end_of_literal(text, start)
        # Cut off, or no bytes after all: a hostile text can look like any beginning.
        with contextlib.suppress(SyntaxError, ValueError, MemoryError):
            data: bytes = ast.literal_eval(text[start:end])
            if is_image_file(data):
                yield start, end, ImageSource("bytes", data)


def _files(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Part a run where another picture begins: two on lines of their own can look like one."""
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
        if is_new and _is_picture(text, line):
            yield start, before_end
            start, width = line, line_end - line
    yield start, _end_of_file(text, start, end)


def _end_of_file(text: str, start: int, end: int) -> int:
    """Find where a file ends whose last line is shorter than those of its run."""
    last = _LAST_LINE.match(text, end)
    if last is not None:
        lines = _LINE_BREAK.split(text[start:end])
        is_one_of_many = len(lines) > 2  # noqa: PLR2004 - behind its own break there is nothing
        is_whole = not (sum(map(len, lines)) + len(last[0])) % 4
        if "=" in last[0] or (is_one_of_many and is_whole):
            return last.end()  # and no word that happens to stand there
    return start + len(text[start:end].rstrip("\r\n"))


def _holds_a_file(text: str) -> bool:
    return any(True for _ in _base64_runs(text)) or any(True for _ in _shown_bytes(text))


def _base64_runs(text: str) -> Iterator[tuple[int, int]]:
    for run in _BASE64_RUN.finditer(text):
        start, end = run.span()
        if text[start - 1 : start] == "\\":  # its first letter is the end of an escaped line break
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
    # A blank sheet without compression has few symbols, and says what it is.
    return sniff(_head(text, start)) not in {None, "text"}


def _end_of_literal(text: str, start: int) -> int:
    """Find the end of bytes as Python shows them; where they are cut off, that is their beginning.

    A regular expression for all of it would keep every step of millions in memory.
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


def _is_picture(text: str, start: int) -> bool:
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
