"""Choose the object of an answer that a schema describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from phospho_multimodal.tools.json_objects import find_json_objects
from phospho_multimodal.tools.schema import (
    Schema,
    accepts_unknown_keys,
    coerce_to_text,
    find_items,
    find_properties,
    matches_schema,
)

__all__ = ["find_answer", "select_answer"]

# Keys that a wrapper can have next to its object.
_NAMES: Final = ("name", "tool", "tool_name", "function", "action", "title")
_BESIDE: Final = frozenset(
    {*_NAMES, "id", "type", "description", "required", "additionalProperties", "$defs", "$schema"}
)
_WRAPPERS: Final = frozenset({"arguments", "args", "parameters", "params", "input", "properties"})
_SCHEMA_WORDS: Final = frozenset({"type", "anyOf", "oneOf", "allOf", "$ref", "enum", "const"})


def find_answer(text: str, schema: Schema, name: str | None = None) -> dict[str, Any] | None:
    """Find the object that a schema describes in a model's answer; see `select_answer`."""
    whole = [found.value for found in find_json_objects(text) if found.whole]
    return select_answer(whole, schema, name)


def select_answer(
    values: Iterable[Mapping[str, Any]], schema: Schema, name: str | None = None
) -> dict[str, Any] | None:
    """Choose the object that has the most keys of a schema; `None` if no object has any.

    The object is taken out of its wrapper, and numbers become text where the schema accepts only
    text. An object under another name than `name` (by default the schema's title) does not count,
    nor does one that only repeats the schema. An empty schema describes any object.
    """
    properties = find_properties(schema, schema)
    inner = [_unwrap(value, properties, name or schema.get("title")) for value in values]
    candidates = [value for value in inner if _is_meant(value, schema, properties)]
    if not candidates:
        return None
    best = max(candidates, key=lambda value: _score(value, properties))
    coerced = coerce_to_text(best, schema, schema)
    return coerced if isinstance(coerced, dict) else None


def _unwrap(
    value: Mapping[str, Any], properties: Mapping[str, Any], name: str | None
) -> Mapping[str, Any]:
    """Take an object out of a single wrapper; an object with another name becomes empty."""
    keys = [key for key in value if key not in _BESIDE]
    key = keys[0] if len(keys) == 1 and keys[0] not in properties else ""
    inner = value.get(key)
    if not isinstance(inner, Mapping) or not properties:
        return value
    names = {value[beside] for beside in _NAMES if isinstance(value.get(beside), str)}
    if key in _WRAPPERS and names:
        # `{"name": "Animal", "arguments": {"name": "cat"}}`: the first name is not the animal's.
        if names == {name}:
            return _unwrap(inner, properties, None)
        if _score(inner, properties):
            return {}
    if key == "properties" and value.get("type") == "object":
        return inner  # The type and the title next to it are the schema's, not the object's.
    return inner if _score(inner, properties) and not _score(value, properties) else value


def _is_meant(value: Mapping[str, Any], schema: Schema, properties: Mapping[str, Any]) -> bool:
    return (
        bool(_score(value, properties))
        and not _loses_values(value, schema, schema)
        and not _repeats(value, schema, properties)
    )


def _loses_values(value: object, part: object, schema: Schema) -> bool:
    """Check whether an object, or one within it, has values under keys that the schema lacks.

    An optional field would silently be empty, although the model gave its value.
    """
    if isinstance(value, list):
        items = find_items(part, schema)
        return any(_loses_values(item, items, schema) for item in value)
    if (
        not isinstance(value, Mapping)
        or not isinstance(part, Mapping)
        or accepts_unknown_keys(part, schema)
    ):
        return False
    properties = find_properties(part, schema)
    if value and properties and not _score(value, properties):
        return True
    return _is_misspelled(value, properties) or any(
        _loses_values(inner, properties.get(name), schema) for name, inner in value.items()
    )


def _score(value: Mapping[str, Any], properties: Mapping[str, Any]) -> int:
    return len(value.keys() & properties.keys()) if properties else len(value)


def _is_misspelled(value: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    """Check whether a key differs from a missing key only by its case or its separators."""
    missing = {_fold(name) for name in properties.keys() - value.keys()}
    return any(_fold(key) in missing for key in value.keys() - properties.keys())


def _fold(key: str) -> str:
    return "".join(filter(str.isalnum, key)).casefold()


def _repeats(value: Mapping[str, Any], schema: Schema, properties: Mapping[str, Any]) -> bool:
    """Check whether an object is the schema's own list of properties."""
    return any(
        isinstance(inner, Mapping)
        and bool(inner.keys() & _SCHEMA_WORDS)
        and not matches_schema(inner, properties[name], schema)
        for name, inner in value.items()
        if name in properties
    )
