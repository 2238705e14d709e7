"""What a user of the local server sees: it reads the picture that was meant, the right way up."""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections.abc import Iterator

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from PIL import Image

from langchain_phospho import ChatPhospho
from live_server import serve
from llama_index_phospho import Phospho
from phospho_multimodal.server.app import create_app
from phospho_multimodal.server.engines import Engine, InputImage, Question, load_engine
from pictures import encoded, receipt

pytestmark = pytest.mark.long

TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
RECEIPTS = [("BAKERY", "TOTAL 11.40"), ("GARAGE", "TOTAL 250.00"), ("LIBRARY", "TOTAL 3.75")]


class Witness:
    """The `ocr` engine, and the files that it was shown."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.shown: list[bytes] = []
        self._engine = engine

    def describe(self, picture: InputImage, question: Question) -> str:
        self.shown.append(picture.data)
        return self._engine.describe(picture, question)


@pytest.fixture(scope="module")
def ocr() -> Engine:
    return load_engine("ocr")


@pytest.fixture
def witness(ocr: Engine) -> Witness:
    return Witness(ocr)


@pytest.fixture
def base_url(witness: Witness) -> Iterator[str]:
    with serve(create_app(witness)) as url:
        yield url


def ask_langchain(base_url: str, question: str, *pictures: bytes, **options: str) -> tuple:
    blocks = [
        {"type": "image", "base64": base64.b64encode(p).decode(), "mime_type": "image/jpeg"}
        for p in pictures
    ]
    with contextlib.closing(ChatPhospho(base_url=base_url, **options)) as model:
        answer = model.invoke([HumanMessage([{"type": "text", "text": question}, *blocks])])
    return answer.text, answer.response_metadata


def ask_llama_index(base_url: str, question: str, *pictures: bytes, **options: str) -> tuple:
    blocks = [ImageBlock(image=io.BytesIO(p)) for p in pictures]
    with contextlib.closing(Phospho(base_url=base_url, **options)) as llm:
        answer = llm.chat([ChatMessage(blocks=[TextBlock(text=question), *blocks])])
    return answer.message.content, answer.raw


ASK = pytest.mark.parametrize("ask", [ask_langchain, ask_llama_index])


@pytest.mark.parametrize("orientation", TURNED)
def test_a_photo_taken_in_any_way_is_read_upright(
    base_url: str, witness: Witness, orientation: int
):
    upright = receipt("CAFE LUMIERE", "TOTAL 42.50")
    turn = TURNED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera of a person"
    photo = encoded(upright if turn is None else upright.transpose(turn), exif=exif)

    text, _ = ask_langchain(base_url, "What does it say?", photo)

    assert "CAFE LUMIERE" in text
    assert "TOTAL 42.50" in text
    (shown,) = witness.shown
    image = Image.open(io.BytesIO(shown))
    assert image.size == upright.size
    assert not image.getexif()
    assert b"Camera" not in shown


@ASK
def test_three_receipts_are_read_from_one_picture(base_url: str, witness: Witness, ask):
    pictures = [encoded(receipt(*lines)) for lines in RECEIPTS]

    text, metadata = ask(base_url, "What are the totals?", *pictures)

    assert len(witness.shown) == metadata["images_billed"] == 1
    for shop, total in RECEIPTS:
        assert shop in text
        assert total in text
    places = [text.index(shop) for shop, _ in RECEIPTS]
    assert places == sorted(places)


@ASK
def test_three_receipts_are_asked_about_one_by_one(base_url: str, witness: Witness, ask):
    pictures = [encoded(receipt(*lines)) for lines in RECEIPTS]

    text, metadata = ask(base_url, "What is the total?", *pictures, multi_image="each")

    assert len(witness.shown) == metadata["images_billed"] == 3
    answers = re.split(r"Image \d:\n", text)[1:]
    for (shop, total), answer in zip(RECEIPTS, answers, strict=True):
        assert shop in answer
        assert total in answer
