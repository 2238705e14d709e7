"""What tells that text got too small to read: an image's changes, the log, and metadata."""

from __future__ import annotations

import logging

import pytest
from PIL import Image
from test_several_images import converse as converse  # noqa: PLC0414 - a fixture, for this module

from fault_server import answer
from phospho_multimodal import Spending, prepare_image
from phospho_multimodal.images import legibility
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import Turn
from phospho_multimodal.messages.image_parts import Passed, montage_warnings
from phospho_multimodal.settings import Settings
from pictures import encoded


def turn(*images: object) -> Turn:
    return Turn("user", ("Read it.", *map(image_source, images)))


@pytest.mark.parametrize(
    ("size", "warned"),
    [
        ((3840, 2160), False),
        ((4800, 4800), True),
        ((1280, 8000), True),
        ((5000, 1200), True),
        ((4608, 3000), False),
        ((300, 300), False),
        ((1500, 200), False),
    ],
)
def test_changes_tell_when_small_text_is_lost(size, warned: bool):
    prepared = prepare_image(encoded(Image.new("L", size, 200), "PNG"))

    assert any("small text may be unreadable" in change for change in prepared.changes) == warned


def test_the_warning_about_small_text_is_logged_once(caplog: pytest.LogCaptureFixture):
    legibility._log_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="phospho_multimodal")

    for shade in (1, 2, 3):
        prepare_image(encoded(Image.new("L", (6000, 600), shade), "PNG"))

    (record,) = caplog.records
    assert "detail='tiles'" in record.getMessage()


def pages(count: int, size: tuple[int, int], kind: str = "JPEG") -> list[bytes]:
    return [encoded(Image.new("L", size, 200 + shade), kind) for shade in range(count)]


SMALL_TILES = [
    pytest.param(pages(3, (1240, 1754)), True, id="three pages of A4"),
    pytest.param(pages(2, (1240, 1754)), False, id="two pages of A4"),
    pytest.param(pages(4, (1600, 1200)), False, id="four photos"),
    pytest.param(pages(9, (800, 600)), False, id="nine photos"),
    pytest.param(pages(10, (800, 600)), True, id="ten photos"),
    pytest.param(pages(2, (1920, 1080), "PNG"), False, id="two screenshots"),
    pytest.param(pages(4, (1920, 1080), "PNG"), True, id="four screenshots"),
    pytest.param(pages(4, (700, 500), "PNG"), False, id="four small ones, not shrunk"),
    pytest.param(pages(8, (600, 2400)), True, id="eight long receipts"),
]


@pytest.mark.parametrize(("files", "small"), SMALL_TILES)
def test_a_montage_tells_when_its_tiles_are_too_small(files, small: bool):
    settings = Settings.resolve(base_url="http://127.0.0.1:1")

    warnings = montage_warnings([Passed(image_source(file)) for file in files], settings)

    assert any("multi_image='each'" in warning for warning in warnings) == small


@pytest.mark.parametrize(("count", "policy"), [(9, "montage"), (10, "each")])
def test_auto_asks_about_each_image_where_a_montage_cannot_be_read(
    converse, lab, count: int, policy: str
):
    server = lab(answer("Read."))
    files = pages(count, (80, 60))

    result = converse([turn(*files)], "auto", base_url=server.base_url)

    assert result.metadata["image_policy"] == policy
    assert "warnings" not in result.metadata
    assert len(server.requests) == (count if policy == "each" else 1)


def test_a_montage_that_cannot_be_read_says_so_in_metadata(converse, lab):
    server = lab(answer("Read."))

    result = converse([turn(*pages(10, (80, 60)))], "montage", base_url=server.base_url)

    (warning,) = result.metadata["warnings"]
    assert "10 images" in warning
    assert result.metadata["images_billed"] == 1


def test_auto_keeps_to_the_montage_that_the_spending_limit_allows(converse, lab):
    server = lab(answer("Read."))
    spending = Spending(max_images=9)

    result = converse(
        [turn(*pages(10, (80, 60)))], "auto", base_url=server.base_url, spending=spending
    )

    assert result.metadata["image_policy"] == "montage"
    assert result.metadata["warnings"]
    assert spending.snapshot().images_billed == 1


def test_auto_asks_about_each_url_that_is_passed_on(converse, lab):
    server = lab(answer("Read."))
    urls = ["https://x.example/a.png", "https://x.example/b.png"]

    result = converse([turn(*urls)], "auto", base_url=server.base_url)

    assert result.metadata["image_policy"] == "each"
    assert len(server.requests) == 2
