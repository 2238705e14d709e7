"""What a table of forms cannot say of blocks; the table itself is `tests/shapes.py`."""

from __future__ import annotations

import io
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from fault_server import FaultServer
from pictures import draw, encoded

PICTURE = encoded()


def sent(server: FaultServer) -> bytes | str:
    (request,) = server.requests
    url = request.item["image_url"]
    return url if url.startswith("http") else request.image


@pytest.mark.parametrize("kind_of_file", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_a_file_of_any_kind_is_not_taken_for_text(
    llm: Any, server: FaultServer, kind_of_file: str
) -> None:
    llm.complete("What?", [ImageBlock(image=encoded(draw(), kind_of_file))])
    assert server.requests[0].image


def test_a_block_filled_after_validation(llm: Any, server: FaultServer) -> None:
    block = ImageBlock(image=PICTURE)
    block.image = PICTURE
    llm.complete("What?", [block])
    assert sent(server) == PICTURE


def test_a_pil_image(llm: Any, server: FaultServer) -> None:
    llm.complete("What?", [draw()])
    assert isinstance(sent(server), bytes)


def test_one_block_can_be_asked_about_twice(llm: Any, server: FaultServer) -> None:
    block = ImageBlock(image=io.BytesIO(PICTURE))
    for _ in range(2):
        llm.complete("What?", [block])
    assert [request.image for request in server.requests] == [PICTURE, PICTURE]


def test_blocks_inside_blocks_count_and_thoughts_do_not(llm: Any, server: FaultServer) -> None:
    content = [TextBlock(text="from a source"), ImageBlock(image=PICTURE)]
    blocks = [
        CachePoint(cache_control={"type": "ephemeral"}),
        TextBlock(text="Read this"),
        ThinkingBlock(content="secret thought"),
        CitableBlock(title="t", source="s", content=content),
        CitationBlock(
            cited_content="as quoted", source="s", title="t", additional_location_info={}
        ),
        ToolCallBlock(tool_name="search"),
    ]
    llm.chat([ChatMessage(blocks=blocks)])
    assert server.requests[0].item["text"] == "Read this\nfrom a source\nas quoted"
    assert sent(server) == PICTURE
