"""Compare values that a model wrote with a JSON schema, and write a schema for a model.

This is not a validator: a tool checks its arguments itself, and pydantic checks an answer. It knows
types and listed values, and accepts everything else. It is as lenient as pydantic, which accepts
`"21"` as a number. `root` is always the schema with the `$defs` that a part refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from phospho_multimodal.tools.json_objects import to_compact_json
from phospho_multimodal.tools.json_reader import WrittenFloat

__all__ = [
    "Schema",
    "accepts_unknown_keys",
    "coerce_to_text",
    "find_items",
    "find_properties",
    "has_numbers",
    "inline_references",
    "matches_schema",
    "prune_schema",
]

Schema: TypeAlias = Mapping[str, Any]

# Deeper than the arguments of 250 tokens; a schema can refer to itself without end.
_MAX_DEPTH = 40
_MAX_NESTED_ALTERNATIVES = 4  # each of which can have several

# Keys of a schema: which tell a model nothing, which hold schemas by name, which hold values.
_NOISE = {"title", "$schema"}
_BY_NAME = {"properties", "$defs", "definitions", "patternProperties"}
_VALUES = {"required", "enum", "const", "default", "examples"}


def matches_schema(value: object, schema: object, root: Schema, depth: int = 0) -> bool:
    """Check whether a schema can accept a value; one that says nothing accepts everything."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return True
    if value is None and schema.get("default", ...) is None:
        return True  # `text: str = None` is common in Python, and its schema says string
    if "enum" in schema or "const" in schema:
        listed = schema["enum"] if "enum" in schema else [schema["const"]]
        return not isinstance(listed, list) or value in listed

    def matches(inner: object, part: object) -> bool:
        return matches_schema(inner, part, root, depth + 1)

    if "$ref" in schema and not matches(value, _resolve_reference(schema["$ref"], root)):
        return False
    for key, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        parts = schema.get(key)
        if isinstance(parts, list) and not enough(matches(value, part) for part in parts):
            return False
    return _is_of_type(value, schema) and _contents_match(value, schema, matches)


def coerce_to_text(value: object, schema: object, root: Schema) -> object:
    """Write a number or a bool as text where a schema accepts only text, in new lists and dicts.

    Models often write `{"zip": 75001}`, which pydantic refuses. A number keeps its spelling.
    """
    part = _resolve(schema, root)
    if isinstance(value, Mapping):
        names = find_properties(part, root) if isinstance(part, Mapping) else {}
        others = part.get("additionalProperties") if isinstance(part, Mapping) else None
        return {
            name: coerce_to_text(inner, names.get(name, others), root)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        items = find_items(part, root)
        return [coerce_to_text(item, items, root) for item in value]
    if not isinstance(value, (bool, int, float)):
        return value
    plain = float(value) if isinstance(value, WrittenFloat) else value
    if matches_schema(plain, schema, root):
        return plain
    text = value.written if isinstance(value, WrittenFloat) else to_compact_json(value)
    # A schema that accepts numbers, but not this one, does not accept its spelling either.
    takes_numbers = matches_schema(0, schema, root) or matches_schema(0.5, schema, root)
    return text if not takes_numbers and matches_schema(text, schema, root) else plain


def find_properties(schema: Schema, root: Schema, depth: int = 0) -> dict[str, Any]:
    """Collect the properties of an object, in all alternatives; the first of a name counts."""
    found: dict[str, Any] = dict(schema.get("properties") or {})
    parts = [_resolve_reference(schema["$ref"], root)] if "$ref" in schema else []
    for key in ("allOf", "anyOf", "oneOf"):
        parts += schema.get(key) or []
    for part in parts:
        if isinstance(part, Mapping) and depth < _MAX_NESTED_ALTERNATIVES:
            found = {**find_properties(part, root, depth + 1), **found}
    return found


def find_items(schema: object, root: Schema) -> object:
    """Find the schema of the items of a list; `None` if there is none."""
    parts = (part for part in _alternatives(schema, root) if "items" in part)
    return next((part["items"] for part in parts), None)


def has_numbers(schema: object) -> bool:
    """Check whether a schema describes a number anywhere."""
    if isinstance(schema, list):
        return any(map(has_numbers, schema))
    if not isinstance(schema, Mapping):
        return False
    types = schema.get("type")
    named = types if isinstance(types, list) else [types]
    return "number" in named or "integer" in named or any(map(has_numbers, schema.values()))


def accepts_unknown_keys(schema: object, root: Schema) -> bool:
    """Check whether a schema accepts an object with keys that it does not name."""
    return any(
        bool(part.get("additionalProperties"))
        or "patternProperties" in part
        or (part.get("type") == "object" and not part.get("properties"))
        for part in _alternatives(schema, root)
    )


def _alternatives(schema: object, root: Schema) -> list[Schema]:
    """List a schema and its alternatives, without references."""
    whole = _resolve(schema, root)
    if not isinstance(whole, Mapping):
        return []
    parts = [_resolve(part, root) for key in ("anyOf", "oneOf") for part in whole.get(key) or ()]
    return [whole, *(part for part in parts if isinstance(part, Mapping))]


def _resolve(schema: object, root: Schema) -> object:
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        schema = _resolve_reference(schema["$ref"], root)
    return schema


def _resolve_reference(reference: object, root: Schema) -> object:
    place: object = root
    for step in str(reference).removeprefix("#/").split("/"):
        place = place.get(step) if isinstance(place, Mapping) else None
    return place


def _is_of_type(value: object, schema: Schema) -> bool:
    named = schema.get("type")
    names = named if isinstance(named, list) else [named]
    # An unknown type is no reason to refuse a call.
    return any(_CHECKS[name](value) if name in _CHECKS else True for name in names)


def _contents_match(
    value: object, schema: Schema, matches: Callable[[object, object], bool]
) -> bool:
    """Check the items of a list or the values of an object."""
    if isinstance(value, list):
        return all(matches(item, schema.get("items")) for item in value)
    if not isinstance(value, Mapping):
        return True
    properties = schema.get("properties") or {}
    others = schema.get("additionalProperties")
    return value.keys() >= set(schema.get("required") or ()) and all(
        matches(inner, properties.get(name, others)) for name, inner in value.items()
    )


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]  # that is the check
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _is_integer(value: object) -> bool:
    return isinstance(value, int) or (
        _is_number(value) and float(value).is_integer()  # type: ignore[arg-type]  # checked
    )


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or str(value).lower() in _BOOLS


_BOOLS = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "on", "off", "t", "f", "y", "n"}
_CHECKS: dict[object, Callable[[object], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": _is_bool,
    "integer": _is_integer,
    "null": lambda value: value is None,
    "number": _is_number,
    "object": lambda value: isinstance(value, Mapping),
    "string": lambda value: isinstance(value, str),
}


def inline_references(schema: Schema) -> dict[str, Any]:
    """Replace references by their definitions, except for definitions that contain themselves."""
    definitions = {**(schema.get("definitions") or {}), **(schema.get("$defs") or {})}
    recursive = {name for name in definitions if name in _reachable(name, definitions)}

    def expand(part: Any, *, is_root: bool = False) -> Any:
        if isinstance(part, list):
            return [expand(item) for item in part]
        if not isinstance(part, Mapping):
            return part
        name = _reference(part)
        rest = {key: _without_mapping(key, inner) for key, inner in part.items() if key != "$ref"}
        rest = {key: expand(inner) for key, inner in rest.items()}
        if name not in definitions:
            return {**rest, **({"$ref": part["$ref"]} if "$ref" in part else {})}
        if name in recursive and not is_root:
            return {**rest, "$ref": f"#/$defs/{name}"}
        return {**expand(definitions[name]), **rest}

    bare = {key: inner for key, inner in schema.items() if key not in {"$defs", "definitions"}}
    whole: dict[str, Any] = expand(bare, is_root=True)
    if recursive:
        whole["$defs"] = {name: expand(definitions[name]) for name in sorted(recursive)}
    return whole


def _reachable(name: str, definitions: Mapping[str, Any]) -> set[str]:
    """Find the definitions that one refers to, directly or through others."""
    reached: set[str] = set()
    left = [definitions[name]]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, Mapping):
            left += part.values()
            referred = _reference(part)
            if referred in definitions and referred not in reached:
                reached.add(referred)
                left.append(definitions[referred])
    return reached


def _reference(part: Mapping[str, Any]) -> str:
    reference = part.get("$ref")
    return reference.rpartition("/")[2] if isinstance(reference, str) else ""


def _without_mapping(key: str, inner: Any) -> Any:
    """Remove from a discriminator the places of its definitions, which are not there any more."""
    if key != "discriminator" or not isinstance(inner, Mapping) or "mapping" not in inner:
        return inner
    return {name: part for name, part in inner.items() if name != "mapping"}


def prune_schema(schema: Any) -> Any:
    """Copy a schema without the parts that cost tokens and tell a model nothing."""
    if isinstance(schema, list):
        return [prune_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, Mapping):
            kept[key] = {name: prune_schema(inner) for name, inner in value.items()}
        elif key in _VALUES and value is not None:
            kept[key] = value
        elif not _is_noise(key, value):
            kept[key] = prune_schema(value)
    return kept


def _is_noise(key: str, value: Any) -> bool:
    return (
        key in _NOISE
        or value is None
        or (key == "additionalProperties" and isinstance(value, bool))
    )
