"""Pictures that become documents, one each."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.document_loaders import BaseBlobParser, BaseLoader, BlobLoader
from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps
from langchain_core.output_parsers import StrOutputParser
from langchain_core.vectorstores import InMemoryVectorStore
from PIL import Image

from fresh_python import in_fresh_python
from langchain_phospho import ChatPhospho, PhosphoImageBlobParser
from langchain_phospho.errors import PhosphoImageError
from phospho_multimodal import (
    APIStatusError,
    ConfigurationError,
    ImageError,
    ServiceError,
    Spending,
)
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
    assert document.metadata == {
        "model_name": "phospho-multimodal",
        "prompt": "Describe this image.",
        "page": 3,
    }
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
    assert named.page_content == document.page_content
    assert [request.picture for request in endpoint.received] == [red.sha256]


def test_a_prompt_is_asked_as_it_is(model: ChatPhospho, endpoint: Any, red: Any) -> None:
    parser = PhosphoImageBlobParser(model, prompt="Answer as {json}: {}")
    parser.parse(Blob.from_data(red.data))
    assert endpoint.received[0].text == "Answer as {json}: {}"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model.with_retry(),
        lambda model: model.bind(stop=["."]),
        lambda model: model.with_fallbacks([model]),
        lambda model: model.with_config(tags=["a"]),
        lambda model: model | StrOutputParser(),
        lambda _: FakeListChatModel(responses=["a"]),
        lambda _: "phospho-multimodal",
        lambda _: None,
    ],
)
def test_a_wrapped_model_is_refused_when_the_parser_is_made(model: ChatPhospho, wrap: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"takes a ChatPhospho, got \w+\. Pass the model"):
        PhosphoImageBlobParser(wrap(model))


# What is paid once.


def test_an_image_of_every_page_is_paid_once(
    parser: PhosphoImageBlobParser, endpoint: Any, red: Any, tmp_path: Path
) -> None:
    (tmp_path / "logo.png").write_bytes(red.data)
    pixels = Image.open(io.BytesIO(red.data))
    again = io.BytesIO()
    pixels.save(again, "BMP")  # the same pixels in another file
    blobs = [
        Blob.from_data(red.data, metadata={"page": 1}),
        Blob.from_data(red.data, metadata={"page": 2}),
        Blob.from_path(tmp_path / "logo.png"),
        Blob.from_data(again.getvalue()),
        saved(np.asarray(pixels)),
    ]
    documents = [document for blob in blobs for document in parser.parse(blob)]
    assert [document.metadata.get("page") for document in documents] == [1, 2, None, None, None]
    assert len({document.page_content for document in documents}) == 1
    assert len(endpoint.received) == 1


def test_another_image_another_prompt_and_another_parser_are_asked_about(
    model: ChatPhospho, endpoint: Any, red: Any, blue: Any
) -> None:
    parser = PhosphoImageBlobParser(model)
    parser.parse(Blob.from_data(red.data))
    parser.parse(Blob.from_data(blue.data))
    parser.prompt = "Which colour?"
    parser.parse(Blob.from_data(red.data))
    PhosphoImageBlobParser(model).parse(Blob.from_data(red.data))
    assert [(request.picture, request.text) for request in endpoint.received] == [
        (red.sha256, "Describe this image."),
        (blue.sha256, "Describe this image."),
        (red.sha256, "Which colour?"),
        (red.sha256, "Describe this image."),
    ]


def test_threads_that_parse_the_same_image_share_one_request(
    parser: PhosphoImageBlobParser, endpoint: Any, red: Any
) -> None:
    with ThreadPoolExecutor(8) as threads:
        parsed = list(threads.map(parser.parse, [Blob.from_data(red.data)] * 32))
    assert {document.page_content for (document,) in parsed} == {"You asked: Describe this image."}
    assert len(endpoint.received) == 1


def test_a_failure_is_not_remembered(endpoint: Any, red: Any) -> None:
    parser = PhosphoImageBlobParser(ChatPhospho(base_url=endpoint.base_url, max_retries=0))
    for status in (503, 400):
        endpoint.reply({"detail": "no"}, status=status)
        with pytest.raises(APIStatusError):
            parser.parse(Blob.from_data(red.data))
    (document,) = parser.parse(Blob.from_data(red.data))
    assert document.page_content == "You asked: Describe this image."


def test_a_parser_goes_to_another_process(
    parser: PhosphoImageBlobParser, endpoint: Any, red: Any
) -> None:
    parser.prompt = "Which?"
    parser.parse(Blob.from_data(red.data))
    for twin in (pickle.loads(pickle.dumps(parser)), copy.deepcopy(parser)):  # noqa: S301
        (document,) = twin.parse(Blob.from_data(red.data))
        assert document.page_content == "You asked: Which?"


def test_what_an_answer_cost_is_told_to_callbacks_the_log_and_the_ledger(
    endpoint: Any, red: Any, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []

    class Costs(BaseCallbackHandler):
        def on_llm_end(self, response: Any, **_: Any) -> None:
            told.append(response.generations[0][0].message.response_metadata)

    spending = Spending()
    model = ChatPhospho(base_url=endpoint.base_url, spending=spending, callbacks=[Costs()])
    endpoint.reply({"predictions": [{"description": "red"}]}, x_request_id="r-1")
    with caplog.at_level("INFO", "phospho_multimodal"):
        parser = PhosphoImageBlobParser(model)
        for _ in range(2):
            parser.parse(Blob.from_data(red.data))
    assert [(each["cost_usd"], each["attempts"], each["request_id"]) for each in told] == [
        (0.01, 1, "r-1")
    ]
    assert [line for line in caplog.messages if "r-1" in line] == [
        "Described an image: 1 billed, 0 in doubt, 0.01 USD, 1 attempts, request id r-1"
    ]
    assert spending.snapshot().images_billed == 1


# Vector stores and `index()`.


def test_every_vector_store_takes_the_metadata(
    parser: PhosphoImageBlobParser, red: Any, tmp_path: Path
) -> None:
    """Pinecone takes lists of strings too, Chroma refuses them; no store takes everything else."""
    (tmp_path / "a.png").write_bytes(red.data)
    blobs = [
        Blob.from_data(red.data),
        Blob.from_data(red.data, path="b.png", mime_type="image/png"),
        Blob.from_path(tmp_path / "a.png", metadata={"page": 3, "scanned": True}),
    ]
    for blob in blobs:
        (document,) = parser.parse(blob)
        assert {type(value) for value in document.metadata.values()} <= {str, int, float, bool}


def indexed(model: ChatPhospho, blobs: list[Blob], records: Any, **options: Any) -> Any:
    """Index what a new parser makes of the blobs, as a nightly job does."""
    prompt, store, cleanup = options["prompt"], options["store"], options["cleanup"]
    parser = PhosphoImageBlobParser(model, prompt=prompt)
    documents = [document for blob in blobs for document in parser.parse(blob)]
    done = index(
        documents,
        records,
        store,
        cleanup=cleanup,
        source_id_key="source",
        key_encoder="sha256",
    )
    return done["num_added"], done["num_skipped"], done["num_deleted"]


@pytest.mark.parametrize("cleanup", [None, "incremental", "full", "scoped_full"])
def test_unchanged_images_are_skipped_and_changed_ones_are_indexed_again(
    *, cleanup: Any, model: ChatPhospho, endpoint: Any, red: Any, blue: Any, tmp_path: Path
) -> None:
    for name, picture in (("a.png", red), ("b.png", red), ("c.png", blue)):
        (tmp_path / name).write_bytes(picture.data)
    blobs = [Blob.from_path(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    blobs.append(Blob.from_data(red.data, metadata={"source": "memory", "page": 1}))
    records = InMemoryRecordManager("images")
    records.create_schema()
    options = {"store": InMemoryVectorStore(DeterministicFakeEmbedding(size=8)), "cleanup": cleanup}

    def run(prompt: str) -> Any:
        for number in range(2):  # one for each distinct image
            reply = {"predictions": [{"description": "An image."}]}
            endpoint.reply(reply, x_request_id=f"{prompt} {number}")
        return indexed(model, blobs, records, prompt=prompt, **options)

    replaced = 0 if cleanup is None else 4
    assert run("What?") == (4, 0, 0)
    assert run("What?") == (0, 4, 0)
    assert run("Which?") == (4, 0, replaced)  # the prompt is part of the document
    assert len(endpoint.received) == 6


def test_chroma_takes_the_documents(model: ChatPhospho, red: Any, tmp_path: Path) -> None:
    chroma = pytest.importorskip("langchain_chroma")
    (tmp_path / "a.png").write_bytes(red.data)
    parser = PhosphoImageBlobParser(model)
    store = chroma.Chroma("images", DeterministicFakeEmbedding(size=8))
    store.add_documents(parser.parse(Blob.from_path(tmp_path / "a.png")))
    (found,) = store.similarity_search("red", k=1)
    assert found.metadata["source"] == str(tmp_path / "a.png")


# Arrays.


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
        "from phospho_multimodal.images.numpy_arrays import image_from_npy\n"
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
