"""JSON objects in what a model wrote: among prose, in fences, spelt like Python, or cut off.

What is whole is read; what is broken is never repaired into values. Libraries that mend JSON were
tried and left: json-repair closes a cut string as if it had been whole, in its strict mode too, and
dirtyjson, json5 and pyjson5 do not know Python's `True` and `None`, which come with its quotes.
pydantic's own parser reads what begins an unfinished object, and Python's own its single quotes.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

__all__ = ["FoundObject", "found_objects", "json_text"]

_LONGEST = 65_536  # an answer has at most 250 tokens; what is longer is not read
_LONGEST_LITERAL = 4096  # Python's parser recurses
_START = re.compile(r"\{\s*[\"'}]")
_CONTROL = dict.fromkeys(range(32), " ")
_CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One object in a text.

    Attributes:
        value: Its content; of one that is not whole, what could be read before it broke, which is
            good for names and not for values.
        whole: Whether all of it was there and could be read.
    """

    value: Mapping[str, Any]
    whole: bool


def found_objects(text: str) -> Iterator[FoundObject]:
    """Find the outermost JSON objects of a text.

    Nothing inside an object is looked for, broken or not: a piece of an argument could look like
    what is searched.

    Args:
        text: Anything.

    Yields:
        The objects, in their order.
    """
    position = 0
    while len(text) <= _LONGEST and (start := _START.search(text, position)):
        begin = start.start()
        strict = _strict(text, begin)
        if strict is not None:
            value, position = strict
            yield FoundObject(value, whole=True)
            continue
        end = _closing(text, begin)
        position = len(text) if end is None else end
        piece = text[begin:position]
        literal = None if end is None else _literal(piece)
        if literal is None:
            yield FoundObject(_beginning(piece), whole=False)
        else:
            yield FoundObject(literal, whole=True)


def json_text(value: object) -> str:
    """Write JSON as a model reads it best: compact enough, and in its own letters.

    Args:
        value: What JSON can hold; of anything else, its `str`.

    Returns:
        One line.
    """
    return json.dumps(value, ensure_ascii=False, default=str)


def _refuse(constant: str) -> float:
    raise ValueError(constant)  # NaN and Infinity, which are not JSON


# Not strict: models write line breaks into strings as they are.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)


def _strict(text: str, begin: int) -> tuple[dict[str, Any], int] | None:
    try:
        value, end = _DECODER.raw_decode(text, begin)
        # What cannot be written again cannot be sent on: half a surrogate pair, an endless number.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value, end


def _closing(text: str, begin: int) -> int | None:
    """Tell where an object ends whose strings may be in quotes of either kind."""
    depth = 0
    quote = ""
    characters = iter(range(begin, len(text)))
    for position in characters:
        character = text[position]
        if quote:
            if character == "\\":
                next(characters, None)
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if not depth:
                return position + 1
    return None


class _Constants(ast.NodeTransformer):
    """Reads JSON's constants where Python sees names."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in _CONSTANTS:
            return node
        return ast.copy_location(ast.Constant(_CONSTANTS[node.id]), node)


def _literal(text: str) -> dict[str, Any] | None:
    """Read an object as Python spells it: single quotes, commas at the end, `None`."""
    # Python and JSON disagree about what stands behind a backslash.
    if len(text) > _LONGEST_LITERAL or "\\" in text:
        return None
    try:
        tree = _Constants().visit(ast.parse(text, mode="eval"))
        value = ast.literal_eval(tree)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        written.encode()
        # Tuples, sets, bytes and keys that are numbers: Python, and nothing that was meant.
        if not isinstance(value, dict) or json.loads(written) != value:
            return None
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return None
    return value if all(map(_is_plain, ast.walk(tree))) else None


def _is_plain(node: ast.AST) -> bool:
    """Tell whether a string stands between two quotes, not in pieces: Python joins 'it''s'."""
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return True
    length = (node.end_col_offset or 0) - node.col_offset
    return node.end_lineno == node.lineno and length == len(node.value.encode()) + 2


def _beginning(text: str) -> dict[str, Any]:
    """Read what comes before an object breaks off; strings that do not end are left out."""
    text = text.translate(_CONTROL)
    value: Any = {}
    longest, shortest = len(text), 1
    # What begins a readable text is readable itself, so that halving finds the longest.
    length = longest
    while shortest <= longest:
        try:
            value = from_json(text[:length], allow_partial=True)
            shortest = length + 1
        except ValueError:
            longest = length - 1
        length = (shortest + longest) // 2
    return value if isinstance(value, dict) else {}
