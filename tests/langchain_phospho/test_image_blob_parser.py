"""Pictures that become documents, one each."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.document_loaders import BaseBlobParser, BaseLoader, BlobLoader
from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from langchain_core.load import dumps
from PIL import Image

from fresh_python import in_fresh_python
from langchain_phospho import ChatPhospho, PhosphoImageBlobParser
from langchain_phospho.errors import PhosphoImageError
from phospho_multimodal import ImageError, ServiceError
from pictures import draw, encoded


@pytest.fixture
def parser(model: ChatPhospho) -> PhosphoImageBlobParser:
    return PhosphoImageBlobParser(model)


def test_a_picture_in_memory_becomes_one_document(
    parser: PhosphoImageBlobParser, endpoint: Any, red: Any
) -> None:
    blob = Blob.from_data(red.data, mime_type="image/png", metadata={"page": 3})
    (document,) = parser.lazy_parse(blob)
    assert document.page_content == "You asked: Describe this image."
    metadata = document.metadata
    assert (metadata["page"], metadata["source"]) == (3, None)
    assert (metadata["model_name"], metadata["cost_usd"]) == ("phospho-multimodal", 0.01)
    assert metadata["images"][0]["sha256"] == red.sha256
    assert json.loads(json.dumps(metadata)) == metadata
    assert dumps(document)
    assert [request.picture for request in endpoint.received] == [red.sha256]


def test_a_picture_on_disk_tells_where_it_came_from(
    parser: PhosphoImageBlobParser, endpoint: Any, red: Any, tmp_path: Path
) -> None:
    path = tmp_path / "scan.txt"  # the type is in the bytes
    path.write_bytes(red.data)
    (document,) = parser.parse(Blob.from_path(path))
    assert document.metadata["source"] == str(path)
    (named,) = parser.parse(Blob.from_path(path, metadata={"source": "page 1", "attempts": "mine"}))
    assert (named.metadata["source"], named.metadata["attempts"]) == ("page 1", "mine")
    assert [request.picture for request in endpoint.received] == [red.sha256] * 2


def test_a_prompt_is_asked_as_it_is(model: ChatPhospho, endpoint: Any, red: Any) -> None:
    parser = PhosphoImageBlobParser(model, prompt="Answer as {json}: {}")
    parser.parse(Blob.from_data(red.data))
    assert endpoint.received[0].text == "Answer as {json}: {}"


def saved(array: Any) -> Blob:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return Blob.from_data(buffer.getvalue(), mime_type="application/x-npy")


PIXELS = np.asarray(draw(24, 16))


@pytest.mark.parametrize(
    ("array", "looks_like"),
    [
        (PIXELS, draw(24, 16)),
        (PIXELS[:, :, 0], draw(24, 16).getchannel(0)),
        (PIXELS[:, :, :1], draw(24, 16).getchannel(0)),
        (np.asarray(draw(24, 16).convert("RGBA")), draw(24, 16)),
        (np.asarray(draw(24, 16).convert("LA")), draw(24, 16).convert("L")),
        (np.asfortranarray(PIXELS), draw(24, 16)),
        (PIXELS[::2, ::2], draw(24, 16).resize((12, 8), Image.Resampling.NEAREST)),
        (PIXELS[:, :, 0] > 200, draw(24, 16).getchannel(0).point(lambda value: value > 200, "1")),
    ],
    ids=["RGB", "grey", "one channel", "RGBA", "LA", "by columns", "strided", "black and white"],
)
def test_arrays_as_the_parsers_of_pdf_files_send_them_are_pictures(
    array: Any, looks_like: Image.Image, parser: PhosphoImageBlobParser, endpoint: Any
) -> None:
    document = next(parser.lazy_parse(saved(array)))
    assert document.page_content
    sent = Image.open(io.BytesIO(_bytes(endpoint.received[0])))
    if array.shape == (8, 12, 3):  # which pixels a resize takes is its own affair
        assert sent.size == (12, 8)
    else:
        assert sent.convert("RGB").tobytes() == looks_like.convert("RGB").tobytes()


def _bytes(request: Any) -> bytes:
    import pybase64  # noqa: PLC0415

    return bytes(pybase64.b64decode(request.image_url, validate=True))


class Thing:
    """Something that only pickle can store."""


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 7), np.uint8),
        np.zeros((4,), np.complex128),
        np.array([[Thing()]], object),
        np.zeros((0, 0), np.uint8),
    ],
    ids=["seven channels", "complex", "pickled", "nothing"],
)
def test_an_array_that_is_no_picture_is_an_image_error(
    array: Any, parser: PhosphoImageBlobParser, endpoint: Any
) -> None:
    with pytest.raises(ImageError):
        parser.parse(saved(array))
    assert endpoint.received == []


def test_an_array_that_lies_about_its_size_is_an_image_error(
    parser: PhosphoImageBlobParser, endpoint: Any
) -> None:
    data = saved(PIXELS).as_bytes()
    lies = [
        data.replace(b"(16, 24, 3)", b"(99999, 99999, 3)")[: len(data)],
        data[:-1],
        data[:20],
        b"\x93NUMPY",
    ]
    for lie in lies:
        with pytest.raises(ImageError):
            parser.parse(Blob.from_data(lie))
    assert endpoint.received == []


def test_without_numpy_an_array_is_an_image_error_that_says_so() -> None:
    done = in_fresh_python(
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from phospho_multimodal.images.arrays import image_from_npy\n"
        "try:\n    image_from_npy(b'')\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    assert done.stdout.startswith("ImageError "), done.stderr
    assert "pip install numpy" in done.stdout


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (Blob.from_data(b"%PDF-1.7"), "a PDF document"),
        (Blob.from_data("some text", mime_type="image/png"), "text"),
        (Blob.from_data(b"", mime_type="image/png"), "0 bytes"),
        (Blob.from_path("nowhere.png"), "nowhere.png"),
        (Blob.from_data(encoded(kind="JPEG")[:300]), "broken"),
    ],
    ids=["a PDF", "text", "nothing", "no file", "cut off"],
)
def test_what_cannot_be_read_raises_before_anything_is_sent(
    blob: Blob, said: str, parser: PhosphoImageBlobParser, endpoint: Any
) -> None:
    with pytest.raises(PhosphoImageError, match=said):
        next(parser.lazy_parse(blob))
    assert endpoint.received == []


def test_a_failure_of_the_service_raises(endpoint: Any, red: Any) -> None:
    parser = PhosphoImageBlobParser(ChatPhospho(base_url=endpoint.base_url, max_retries=0))
    endpoint.reply({"detail": "no"}, status=503)
    with pytest.raises(ServiceError):
        parser.parse(Blob.from_data(red.data))


class Folder(BlobLoader):
    def __init__(self, path: Path) -> None:
        self.path = path

    def yield_blobs(self) -> Iterator[Blob]:
        for path in sorted(self.path.iterdir()):
            yield Blob.from_path(path)


class FolderLoader(BaseLoader):
    """What langchain-community's GenericLoader does."""

    def __init__(self, blobs: BlobLoader, parser: BaseBlobParser) -> None:
        self.blobs, self.parser = blobs, parser

    def lazy_load(self) -> Iterator[Document]:
        for blob in self.blobs.yield_blobs():
            yield from self.parser.lazy_parse(blob)


def test_a_loader_makes_one_document_for_each_file_and_is_lazy(
    parser: PhosphoImageBlobParser, endpoint: Any, red: Any, blue: Any, tmp_path: Path
) -> None:
    for name, picture in (("a.png", red), ("b.png", blue)):
        (tmp_path / name).write_bytes(picture.data)
    loader = FolderLoader(Folder(tmp_path), parser)
    first = next(iter(loader.lazy_load()))
    assert first.metadata["source"] == str(tmp_path / "a.png")
    assert len(endpoint.received) == 1
    documents = loader.load()
    assert [Path(document.metadata["source"]).name for document in documents] == ["a.png", "b.png"]
    assert len(asyncio.run(loader.aload())) == 2
