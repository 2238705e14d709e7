"""What a tool gave back as text: a picture must not hide in it.

A framework makes text of what a tool returns in a form that it does not know, a single block or
bytes for one. The picture is then never seen, and a megabyte of base64 is the prompt.
"""

from __future__ import annotations

import re

import pybase64

from phospho_multimodal.errors import UnsupportedContentError
from phospho_multimodal.images.headers import sniff

__all__ = ["LONGEST_RUN", "check_tool_text"]

LONGEST_RUN = 4096
"""Characters of a file that a tool's text may hold.

In 175 MB of documentation, source code and configuration the longest run of base64's symbols that
is no file in base64 is a certificate of 2,665 characters.
"""

# Digits in any base up to 32, genes, proteins and rules of dashes have fewer than base64's 64.
_FEWEST_SYMBOLS = 40
_SAMPLE = 16_384
_HEAD = 60

# With line breaks, plain or as JSON spells them. Nothing has to follow a match, so that the search
# takes linear time.
_BASE64_RUN = re.compile(r"(?:[A-Za-z0-9+/_-]{60,}(?:\r?\n|(?:\\r)?\\n)?)+")
# Bytes as Python shows them: as many of them as settle it.
_SHOWN_BYTES = re.compile(
    r"\bb(['\"])(?=\\x89PNG|\\xff\\xd8\\xff|GIF8|RIFF|II\*|MM\\x00|BM)"
    rf"(?:[^\\'\"]|\\.|(?!\1).){{,{LONGEST_RUN}}}"
)


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


def _holds_a_file(text: str) -> bool:
    runs = (run.span() for run in _BASE64_RUN.finditer(text))
    if any(end - start >= LONGEST_RUN and _is_file(text, start, end) for start, end in runs):
        return True
    shown = (run.span() for run in _SHOWN_BYTES.finditer(text))
    return any(end - start >= LONGEST_RUN for start, end in shown)


def _is_file(text: str, start: int, end: int) -> bool:
    if len(set(text[start : min(end, start + _SAMPLE)])) >= _FEWEST_SYMBOLS:
        return True
    # A blank sheet without compression has few symbols, and says what it is.
    head = text[start : start + _HEAD].replace("-", "+").replace("_", "/")
    return sniff(pybase64.b64decode(head)) not in {None, "text"}
