"""Which object of an answer a schema describes, and which values it gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from phospho_multimodal.tools.answer_objects import find_answer
from structured_replies import FULL, READABLE, UNREADABLE, Receipt

OPTIONAL = Receipt.model_json_schema()


@pytest.mark.parametrize("text", READABLE)
def test_the_object_with_most_keys_of_the_schema_is_taken(text: str) -> None:
    assert find_answer(text, OPTIONAL) == FULL


@pytest.mark.parametrize("text", UNREADABLE)
def test_an_object_without_a_key_of_the_schema_is_not_an_empty_answer(text: str) -> None:
    assert find_answer(text, OPTIONAL) is None


def test_a_name_around_an_object_is_not_the_name_in_it() -> None:
    schema = {"properties": {"name": {"type": "string"}, "legs": {"type": "integer"}}}
    call = '{"name": "Animal", "arguments": {"name": "cat"}}'
    assert find_answer(call, schema, "Animal") == {"name": "cat"}
    assert find_answer(call, schema, "Plant") is None
    assert find_answer('{"name": "cat", "legs": 4}', schema, "Animal") == {"name": "cat", "legs": 4}
    noted = {"name": "cat", "input": {"note": "asleep"}}
    assert find_answer(json.dumps(noted), schema, "Animal") == noted


def test_a_wrapper_that_is_a_key_of_the_schema_stays() -> None:
    schema = {"properties": {"properties": {"type": "object"}, "shop": {"type": "string"}}}
    assert find_answer('{"properties": {"shop": "A"}}', schema) == {"properties": {"shop": "A"}}


NOTICE = {"properties": {name: {"type": "string"} for name in ("type", "title", "name", "id")}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"type": "object", "properties": {"id": "7"}}', {"id": "7"}),
        ('{"title": "Notice", "type": "object", "properties": {"id": "7"}}', {"id": "7"}),
        ('{"$defs": {}, "type": "object", "properties": {"id": "7"}}', {"id": "7"}),
        (
            '{"type": "object", "properties": {"type": "sale"}, "additionalProperties": false}',
            {"type": "sale"},
        ),
        ('{"type": "object", "properties": {"id": {"type": "string"}}, "required": []}', None),
        ('{"type": "object", "properties": {"other": "7"}}', None),
        ('{"title": "Other", "type": "object", "properties": {"other": "7"}}', None),
        ('{"title": "Other", "type": "object", "properties": {"id": "7"}}', None),
        (
            '{"type": "sale", "properties": {"rooms": 3}}',
            {"type": "sale", "properties": {"rooms": 3}},
        ),
        ('{"type": "object", "id": "7"}', {"type": "object", "id": "7"}),
    ],
)
def test_a_schema_around_an_object_is_not_its_type_and_title(text: str, value: Any) -> None:
    assert find_answer(text, NOTICE, "Notice") == value


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({}, '{"any": 1.50}', {"any": 1.5}),
        ({}, "{}", None),
        (OPTIONAL, '{"vat_rate": 7.00}', {"vat_rate": "7.00"}),
        (OPTIONAL, '{"total": null}', {"total": None}),
        (
            {"$defs": {"Node": OPTIONAL}, "$ref": "#/$defs/Node"},
            '{"node": {"vat_rate": 7.0}}',
            {"vat_rate": "7.0"},
        ),
        (
            {"anyOf": [{"properties": {"a": {"type": "string"}}}, OPTIONAL]},
            '{"x": 1} {"a": 3.10}',
            {"a": "3.10"},
        ),
        (
            {"properties": {"rows": {"type": "array", "items": OPTIONAL}}},
            '{"rows": [{"vat_rate": 7.10, "total": 1.10}]}',
            {"rows": [{"vat_rate": "7.10", "total": 1.1}]},
        ),
    ],
)
def test_values_are_read_as_the_schema_takes_them(
    schema: dict[str, Any], text: str, value: Any
) -> None:
    assert find_answer(text, schema) == value


LINES = {
    "$defs": {"Line": {"properties": {"name": {"type": "string"}, "price": {"type": "number"}}}},
    "properties": {
        "lines": {
            "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Line"}}, {"type": "null"}]
        },
        "first": {"anyOf": [{"$ref": "#/$defs/Line"}, {"type": "null"}]},
        "free": {"type": "object"},
        "rates": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ('{"lines": [{"name": "tea", "price": 2}]}', True),
        ('{"lines": [{"name": "tea", "other": 2}, {}]}', True),
        ('{"lines": [{"name": "tea"}, {"Name": "milk"}]}', False),
        ('{"lines": [{"item": {"name": "tea"}}]}', False),
        ('{"lines": null, "first": null}', True),
        ('{"first": {"Price": 2}}', False),
        ('{"first": {"error": "dark"}}', False),
        ('{"free": {"Name": "tea"}, "rates": {"Name": 2}}', True),
    ],
)
def test_no_object_within_an_object_loses_its_values(text: str, *, is_taken: bool) -> None:
    assert (find_answer(text, LINES) is not None) is is_taken
