"""`detail="tiles"` and `multi_image="auto"` through both frameworks' models."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from langchain_core.documents.base import Blob
from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from PIL import Image

from fault_server import FaultServer, answer
from langchain_phospho import ChatPhospho, PhosphoImageBlobParser
from llama_index_phospho import Phospho
from pictures import encoded

FILE = encoded(Image.linear_gradient("L").resize((160, 90)), "PNG")
URL = "data:image/png;base64," + base64.b64encode(FILE).decode()
TILES: dict[str, Any] = {"detail": "tiles", "max_image_side": 64, "max_tiles": 6}


@pytest.fixture
def server():
    with FaultServer(answer("Read.")).running() as running:
        yield running


def by_langchain(server: FaultServer, urls: list[str], **options: Any) -> dict[str, Any]:
    model = ChatPhospho(base_url=server.base_url, **options)
    blocks: list[str | dict[Any, Any]] = [{"type": "text", "text": "Read it."}]
    blocks += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return model.invoke([HumanMessage(blocks)]).response_metadata


def by_llama_index(server: FaultServer, urls: list[str], **options: Any) -> dict[str, Any]:
    model = Phospho(base_url=server.base_url, **options)
    images = [ImageBlock(image=base64.b64decode(url.partition(",")[2])) for url in urls]
    raw = model.chat([ChatMessage(blocks=[TextBlock(text="Read it."), *images])]).raw
    assert isinstance(raw, dict)
    return raw


BOTH = pytest.mark.parametrize("ask", [by_langchain, by_llama_index])


@BOTH
def test_a_model_sends_tiles(server: FaultServer, ask):
    metadata = ask(server, [URL], **TILES)

    assert metadata["images_billed"] == server.billed == 6
    assert metadata["images"][0]["changes"][-2].startswith("tile 1 of 6")


@BOTH
def test_a_model_decides_about_several_images(server: FaultServer, ask):
    files = [encoded(Image.new("L", (80, 60), shade)) for shade in range(10)]
    urls = ["data:;base64," + base64.b64encode(file).decode() for file in files]

    assert ask(server, urls, multi_image="auto")["image_policy"] == "each"
    assert ask(server, urls[:3], multi_image="auto")["image_policy"] == "montage"


@pytest.mark.parametrize("model", [ChatPhospho, Phospho])
def test_a_model_with_a_wrong_detail_is_not_made(model):
    with pytest.raises(Exception, match="detail must be 'auto' or 'tiles'"):
        model(base_url="http://127.0.0.1:1", detail="high")


def test_a_parser_of_documents_sends_tiles_of_all_pixels(server: FaultServer):
    parser = PhosphoImageBlobParser(model=ChatPhospho(base_url=server.base_url, **TILES))

    list(parser.lazy_parse(Blob.from_data(FILE, mime_type="image/png")))

    assert server.billed == 6


def test_a_default_image_keeps_its_pixels_for_tiles(server: FaultServer):
    model = ChatPhospho(base_url=server.base_url, default_image=FILE, **TILES)

    model.invoke("What does the screen say?")

    assert server.billed == 6
