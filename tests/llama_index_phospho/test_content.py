"""Blocks, nodes and documents: which picture and which text are sent for each form."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.schema import ImageDocument, ImageNode, MediaResource, NodeWithScore, TextNode
from pydantic import AnyUrl

from fault_server import FaultServer
from llama_index_phospho import Phospho
from llama_index_phospho.content import message_turns
from phospho_multimodal import ImageError, UnsupportedContentError
from pictures import draw, encoded

# Nobody listens there: whoever opens it fails.
URL = "http://127.0.0.1:9/a%20b.png?sig=x%2By%3D&e=1"
PICTURE = encoded()
BASE64 = base64.b64encode(PICTURE).decode()
DATA_URL = f"data:image/jpeg;base64,{BASE64}"


@pytest.fixture
def kind() -> type[Phospho]:
    """One class will do: both share this code."""
    return Phospho


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "picture.jpg"
    file.write_bytes(PICTURE)
    return file


Form = Callable[[Path], Any]

BLOCKS: dict[str, tuple[Form, bytes | str]] = {
    "bytes": (lambda _: ImageBlock(image=PICTURE), PICTURE),
    "base64 bytes": (lambda _: ImageBlock(image=BASE64.encode()), PICTURE),
    "base64 text": (lambda _: ImageBlock(image=BASE64), PICTURE),
    "base64 with line breaks": (
        lambda _: ImageBlock(image=base64.encodebytes(PICTURE)),
        PICTURE,
    ),
    "base64 for URLs, unpadded": (
        lambda _: ImageBlock(image=base64.urlsafe_b64encode(PICTURE).rstrip(b"=")),
        PICTURE,
    ),
    "a data URL as image": (lambda _: ImageBlock(image=DATA_URL), PICTURE),
    "a data URL as url": (lambda _: ImageBlock(url=DATA_URL), PICTURE),
    "a URL as image": (lambda _: ImageBlock(image=URL), URL),
    "a file object": (lambda _: ImageBlock(image=io.BytesIO(PICTURE)), PICTURE),
    "a file object read before": (lambda path: ImageBlock(image=read_before(path)), PICTURE),
    "a path": (lambda path: ImageBlock(path=path), PICTURE),
    "a path as text": (lambda path: ImageBlock(path=str(path)), PICTURE),
    "a URL": (lambda _: ImageBlock(url=URL), URL),
    "an AnyUrl": (lambda _: ImageBlock(url=AnyUrl(URL)), URL),
    "bytes before path and URL": (
        lambda path: ImageBlock(image=PICTURE, path=__file__, url=URL),
        PICTURE,
    ),
    "a path before a URL": (lambda path: ImageBlock(path=path, url=URL), PICTURE),
    "empty bytes beside a URL": (lambda _: ImageBlock(image=b"", url=URL), URL),
    "a document of an image type": (lambda path: DocumentBlock(path=path), PICTURE),
    "a document of image bytes": (lambda _: DocumentBlock(data=PICTURE), PICTURE),
    "a document of an image URL": (
        lambda _: DocumentBlock(url=URL, document_mimetype="image/png"),
        URL,
    ),
}
DOCUMENTS: dict[str, tuple[Form, bytes | str]] = {
    "node: base64": (lambda _: ImageNode(image=BASE64), PICTURE),
    "node: a data URL": (lambda _: ImageNode(image=DATA_URL), PICTURE),
    "node: a path": (lambda path: ImageNode(image_path=str(path)), PICTURE),
    "node: a URL": (lambda _: ImageNode(image_url=URL), URL),
    "node: base64 before a URL": (lambda _: ImageNode(image=BASE64, image_url=URL), PICTURE),
    "node with a score": (lambda _: NodeWithScore(node=ImageNode(image=BASE64)), PICTURE),
    "document: base64": (lambda _: ImageDocument(image=BASE64), PICTURE),
    "document: a data URL": (lambda _: ImageDocument(image=DATA_URL), PICTURE),
    "document: bytes": (
        lambda _: ImageDocument(image_resource=MediaResource(data=PICTURE)),
        PICTURE,
    ),
    "document: a path": (lambda path: ImageDocument(image_path=str(path)), PICTURE),
    "document: a URL": (  # image_url= would open it, in core's own constructor
        lambda _: ImageDocument(image_resource=MediaResource(url=AnyUrl(URL))),
        URL,
    ),
    "core: bytes": (lambda _: PICTURE, PICTURE),
    "core: a path": (lambda path: path, PICTURE),
    "core: base64": (lambda _: BASE64, PICTURE),
    "core: a data URL": (lambda _: DATA_URL, PICTURE),
    "core: a URL": (lambda _: URL, URL),
    "core: a file object": (lambda _: io.BytesIO(PICTURE), PICTURE),
}


def read_before(path: Path) -> io.BytesIO:
    file = io.BytesIO(path.read_bytes())
    file.read()
    return file


def sent(server: FaultServer) -> bytes | str:
    (request,) = server.requests
    url = request.item["image_url"]
    return url if url.startswith("http") else request.image


@pytest.mark.parametrize(("form", "expected"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_in_a_message(
    llm: Any, *, server: FaultServer, path: Path, form: Form, expected: bytes | str
) -> None:
    response = llm.chat([ChatMessage(blocks=[TextBlock(text="What?"), form(path)])])
    assert response.message.content == "You asked: What?"
    assert sent(server) == expected


EITHER = BLOCKS | DOCUMENTS


@pytest.mark.parametrize(("form", "expected"), EITHER.values(), ids=EITHER)
def test_an_image_document_of_a_completion(
    llm: Any, *, server: FaultServer, path: Path, form: Form, expected: bytes | str
) -> None:
    llm.complete("What?", image_documents=[form(path)])
    assert sent(server) == expected


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


@pytest.mark.parametrize(
    ("document", "says"),
    [
        pytest.param(ImageBlock(), "ImageBlock holds no image", id="an empty block"),
        pytest.param(ImageNode(text="a caption"), "ImageNode holds no image", id="an empty node"),
        pytest.param(ImageDocument(), "ImageDocument holds no image", id="an empty document"),
        pytest.param(TextNode(text="hi"), "TextNode holds no image", id="a text node"),
        pytest.param(
            ImageNode(metadata={"file_path": __file__}), "holds no image", id="a path in metadata"
        ),
        pytest.param(ImageBlock(path=__file__), "This is text", id="a text file"),
        pytest.param(ImageBlock(image=b"no image at all"), "no base64", id="text as bytes"),
        pytest.param(ImageBlock(image=b"A" * 60 + b"\xff"), "image", id="text, then bytes"),
        pytest.param(ImageBlock(image="picture.jpg"), "This is text", id="a path as image"),
        pytest.param(ImageNode(image_path="/nowhere.png"), "nowhere", id="no such file"),
        pytest.param(ImageNode(image="picture.jpg"), "never a path", id="a path as base64"),
        pytest.param(ImageNode(image="file:///etc/passwd"), "file: URL", id="a file URL in image"),
        pytest.param(ImageBlock(url="file:///etc/passwd"), "file: URL", id="a file URL"),
        pytest.param(7, "int is not an image", id="a number"),
        pytest.param("picture.jpg", "never a path", id="a path as text"),
    ],
)
def test_what_is_no_image_is_an_image_error(
    llm: Any, server: FaultServer, document: Any, says: str
) -> None:
    with pytest.raises(ImageError, match=says):
        llm.complete("What?", image_documents=[document])
    assert server.requests == []


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (AudioBlock(audio=b"RIFF"), "AudioBlock"),
        (VideoBlock(video=b"0000"), "VideoBlock"),
        (DocumentBlock(data=b"%PDF-1.7 and so on"), r"DocumentBlock \(application/pdf\)"),
        (DocumentBlock(data=b"words"), r"DocumentBlock \(of unknown type\)"),
        (CitableBlock(title="t", source="s", content=[DocumentBlock(data=b"%PDF-")]), "Document"),
    ],
)
def test_a_form_that_cannot_be_served_is_named(
    llm: Any, server: FaultServer, block: Any, says: str
) -> None:
    message = ChatMessage(blocks=[ImageBlock(image=PICTURE), block])
    with pytest.raises(UnsupportedContentError, match=says):
        llm.chat([message])
    if not isinstance(block, CitableBlock):
        with pytest.raises(UnsupportedContentError, match=says):
            llm.complete("What?", [block])
    assert server.requests == []


def test_a_block_of_a_kind_to_come_is_named() -> None:
    class HologramBlock(TextBlock.__base__):  # type: ignore[misc]
        pass

    message = ChatMessage()
    message.blocks.append(HologramBlock())
    with pytest.raises(UnsupportedContentError, match="HologramBlock"):
        message_turns([message])


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
