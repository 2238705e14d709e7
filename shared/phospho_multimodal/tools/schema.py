"""What a JSON schema says of a value that a model wrote.

This is not a validator: a tool checks its arguments itself, and pydantic checks an answer. It knows
types and listed values, and lets the rest through. Where readers differ it is as lenient as
pydantic, which takes `"21"` for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from phospho_multimodal.tools.json_objects import to_compact_json
from phospho_multimodal.tools.json_reader import WrittenFloat

__all__ = [
    "Schema",
    "coerce_to_text",
    "find_items",
    "find_properties",
    "has_numbers",
    "matches_schema",
    "takes_any",
]

Schema: TypeAlias = Mapping[str, Any]

# Deeper than any arguments of 250 tokens; a schema can refer to itself without end.
_DEEPEST = 40
_MOST_ALTERNATIVES = 4  # of alternatives in each other, each of which can have several


def matches_schema(value: object, schema: object, root: Schema, depth: int = 0) -> bool:
    """Check whether a value can be what a schema wants.

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
        return matches_schema(inner, part, root, depth + 1)

    if "$ref" in schema and not held(value, _referred(schema["$ref"], root)):
        return False
    for key, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        parts = schema.get(key)
        if isinstance(parts, list) and not enough(held(value, part) for part in parts):
            return False
    return _is_of_type(value, schema) and _holds(value, schema, held)


def coerce_to_text(value: object, schema: object, root: Schema, depth: int = 0) -> object:
    """Write a number or a truth as text, wherever a schema takes only text.

    A model writes `{"zip": 75001}` again and again, and pydantic refuses it each time.

    Args:
        value: Read from JSON.
        schema: What is wanted.
        root: The schema whose `$defs` it refers to.
        depth: How many values it stands in.

    Returns:
        The value, in new lists and dicts. A number that becomes text keeps its spelling.
    """
    part = _referred_to(schema, root)
    if isinstance(value, Mapping):
        names = find_properties(part, root) if isinstance(part, Mapping) else {}
        others = part.get("additionalProperties") if isinstance(part, Mapping) else None
        return {
            name: coerce_to_text(held, names.get(name, others), root, depth + 1)
            for name, held in value.items()
        }
    if isinstance(value, list):
        items = find_items(part, root)
        return [coerce_to_text(item, items, root, depth + 1) for item in value]
    if not isinstance(value, (bool, int, float)):
        return value
    plain = float(value) if isinstance(value, WrittenFloat) else value
    if matches_schema(plain, schema, root):
        return plain
    text = value.written if isinstance(value, WrittenFloat) else to_compact_json(value)
    # A schema that takes a number refused this one: its words would be no better.
    takes_numbers = matches_schema(0, schema, root) or matches_schema(0.5, schema, root)
    return text if not takes_numbers and matches_schema(text, schema, root) else plain


def find_properties(schema: Schema, root: Schema, depth: int = 0) -> dict[str, Any]:
    """Collect the properties that an object can have.

    Args:
        schema: JSON schema of the object.
        root: The schema whose `$defs` it refers to.
        depth: How many schemas it stands in.

    Returns:
        Their schemas by name, of all alternatives together; where two differ, the first.
    """
    found: dict[str, Any] = dict(schema.get("properties") or {})
    parts = [_referred(schema["$ref"], root)] if "$ref" in schema else []
    for key in ("allOf", "anyOf", "oneOf"):
        parts += schema.get(key) or []
    for part in parts:
        if isinstance(part, Mapping) and depth < _MOST_ALTERNATIVES:
            found = {**find_properties(part, root, depth + 1), **found}
    return found


def has_numbers(schema: object) -> bool:
    """Check whether a schema describes a number anywhere.

    Args:
        schema: JSON schema.

    Returns:
        Whether it does.
    """
    if isinstance(schema, list):
        return any(map(has_numbers, schema))
    if not isinstance(schema, Mapping):
        return False
    types = schema.get("type")
    named = types if isinstance(types, list) else [types]
    return "number" in named or "integer" in named or any(map(has_numbers, schema.values()))


def _referred_to(schema: object, root: Schema) -> object:
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        schema = _referred(schema["$ref"], root)
    return schema


def find_items(schema: object, root: Schema) -> object:
    """Find what a schema wants of the items of a list.

    Args:
        schema: JSON schema of the list, or of one that can also be something else.
        root: The schema whose `$defs` it refers to.

    Returns:
        The schema of an item; `None` if there is none.
    """
    parts = (part for part in _alternatives(schema, root) if "items" in part)
    return next((part["items"] for part in parts), None)


def takes_any(schema: object, root: Schema) -> bool:
    """Check whether a schema takes an object with keys that it does not name.

    Args:
        schema: JSON schema.
        root: The schema whose `$defs` it refers to.

    Returns:
        Whether it does.
    """
    return any(
        bool(part.get("additionalProperties"))
        or "patternProperties" in part
        or (part.get("type") == "object" and not part.get("properties"))
        for part in _alternatives(schema, root)
    )


def _alternatives(schema: object, root: Schema) -> list[Schema]:
    """List a schema and what it names as alternatives, without references."""
    whole = _referred_to(schema, root)
    if not isinstance(whole, Mapping):
        return []
    parts = [
        _referred_to(part, root) for key in ("anyOf", "oneOf") for part in whole.get(key) or ()
    ]
    return [whole, *(part for part in parts if isinstance(part, Mapping))]


def _referred(reference: object, root: Schema) -> object:
    place: object = root
    for step in str(reference).removeprefix("#/").split("/"):
        place = place.get(step) if isinstance(place, Mapping) else None
    return place


def _is_of_type(value: object, schema: Schema) -> bool:
    named = schema.get("type")
    names = named if isinstance(named, list) else [named]
    # A type that is not known is none to refuse a call for.
    return any(_CHECKS[name](value) if name in _CHECKS else True for name in names)


def _holds(value: object, schema: Schema, held: Callable[[object, object], bool]) -> bool:
    """Check whether the parts of a list or an object can be what is wanted of them."""
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
