"""Blocks as the core reads them; what is sent of each is in `test_shapes.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from phospho_multimodal import UnsupportedContentError
from phospho_multimodal.images.source import ImageSource
from phospho_multimodal.messages.content_blocks import quote_name, read_content
from shapes import BLOCKS, DATA_URL, URL, Picture, Shape

IMAGES = [shape for shape in BLOCKS if isinstance(shape.becomes, Picture)]


def values(block: object) -> Iterator[object]:
    """Everything that stands in a block, at any depth."""
    yield block
    inner: Any = block.values() if isinstance(block, Mapping) else ()
    for value in block if isinstance(block, list) else inner:
        yield from values(value)


@pytest.mark.parametrize("shape", IMAGES, ids=[shape.name for shape in IMAGES])
def test_a_picture_is_read_without_a_copy(shape: Shape) -> None:
    (image,) = read_content(shape.block)
    assert isinstance(image, ImageSource)
    assert any(value is image.value for value in values(shape.block))


def test_the_order_of_parts_stays_and_strings_in_a_list_are_text() -> None:
    parts = list(read_content(["one", {"type": "image", "url": URL}, {"text": "two"}]))
    assert [part if isinstance(part, str) else part.url for part in parts] == ["one", URL, "two"]


@pytest.mark.parametrize("content", [f"Look at {URL}", [f"Look at {URL}"], DATA_URL, {"text": URL}])
def test_no_url_is_picked_out_of_a_text(content: Any) -> None:
    assert [type(part) for part in read_content(content)] == [str]


@pytest.mark.parametrize(
    ("content", "parts"),
    [("seen", ["seen"]), ({"text": "seen"}, ["seen"]), (None, []), ([], []), ("", [])],
)
def test_a_tool_result_may_be_short(content: Any, parts: list[str]) -> None:
    assert list(read_content({"type": "tool_result", "content": content})) == parts


@pytest.mark.parametrize("block", [7, None, b"bytes", [[7]], {"type": "tool_result", "content": 7}])
def test_what_is_no_block_is_named(block: Any) -> None:
    with pytest.raises(UnsupportedContentError, match=r"A block is a (int|NoneType|bytes)"):
        list(read_content(block))


def test_a_name_in_an_error_is_short() -> None:
    assert quote_name("role") == "'role'"
    assert len(quote_name("a" * 1_000_000)) < 50
