"""A schema as the model reads it: complete in itself, and no longer than that takes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from phospho_multimodal.tools.schema import inline_references, prune_schema


class Node(BaseModel):
    """Refers to itself."""

    name: str
    children: list[Node] = []


class Folder(BaseModel):
    """Refers to itself through others."""

    files: list[File]


class File(BaseModel):
    """Refers to what refers to it."""

    parent: Folder | None = None
    size: Size


class Size(BaseModel):
    """Refers to nothing."""

    value: int


class Cat(BaseModel):
    """One kind."""

    kind: Literal["cat"]


class Dog(BaseModel):
    """Another kind."""

    kind: Literal["dog"]
    size: Size


class Pet(BaseModel):
    """Of one of two kinds."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    tree: Node | None = None


def references(schema: Any) -> set[str]:
    return {part.partition('"')[0] for part in json.dumps(schema).split('"$ref": "#/$defs/')[1:]}


@pytest.mark.parametrize(
    ("kind", "recurring"),
    [(Node, {"Node"}), (Folder, {"Folder", "File"}), (Dog, set()), (Pet, {"Node"})],
)
def test_only_what_recurs_is_referred_to_and_all_that_is_referred_to_is_there(
    kind: type[BaseModel], recurring: set[str]
) -> None:
    schema = inline_references(kind.model_json_schema())
    assert schema.get("$defs", {}).keys() == recurring
    assert references(schema) == recurring
    assert schema["properties"].keys() == kind.model_fields.keys()
    assert '"items": {}' not in json.dumps(schema)


def test_each_alternative_of_a_discriminator_is_shown() -> None:
    pet = prune_schema(inline_references(Pet.model_json_schema()))["properties"]["pet"]
    assert pet["discriminator"] == {"propertyName": "kind"}
    assert [one["properties"]["kind"]["const"] for one in pet["oneOf"]] == ["cat", "dog"]
    assert pet["oneOf"][1]["properties"]["size"]["properties"] == {"value": {"type": "integer"}}


def test_what_stands_beside_a_reference_stays() -> None:
    schema = {
        "definitions": {"Size": {"type": "integer", "description": "any"}},
        "properties": {"size": {"$ref": "#/definitions/Size", "description": "this"}},
    }
    assert inline_references(schema) == {
        "properties": {"size": {"type": "integer", "description": "this"}}
    }
    unknown = {"properties": {"size": {"$ref": "https://x.example/size.json"}}}
    assert inline_references(unknown) == unknown
