"""Which object of an answer a schema describes, and which values it gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from phospho_multimodal.tools.answer_objects import find_answer

OPTIONAL = {
    "type": "object",
    "properties": {
        "shop": {"type": "string"},
        "total": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "vat_rate": {"type": "string"},
    },
}
FULL = {"shop": "Café", "total": 12.5}
WRITTEN = '{"shop": "Café", "total": 12.5}'


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN,
        f"Sure! ```json\n{WRITTEN}\n``` I hope that {{helps}}.",
        "{'shop': 'Café', 'total': 12.50,}",
        '{{"shop": "Café", "total": 12.5}}',
        f"[{WRITTEN}]",
        f"{'A long word before it. ' * 20}{WRITTEN}{' A long word after it.' * 20}",
        f'{{"receipt": {WRITTEN}}}',
        f'{{"properties": {WRITTEN}}}',
        f'{{"type": "object", "properties": {WRITTEN}}}',
        f'{{"title": "Receipt", "type": "object", "data": {WRITTEN}}}',
        f'{{"name": "Receipt", "arguments": {WRITTEN}}}',
        f'{{"note": "I read the receipt."}}\n{WRITTEN}',
        f'<think>{{"shop": "Bar"}}</think>{WRITTEN}',
        f'{{"type": "object", "properties": {{"shop": {{"type": "string"}}}}}}\n{WRITTEN}',
        f'{{"shop": {{"type": "string"}}, "total": {{"type": "number"}}}}\n{WRITTEN}',
        f'{{"shop": "Bar"}}\n{WRITTEN}',
        f'{WRITTEN}\n{{"shop": "Bar", "total": 1}}',
        f'{{"shop": Bar, "total": 1}}\n{WRITTEN}',
    ],
)
def test_the_object_with_most_keys_of_the_schema_is_taken(text: str) -> None:
    assert find_answer(text, OPTIONAL, "Receipt") == FULL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The picture is too dark.",
        "{}",
        '{"error": "The picture is too dark."}',
        '{"error": {"message": "The picture is too dark."}}',
        '{"Shop": "Café", "Total": 12.5}',
        '{"Shop": "Café", "total": 12.5}',
        '{"shop": "Café", "vatRate": "7"}',
        '{"shop": "Café", "VAT rate": "7"}',
        '{"type": "object", "properties": {"shop": {"type": "string"}}}',
        '{"shop": {"type": "string"}, "total": {"anyOf": [{"type": "number"}]}}',
        '{"first": {"shop": "A"}, "second": {"shop": "B"}}',
        '{"name": "Invoice", "arguments": {"shop": "Café"}}',
        '{"outer": {"inner": {"shop": "Café"}}}',
        '{"shop": "Ca',
        '{"shop": Café}',
        '{"shop": "Café", "shop": "Bar"}',
        f"<think>{WRITTEN}</think>",
    ],
)
def test_an_object_without_a_key_of_the_schema_is_not_an_empty_answer(text: str) -> None:
    assert find_answer(text, OPTIONAL, "Receipt") is None


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
