"""Which arguments a tool's schema rules out, held against what pydantic refuses."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from phospho_multimodal.tools.schema import coerce_to_text, matches_schema


class Tree(BaseModel):
    """Refers to itself."""

    name: str
    branches: list[Tree] = []


KINDS: list[Any] = [
    int,
    float,
    bool,
    str,
    int | None,
    str | None,
    int | str,
    float | list[int],
    Literal["sun", "rain"],
    list[int],
    list[str | None],
    dict[str, int],
    dict[str, Any],
    Tree,
    list[Tree],
    Any,
]
VALUES: list[Any] = [
    None,
    True,
    0,
    1,
    21,
    21.5,
    "",
    "21",
    "21.5",
    "yes",
    "sun",
    "fog",
    [],
    [1],
    ["1"],
    ["x"],
    [None],
    {},
    {"a": 1},
    {"a": "x"},
    {"name": "oak"},
    {"name": "oak", "branches": [{"name": "twig", "branches": []}]},
    {"name": "oak", "branches": [{"branches": []}]},
    [{"name": "oak"}],
    [{"name": ["oak"]}],
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_ruled_out_is_what_pydantic_refuses(kind: Any) -> None:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    for value in VALUES:
        try:
            adapter.validate_python(value)
        except ValidationError:
            taken = False
        else:
            taken = True
        assert matches_schema(value, schema, schema) == taken, (value, schema)


@pytest.mark.parametrize(
    "schema",
    [{}, {"type": "colour"}, None, {"enum": "sun"}, {"$ref": "#/$defs/nowhere"}, True],
    ids=str,
)
def test_a_schema_that_says_nothing_rules_nothing_out(schema: Any) -> None:
    assert matches_schema("fog", schema, {})


def test_a_schema_that_only_refers_to_itself_rules_nothing_out() -> None:
    root = {"$defs": {"A": {"$ref": "#/$defs/A"}}}
    assert matches_schema("fog", {"$ref": "#/$defs/A"}, root)


def test_nothing_is_taken_where_nothing_is_the_default() -> None:
    assert matches_schema(None, {"type": "string", "default": None}, {})
    assert not matches_schema(None, {"type": "string"}, {})


@pytest.mark.parametrize(
    ("value", "schema", "becomes"),
    [
        (75001, {"type": "string"}, "75001"),
        (42.5, {"type": "string"}, "42.5"),
        (True, {"type": "string"}, "true"),
        (5, {"anyOf": [{"type": "string"}, {"type": "null"}]}, "5"),
        (2, {"type": "string", "enum": ["1", "2"]}, "2"),
        (3, {"type": "string", "enum": ["1", "2"]}, 3),
        (5, {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 5),
        (21.5, {"type": "integer"}, 21.5),
        (21.5, {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 21.5),
        (5, {"type": "array"}, 5),
        ([5], {"type": "string"}, [5]),
        (5, {}, 5),
    ],
)
def test_a_number_becomes_text_where_text_alone_is_taken(
    value: Any, schema: Any, becomes: Any
) -> None:
    written = coerce_to_text(value, schema, schema)
    assert (written, type(written)) == (becomes, type(becomes))
