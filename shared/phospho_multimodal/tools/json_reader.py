"""Read one JSON object out of a model's text, in the spellings that models use.

The reader accepts JSON, Python's spelling (single quotes, `None`, a comma at the end), line breaks
in strings, and doubled braces, as in a format string. Anything else makes the object unreadable.
The reader continues in an unreadable object only to find its end and the tool that it names.

The reader repairs nothing. json-repair closes a string that was cut off, even in its strict mode.
dirtyjson, json5 and pyjson5 do not know Python's constants.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from typing_extensions import Self

__all__ = ["ReadObject", "WrittenFloat", "read_object"]

_DEEPEST: Final = 60  # An object that nests deeper is unreadable. This bounds the recursion too.

# No alternative depends on what follows a string or a word, so each token takes linear time.
_TOKEN: Final = re.compile(
    r"""
        (?P<mark>[{}\[\]:,])
      | "(?P<double>(?:[^"\\]+|\\.)*\\?)(?P<double_end>"?)
      | '(?P<single>(?:[^'\\]+|\\.)*\\?)(?P<single_end>'?)
      # Typographic quotes do not make a string. They are matched to find its end.
      | [\u2018\u201c\u201e\xab]
        (?P<curly>[^\u2019\u201c\u201d"\xbb]*)(?P<curly_end>[\u2019\u201c\u201d"\xbb]?)
      # A word can hold an apostrophe, as in `It's`, and does not begin with a quote.
      | (?P<bare>[^\s{}\[\]:,"\u201c\u201e\xab]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_SPACE: Final = re.compile(r"\s*")
_DOUBLED: Final = re.compile(r"\s*\{")
_NUMBER: Final = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
# The escapes that Python and JSON have in common, and Markdown's `\_`, which is in neither.
_ESCAPED: Final = dict(zip("\"'\\nrtbf_", "\"'\\\n\r\t\b\f_", strict=True))
_PLAIN_UNDERSCORE: Final = re.compile(r"(?<!\\)_")
_CONSTANTS: Final = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "None": None,
}
_QUOTES: Final = "\"'`\xb4\u2018\u2019\u201c\u201d"
_LEVELS: Final = {"{": 1, "[": 1, "}": -1, "]": -1}
_MISSING: Final = object()


class WrittenFloat(float):
    """A number with its spelling: the version `3.10` is not `3.1`."""

    written: str

    def __new__(cls, written: str) -> Self:
        """Read the number."""
        number = super().__new__(cls, written)
        number.written = written
        return number


@dataclass(frozen=True, slots=True)
class ReadObject:
    """One object of a text. If it is not whole, use its `value` for names only."""

    value: dict[str, Any]
    end: int  # the position after it
    whole: bool  # it is complete and readable
    cut_off: bool  # it is readable, and the text ended before it did
    markdown: bool  # its underscores have backslashes, as in Markdown


def read_object(text: str, begin: int) -> ReadObject:
    """Read the object that begins at the brace at `begin`."""
    reader = _Reader(text, begin + 1)
    value = reader.read_pairs(1)
    piece = text[begin : reader.position]
    if reader.markdown and _PLAIN_UNDERSCORE.search(piece):
        reader.readable = False  # The backslash can belong to the value, as in a path.
    if not _is_encodable(piece):
        reader.readable = False  # UTF-8 cannot encode half a surrogate pair.
    whole = reader.readable and reader.closed
    cut_off = reader.readable and not reader.closed
    return ReadObject(value, reader.position, whole, cut_off, reader.markdown)


@dataclass(slots=True)
class _Token:
    kind: str
    text: str
    finished: bool


class _Reader:
    """Reads from one position on; each token is consumed once."""

    def __init__(self, text: str, position: int) -> None:
        self.text = text
        self.position = position
        self._before = position
        self.readable = True
        self.closed = True
        self.markdown = False

    def read_pairs(self, depth: int) -> dict[str, Any]:
        """Read the pairs after a brace, up to the brace that closes it."""
        pairs: dict[str, Any] = {}
        doubled = _DOUBLED.match(self.text, self.position)
        if doubled is not None:
            self.position = doubled.end()
        expects_comma = False
        while (token := self._take()) is not None:
            if token.text == "}" and token.kind == "mark":
                if doubled is not None:
                    self._close_doubled()
                return pairs
            if token.text == "," and token.kind == "mark":
                self.readable = self.readable and expects_comma
                expects_comma = False
            elif token.kind == "mark":
                self._skip(token)
            else:
                self.readable = self.readable and not expects_comma
                self._read_pair(token, pairs, depth)
                expects_comma = True
        return pairs

    def _read_pair(self, token: _Token, pairs: dict[str, Any], depth: int) -> None:
        key = self._read_scalar(token, is_key=True)
        colon = self._take()
        if colon is None:
            return
        if colon.kind != "mark" or colon.text != ":":
            self.readable = False
            self._give_back()
            return
        value = self._read_value(depth)
        if value is _MISSING or not isinstance(key, str):
            return
        if key in pairs:
            self.readable = False  # It may be two calls in one.
        pairs.setdefault(key, value)

    def _read_value(self, depth: int) -> Any:
        token = self._take()
        if token is None:
            return _MISSING
        if token.kind != "mark":
            return self._read_scalar(token)
        if token.text in "{[" and depth >= _DEEPEST:
            self._skip(token)
            return _MISSING
        if token.text == "{":
            return self.read_pairs(depth + 1)
        if token.text == "[":
            return self._read_items(depth + 1)
        self.readable = False
        if token.text != ":":
            self._give_back()
        return _MISSING

    def _read_items(self, depth: int) -> list[Any]:
        items: list[Any] = []
        expects_comma = False
        while (token := self._take()) is not None:
            if token.text == "]" and token.kind == "mark":
                return items
            if token.text == "," and token.kind == "mark":
                self.readable = self.readable and expects_comma
                expects_comma = False
                continue
            self.readable = self.readable and not expects_comma
            if token.text == "}" and token.kind == "mark":
                self.readable = False
                self._give_back()
                return items
            self._give_back()
            item = self._read_value(depth)
            if item is not _MISSING:
                items.append(item)
            expects_comma = True
        return items

    def _read_scalar(self, token: _Token, *, is_key: bool = False) -> Any:
        """Read a string, a number or a constant; use an unreadable one for names only."""
        if not token.finished:
            self.closed = False
            return _MISSING
        if token.kind in {"double", "single"}:
            return self._unescape(token)
        if token.kind == "bare" and not is_key:
            if token.text in _CONSTANTS:
                return _CONSTANTS[token.text]
            number = _read_number(token.text)
            if number is not None:
                return number
        self.readable = False
        return token.text.strip(_QUOTES)

    def _unescape(self, token: _Token) -> str:
        if "\\" not in token.text:
            return token.text

        def replace(escape: re.Match[str]) -> str:
            written = escape[1]
            if len(written) > 1:
                return chr(int(written[1:], 16))
            if written == "/" and token.kind == "double":  # Python keeps the backslash.
                return "/"
            self.markdown = self.markdown or written == "_"
            self.readable = self.readable and written in _ESCAPED
            return _ESCAPED.get(written, written)

        text = _ESCAPE.sub(replace, token.text)
        # This joins surrogate pairs. Half a pair stays, and makes the object unreadable.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        self.readable = self.readable and _is_encodable(text)
        return text

    def _close_doubled(self) -> None:
        token = self._take()
        if token is not None and (token.kind != "mark" or token.text != "}"):
            self.readable = False
            self._give_back()

    def _skip(self, token: _Token) -> None:
        """Skip a token outside of any pair, with everything in its brackets."""
        self.readable = False
        level = _LEVELS.get(token.text, 0)
        while level > 0 and (inner := self._take()) is not None:
            if inner.kind == "mark":
                level += _LEVELS.get(inner.text, 0)

    def _take(self) -> _Token | None:
        """Take the next token; return `None` at the end of the text."""
        space = _SPACE.match(self.text, self.position)
        start = self.position if space is None else space.end()
        match = _TOKEN.match(self.text, start)
        if match is None or match.lastgroup is None:
            self.position = len(self.text)
            self.closed = False
            return None
        self._before = self.position
        self.position = match.end()
        kind = match.lastgroup.removesuffix("_end")
        if kind == "bare":
            # A word at the end of the text may be cut off: `12` of `125`.
            finished = self.position < len(self.text)
        else:
            finished = kind == "mark" or bool(match[f"{kind}_end"])
        return _Token(kind, match[kind], finished)

    def _give_back(self) -> None:
        self.position = self._before


def _read_number(written: str) -> int | float | None:
    if not _NUMBER.fullmatch(written):
        return None
    try:
        number = WrittenFloat(written)
        if written.lstrip("-").isdigit():
            return int(written)
    except ValueError:  # Python limits the digits of an integer.
        return None
    return number if math.isfinite(number) else None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
