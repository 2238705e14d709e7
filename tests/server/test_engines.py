"""The answers of the engines, which are the same for the same request."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import httpx
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fresh_python import in_fresh_python
from live_server import serve
from phospho_multimodal.contract import PREDICT_PATH, GenerationParameters
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import ENGINES, InputImage, Question, load_engine
from phospho_multimodal.server.engines.measures import (
    PALETTE,
    brightness,
    dominant_colours,
    measure,
    orientation,
    sharpness,
)
from phospho_multimodal.server.engines.ocr import LIMITS, Box, OcrEngine, in_reading_order

RECEIPT = (
    ("CORNER BAKERY", ""),
    ("2 Croissant", "3.20"),
    ("1 Coffee", "2.80"),
    ("Total", "6.00"),
)
RECEIPT_TEXT = "CORNER BAKERY\n2 Croissant 3.20\n1 Coffee 2.80\nTotal 6.00"


@pytest.fixture(scope="module")
def ocr() -> OcrEngine:
    return OcrEngine()


def receipt() -> Image.Image:
    image = Image.new("RGB", (520, 300), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=28)
    for row, (left, right) in enumerate(RECEIPT):
        pen.text((30, 30 + 60 * row), left, fill="black", font=font)
        pen.text((400, 30 + 60 * row), right, fill="black", font=font)
    return image


def stripes(width: int) -> Image.Image:
    image = Image.new("RGB", (200, 100), "white")
    pen = ImageDraw.Draw(image)
    for left in range(0, 200, 2 * width):
        pen.rectangle((left, 0, left + width - 1, 100), fill="black")
    return image


def picture_of(image: Image.Image) -> InputImage:
    return InputImage(b"", "PNG", image.width, image.height, image)


def question(**parameters) -> Question:
    return Question(
        text="What does it say?",
        model="phospho-multimodal",
        parameters=GenerationParameters(**parameters),
    )


class TestOcr:
    def test_it_reads_the_text_then_measures_then_says_what_it_does_not_do(self, ocr):
        answer = ocr.describe(picture_of(receipt()), question())
        text, facts, limits = answer.split("\n\n")
        assert text == "Text, in reading order:\n" + RECEIPT_TEXT
        assert facts.splitlines()[0] == "Size: 520 × 300 pixels, landscape."
        assert limits == LIMITS
        assert "no objects are recognised" in limits
        assert "question is not interpreted" in limits

    def test_it_answers_over_http_from_the_image(self, ocr, picture):
        with serve(create_app(ocr)) as base_url:
            response = httpx.post(base_url + PREDICT_PATH, json=picture.request(), timeout=60)
        description = response.json()["predictions"][0]["description"]
        assert description.startswith("No text was found.")
        assert "30 × 20 pixels, landscape" in description
        assert "red (100 %)" in description

    @pytest.mark.parametrize(
        ("count", "expected"),
        [
            pytest.param(1, "Text,", id="one word"),
            pytest.param(
                7, "Text, in reading order:\nCORNER BAKERY\n2", id="within a line, lines kept"
            ),
        ],
    )
    def test_max_new_tokens_counts_words(self, ocr, count, expected):
        assert ocr.describe(picture_of(receipt()), question(max_new_tokens=count)) == expected

    @pytest.mark.long
    def test_two_threads_get_what_one_gets(self, ocr):
        pictures = [picture_of(receipt()), picture_of(receipt().transpose(Image.Transpose(3)))]
        alone = [ocr.describe(picture, question()) for picture in pictures]
        with ThreadPoolExecutor(2) as threads:
            together = list(
                threads.map(lambda picture: ocr.describe(picture, question()), pictures * 2)
            )
        assert together == alone * 2

    @pytest.mark.long
    @pytest.mark.parametrize(
        "size", [(1, 1), (3000, 1), (1, 3000), (40, 2000), (5000, 3000)], ids=str
    )
    def test_no_shape_of_image_makes_it_fail_or_hang(self, ocr, size):
        started = time.process_time()
        answer = ocr.describe(picture_of(Image.new("RGB", size)), question())
        assert "black (100 %)" in answer
        # RapidOCR itself takes 27 s for 40 × 2000 pixels, and raises for 3000 × 1.
        assert time.process_time() - started < 15

    def test_it_writes_nothing_to_the_terminal(self, capfd):
        OcrEngine().describe(picture_of(Image.new("RGB", (64, 64))), question())
        assert capfd.readouterr() == ("", "")

    @pytest.mark.long
    @pytest.mark.parametrize("package", ["rapidocr", "numpy"])
    def test_without_its_extra_it_names_it(self, package):
        result = in_fresh_python(
            f"import sys; sys.modules[{package!r}] = None\n"
            "from phospho_multimodal.server.engines import load_engine; load_engine('ocr')"
        )
        assert result.returncode == 1
        assert "ImportError: The engine 'ocr' needs" in result.stderr
        assert "phospho-multimodal[ocr]" in result.stderr


class TestReadingOrder:
    @pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
    def test_it_does_not_depend_on_the_order_of_finding(self, order):
        boxes = [
            Box("Item", left=10, top=10, bottom=30),
            Box("Price", left=300, top=14, bottom=33),
            Box("Tea", left=12, top=40, bottom=60),
            Box("2.50", left=305, top=37, bottom=56),
        ]
        assert in_reading_order(boxes[i] for i in order) == ["Item Price", "Tea 2.50"]

    @pytest.mark.parametrize(
        ("second", "lines"),
        [
            pytest.param((100, 0, 20), ["a b"], id="side by side"),
            pytest.param((100, 9, 29), ["a b"], id="shifted by less than half"),
            pytest.param((100, 11, 31), ["a", "b"], id="shifted by more than half"),
            pytest.param((100, 0, 60), ["a b"], id="one much taller"),
            pytest.param((0, 21, 41), ["a", "b"], id="one below the other"),
        ],
    )
    def test_a_line_is_what_overlaps_by_half(self, second, lines):
        left, top, bottom = second
        boxes = [
            Box("a", left=10, top=0, bottom=20),
            Box("b", left=left, top=top, bottom=bottom),
        ]
        assert in_reading_order(boxes) == lines

    def test_a_box_stands_upright_around_a_tilted_quadrilateral(self):
        corners = [(10.0, 5.0), (60.0, 0.0), (62.0, 20.0), (12.0, 25.0)]
        assert Box.around(corners, "tilted") == Box("tilted", left=10, top=0, bottom=25)


class TestMeasures:
    @pytest.mark.parametrize("name", list(PALETTE))
    def test_each_named_colour_is_called_by_its_name(self, name):
        assert dominant_colours(Image.new("RGB", (8, 8), PALETTE[name])) == {name: 1.0}

    @pytest.mark.parametrize(
        ("css", "name"),
        [
            ("red", "red"),
            ("lime", "bright green"),
            ("blue", "blue"),
            ("yellow", "yellow"),
            ("cyan", "turquoise"),
            ("orange", "orange"),
            ("navy", "dark blue"),
            ("saddlebrown", "brown"),
            ("forestgreen", "green"),
            ("gray", "grey"),
            ("gainsboro", "light grey"),
            ("wheat", "beige"),
            ("hotpink", "pink"),
            ("rebeccapurple", "purple"),
        ],
    )
    def test_a_common_colour_gets_the_name_people_use(self, css, name):
        assert list(dominant_colours(Image.new("RGB", (8, 8), css))) == [name]

    def test_the_largest_share_comes_first_and_crumbs_are_left_out(self):
        image = Image.new("RGB", (100, 100), "white")
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 0, 99, 29), fill="red")
        pen.rectangle((0, 30, 99, 33), fill="blue")
        assert dominant_colours(image) == pytest.approx({"white": 0.66, "red": 0.30})

    @pytest.mark.parametrize(
        ("size", "expected"),
        [((2, 1), "landscape"), ((1, 2), "portrait"), ((2, 2), "square")],
    )
    def test_orientation(self, size, expected):
        assert orientation(Image.new("RGB", size)) == expected

    @pytest.mark.parametrize(
        ("colour", "expected"), [("black", 0), ("white", 100), ((128, 128, 128), 50.2)]
    )
    def test_brightness(self, colour, expected):
        measured = brightness(Image.new("RGB", (10, 10), colour))
        assert measured == pytest.approx(expected, abs=0.1)

    def test_sharpness_falls_with_blur_and_is_nothing_without_detail(self):
        crisp = stripes(4)
        soft = crisp.filter(ImageFilter.GaussianBlur(2))
        blurred = crisp.filter(ImageFilter.GaussianBlur(8))
        assert sharpness(crisp) > sharpness(soft) > sharpness(blurred)
        assert sharpness(Image.new("RGB", (10, 10), "red")) == 0

    def test_the_facts_are_words_with_their_numbers(self):
        assert measure(stripes(4)).splitlines() == [
            "Size: 200 × 100 pixels, landscape.",
            "Dominant colours: black (50 %), white (50 %).",
            "Brightness: medium (50 of 100).",
            "Sharpness: sharp (Laplacian 31862).",
        ]


class TestEcho:
    def test_it_says_what_arrived_and_keeps_every_script(self, echo_client, picture):
        body = picture.request("Où? 何 🙂", max_new_tokens=7, temperature=0.5)
        description = echo_client.post(PREDICT_PATH, json=body).json()["predictions"][0][
            "description"
        ]
        assert "Où? 何 🙂" in description
        answer = json.loads(description)
        assert list(answer) == [
            "text",
            "image_sha256",
            "format",
            "width",
            "height",
            "parameters",
            "model",
        ]
        assert (answer["format"], answer["width"], answer["height"]) == ("PNG", 30, 20)
        assert answer["parameters"] == {"max_new_tokens": 7, "temperature": 0.5}

    @pytest.mark.long
    def test_it_needs_no_package_of_the_ocr_engine(self):
        result = in_fresh_python(
            "import sys\n"
            "from phospho_multimodal.server.engines import load_engine; load_engine('echo')\n"
            "print({'numpy', 'rapidocr', 'onnxruntime', 'cv2'} & set(sys.modules))"
        )
        assert result.stdout == "set()\n", result.stderr


# PyTorch is not here; tests/engines has the test of its engine's name.
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "transformers"])
def test_an_engine_bears_the_name_it_is_chosen_by(name):
    options = {"openai": {"upstream": "http://127.0.0.1:1", "model": "a-model"}}
    assert load_engine(name, **options.get(name, {})).name == name


def test_an_unknown_engine_is_refused_with_the_ones_there_are():
    with pytest.raises(ConfigurationError, match=r"'llava'.*echo, ocr"):
        load_engine("llava")


@pytest.mark.long
def test_the_engine_transformers_names_its_extra_where_there_is_no_pytorch():
    result = in_fresh_python(
        "import sys; sys.modules['torch'] = None\n"
        "from phospho_multimodal.server.engines import load_engine\n"
        "load_engine('transformers', model='any')"
    )
    assert result.returncode == 1
    assert "ImportError: The engine 'transformers' needs 'torch'" in result.stderr
    assert "phospho-multimodal[transformers]" in result.stderr
