"""Write a JSON schema as a model reads it best: short, and complete in itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["inline_references", "prune_schema"]

# Of a JSON schema: what tells a model nothing, what holds schemas by name, what holds values.
_NOISE = {"title", "$schema"}
_BY_NAME = {"properties", "$defs", "definitions", "patternProperties"}
_VALUES = {"required", "enum", "const", "default", "examples"}


def inline_references(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Put each definition in the place of its references, except the definitions that recur.

    Args:
        schema: JSON schema of an object, as pydantic writes it.

    Returns:
        The schema. Under `$defs` it has what recurs, and nothing that it does not show is named.
    """
    definitions = {**(schema.get("definitions") or {}), **(schema.get("$defs") or {})}
    recurring = {name for name in definitions if name in _reached(name, definitions)}

    def expand(part: Any, *, is_root: bool = False) -> Any:
        if isinstance(part, list):
            return [expand(item) for item in part]
        if not isinstance(part, Mapping):
            return part
        name = _reference(part)
        rest = {key: _without_mapping(key, held) for key, held in part.items() if key != "$ref"}
        rest = {key: expand(held) for key, held in rest.items()}
        if name not in definitions:
            return {**rest, **({"$ref": part["$ref"]} if "$ref" in part else {})}
        if name in recurring and not is_root:
            return {**rest, "$ref": f"#/$defs/{name}"}
        return {**expand(definitions[name]), **rest}

    bare = {key: held for key, held in schema.items() if key not in {"$defs", "definitions"}}
    whole: dict[str, Any] = expand(bare, is_root=True)
    if recurring:
        whole["$defs"] = {name: expand(definitions[name]) for name in sorted(recurring)}
    return whole


def _reached(name: str, definitions: Mapping[str, Any]) -> set[str]:
    """Find the definitions that one refers to, also through others."""
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


def _without_mapping(key: str, held: Any) -> Any:
    """Leave out of a discriminator where its definitions stood; each of them has its value."""
    if key != "discriminator" or not isinstance(held, Mapping) or "mapping" not in held:
        return held
    return {name: part for name, part in held.items() if name != "mapping"}


def prune_schema(schema: Any) -> Any:
    """Leave out of a schema what costs words and says nothing.

    Args:
        schema: JSON schema, or a part of one.

    Returns:
        A copy without it.
    """
    if isinstance(schema, list):
        return [prune_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, Mapping):
            kept[key] = {name: prune_schema(held) for name, held in value.items()}
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
