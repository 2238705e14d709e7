"""Answers of models that were asked for an object: the answers with the object, and without it.

The tests of the core and of both adapters use them with the class below, whose fields are optional.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

__all__ = ["FULL", "READABLE", "UNREADABLE", "WRITTEN", "Cat", "Dog", "Node", "Pet", "Receipt"]


class Receipt(BaseModel):
    """What a receipt says, as far as it can be read."""

    shop: str | None = None
    total: float | None = None
    vat_rate: str | None = None


class Node(BaseModel):
    """A part that has parts."""

    name: str
    parts: list[Node] = []


class Cat(BaseModel):
    """A cat."""

    kind: Literal["cat"]


class Dog(BaseModel):
    """A dog."""

    kind: Literal["dog"]


class Pet(BaseModel):
    """A pet."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


FULL: dict[str, Any] = {"shop": "Café", "total": 12.5}
WRITTEN = '{"shop": "Café", "total": 12.5}'

READABLE = [
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
]
UNREADABLE = [
    "",
    "The image is too dark.",
    "{}",
    '{"error": "The image is too dark."}',
    '{"error": {"message": "The image is too dark."}}',
    '{"Shop": "Café", "Total": 12.5}',
    '{"Shop": "Café", "total": 12.5}',
    '{"shop": "Café", "vatRate": "7"}',
    '{"shop": "Café", "VAT rate": "7"}',
    '{"type": "object", "properties": {"shop": {"type": "string"}}}',
    '{"shop": {"type": "string"}, "total": {"anyOf": [{"type": "number"}]}}',
    '{"first": {"shop": "A"}, "second": {"shop": "B"}}',
    '{"name": "Invoice", "arguments": {"shop": "Café"}}',
    '{"name": "Receipt", "arguments": {"error": "The image is too dark."}}',
    '{"name": "Receipt", "arguments": {"Total": 12.5}}',
    '{"outer": {"inner": {"shop": "Café"}}}',
    '{"shop": "Ca',
    '{"shop": Café}',
    '{"shop": "Café", "shop": "Bar"}',
    f"<think>{WRITTEN}</think>",
]
