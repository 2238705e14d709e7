"""What a tool's JSON schema says of the arguments of a call: which ones it can never take.

No validator: a tool checks its arguments itself. This ends a loop of calls that no tool would
accept, so that it knows what decides that, types and listed values, and lets the rest through.
Where readers differ it is as lenient as pydantic, which takes `"21"` for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from phospho_multimodal.loose_json import json_text

__all__ = ["can_be", "fitted"]

_Schema: TypeAlias = Mapping[str, Any]

# Deeper than any arguments of 250 tokens; a schema can refer to itself without end.
_DEEPEST = 40


def can_be(value: object, schema: object, root: _Schema, depth: int = 0) -> bool:
    """Tell whether a value can be what a schema wants.

    Args:
        value: Read from JSON.
        schema: The schema; one that says nothing takes anything.
        root: The schema whose `$defs` it refers to.
        depth: How many schemas it stands in.

    Returns:
        Whether it can.
    """
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return True
    if value is None and schema.get("default", ...) is None:
        return True  # `text: str = None` is written in Python, and its schema says string
    if "enum" in schema or "const" in schema:
        listed = schema["enum"] if "enum" in schema else [schema["const"]]
        return not isinstance(listed, list) or value in listed

    def held(inner: object, part: object) -> bool:
        return can_be(inner, part, root, depth + 1)

    if "$ref" in schema and not held(value, _referred(schema["$ref"], root)):
        return False
    for key, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        parts = schema.get(key)
        if isinstance(parts, list) and not enough(held(value, part) for part in parts):
            return False
    return _is_of_type(value, schema) and _holds(value, schema, held)


def fitted(value: object, schema: object, root: _Schema) -> object:
    """Write as text what a model wrote as a number or a truth, where only a text is taken.

    Args:
        value: Read from JSON.
        schema: What is wanted.
        root: The schema whose `$defs` it refers to.

    Returns:
        The text, or the value as it is.
    """
    if not isinstance(value, (bool, int, float)) or can_be(value, schema, root):
        return value
    text = json_text(value)
    # A schema that takes a number refused this one: its words would be no better.
    takes_numbers = can_be(0, schema, root) or can_be(0.5, schema, root)
    return text if not takes_numbers and can_be(text, schema, root) else value


def _referred(reference: object, root: _Schema) -> object:
    place: object = root
    for step in str(reference).removeprefix("#/").split("/"):
        place = place.get(step) if isinstance(place, Mapping) else None
    return place


def _is_of_type(value: object, schema: _Schema) -> bool:
    named = schema.get("type")
    names = named if isinstance(named, list) else [named]
    # A type that is not known is none to refuse a call for.
    return any(_CHECKS[name](value) if name in _CHECKS else True for name in names)


def _holds(value: object, schema: _Schema, held: Callable[[object, object], bool]) -> bool:
    """Tell whether the parts of a list or an object can be what is wanted of them."""
    if isinstance(value, list):
        return all(held(item, schema.get("items")) for item in value)
    if not isinstance(value, Mapping):
        return True
    properties = schema.get("properties") or {}
    others = schema.get("additionalProperties")
    return value.keys() >= set(schema.get("required") or ()) and all(
        held(inner, properties.get(name, others)) for name, inner in value.items()
    )


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]  # it is what is asked
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _is_whole(value: object) -> bool:
    return isinstance(value, int) or (
        _is_number(value) and float(value).is_integer()  # type: ignore[arg-type]  # as above
    )


def _is_truth(value: object) -> bool:
    return isinstance(value, bool) or str(value).lower() in _TRUTHS


_TRUTHS = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "on", "off", "t", "f", "y", "n"}
_CHECKS: dict[object, Callable[[object], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": _is_truth,
    "integer": _is_whole,
    "null": lambda value: value is None,
    "number": _is_number,
    "object": lambda value: isinstance(value, Mapping),
    "string": lambda value: isinstance(value, str),
}
