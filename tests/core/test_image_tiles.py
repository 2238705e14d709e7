"""Images with small text: sent as tiles, each billed; and what tells that text is too small."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_several_images import converse as converse  # noqa: PLC0414 - a fixture, for this module

from fault_server import Connection, Received, answer, status
from phospho_multimodal import (
    AuthenticationError,
    ConfigurationError,
    ImageError,
    PhosphoClient,
    Spending,
    SpendingLimitError,
    UnsupportedContentError,
    prepare_tiles,
)
from phospho_multimodal.images.source import image_source
from phospho_multimodal.images.tiles import plan_grid
from phospho_multimodal.messages.conversation import ImagePolicy, Turn
from pictures import draw, encoded

SCREENSHOT = encoded(Image.linear_gradient("L").resize((240, 135)), "PNG")
"""A screen of 4K at a sixteenth of its size, for tiles of a sixteenth of the usual side."""
SMALL = {"detail": "tiles", "max_image_side": 96}


def turn(*images: object, text: str = "Read it.") -> Turn:
    return Turn("user", (text, *map(image_source, images)))


def tell_the_tile(connection: Connection, request: Received) -> None:
    """Answer with the place that the prompt names."""
    place = request.item["text"].partition("\n")[2].partition(" of one larger")[0]
    answer(place)(connection, request)


@given(
    size=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    side=st.integers(30, 2048),
    most=st.integers(1, 20),
)
def test_tiles_cover_the_image_overlap_and_stay_within_their_limits(size, side: int, most: int):
    grid = plan_grid(size, max_side=side, max_tiles=most)
    boxes = grid.boxes()

    assert len(boxes) == grid.columns * grid.rows <= most
    assert all(right - left <= side and lower - top <= side for left, top, right, lower in boxes)
    assert all(0 <= left < right <= grid.width for left, _, right, _ in boxes)
    assert {box[0] for box in boxes} | {box[1] for box in boxes} >= {0}
    assert (max(box[2] for box in boxes), max(box[3] for box in boxes)) == (grid.width, grid.height)
    for one, other in pairwise(boxes):
        if one[1] == other[1]:  # of the same row
            assert one[2] > other[0]


@pytest.mark.parametrize(
    ("size", "most", "tiles"),
    [
        ((1536, 1536), 8, 1),
        ((1600, 1000), 8, 2),
        ((3840, 2160), 8, 6),
        ((3840, 2160), 4, 4),
        ((3840, 2160), 1, 1),
        ((1280, 8000), 8, 6),
        ((8000, 1280), 8, 6),
        ((4000, 3000), 20, 9),
    ],
)
def test_no_more_tiles_are_made_than_the_image_needs(size, most: int, tiles: int):
    grid = plan_grid(size, max_side=1536, max_tiles=most)

    assert grid.columns * grid.rows == tiles


def test_prepare_tiles_tells_the_number_of_requests_beforehand():
    tiles = prepare_tiles(SCREENSHOT, max_image_side=96)

    assert [tile.changes[-2] for tile in tiles] == [
        f"tile {row * 3 + column + 1} of 6: row {row + 1} of 2, column {column + 1} of 3"
        for row in range(2)
        for column in range(3)
    ]
    assert all(max(tile.width, tile.height) <= 96 for tile in tiles)
    assert sum(tile.width for tile in tiles[:3]) >= 240 + 2 * 8
    assert prepare_tiles(encoded(draw()))[0].data == encoded(draw())
    with pytest.raises(ConfigurationError, match="max_tiles"):
        prepare_tiles(SCREENSHOT, max_tiles=0)
    with pytest.raises(ImageError, match="not opened here"):
        prepare_tiles("https://x.example/a.png")


@pytest.mark.parametrize("orientation", [1, 6])
def test_tiles_show_the_image_upright_and_whole(orientation: int):
    upright = Image.new("RGB", (2400, 1200))
    for number, color in enumerate(("red", "lime", "blue", "white")):
        upright.paste(color, (number * 600, 0, number * 600 + 600, 1200))
    stored = upright.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation

    left, right = prepare_tiles(encoded(stored, "JPEG", exif=exif, quality=95))

    def pixel(tile, x: int):
        return Image.open(io.BytesIO(tile.data)).convert("RGB").getpixel((x, 600))

    assert pixel(left, 20) == pytest.approx((255, 0, 0), abs=9)
    assert pixel(right, right.width - 20) == pytest.approx((255, 255, 255), abs=9)


@pytest.mark.parametrize("form", ["bytes", "pil", "path"])
def test_a_large_image_is_asked_about_tile_by_tile(converse, lab, form: str, tmp_path):
    path = tmp_path / "screenshot.png"
    path.write_bytes(SCREENSHOT)
    image = Image.open(io.BytesIO(SCREENSHOT)) if form == "pil" else path
    image = SCREENSHOT if form == "bytes" else image
    server = lab(tell_the_tile)
    spending = Spending(max_usd=0.06)

    result = converse(
        [turn(image)], "montage", base_url=server.base_url, **SMALL, spending=spending
    )

    names = [
        f"tile {row * 3 + column + 1} of 6: row {row + 1} of 2, column {column + 1} of 3"
        for row in range(2)
        for column in range(3)
    ]
    assert result.description == "\n\n".join(
        f"{name.capitalize()}:\nThe image is {name}" for name in names
    )
    assert result.metadata["images_billed"] == server.billed == 6
    assert result.metadata["cost_usd"] == 0.06
    assert result.metadata["image_policy"] == "single"
    assert len(result.metadata["images"]) == 6


def test_the_money_for_all_tiles_is_set_aside_before_the_first_is_sent(converse, lab):
    server = lab(answer("Never asked."))

    with pytest.raises(SpendingLimitError):
        converse(
            [turn(SCREENSHOT)],
            "montage",
            base_url=server.base_url,
            **SMALL,
            spending=Spending(max_images=5),
        )

    assert server.requests == []


def test_a_refused_key_stops_the_tiles_that_are_not_sent_yet(converse, lab):
    server = lab(status(401))

    with pytest.raises(AuthenticationError):
        converse(
            [turn(SCREENSHOT)],
            "montage",
            base_url=server.base_url,
            **SMALL,
            max_concurrency=1,
            api_key="wrong",
        )

    assert len(server.requests) == 1


def test_an_image_that_is_small_enough_is_one_request(converse, lab):
    server = lab(answer("Fine."))
    file = encoded(draw(90, 60))

    result = converse([turn(file)], "montage", base_url=server.base_url, **SMALL)

    (request,) = server.requests
    assert request.image == file
    assert request.item["text"] == "Read it."
    assert result.description == "Fine."
    assert result.metadata["images_billed"] == 1


@pytest.mark.parametrize(("most", "requests"), [(1, 1), (3, 2), (4, 4), (9, 6)])
def test_max_tiles_bounds_the_requests(converse, lab, most: int, requests: int):
    server = lab(answer("Fine."))

    converse([turn(SCREENSHOT)], "montage", base_url=server.base_url, **SMALL, max_tiles=most)

    assert len(server.requests) == requests


def test_several_images_are_spread_over_montages(converse, lab):
    server = lab(answer("Read."))
    photos = [encoded(draw(75, 100, color)) for color in ("red", "blue", "lime", "teal", "navy")]

    options = {**SMALL, "max_image_side": 300, "max_tiles": 2}
    result = converse([turn(*photos)], "montage", base_url=server.base_url, **options)

    texts = sorted(request.item["text"] for request in server.requests)
    assert '"Image 1" is the tile marked 1, "Image 2" is the tile marked 2.' in texts[0]
    assert '"Image 3" is the tile marked 3' in texts[1]
    assert result.description == "Images 1 to 2:\nRead.\n\nImages 3 to 5:\nRead."
    assert len(result.metadata["images"]) == 5
    assert result.metadata["images_billed"] == 2


def test_each_image_has_its_own_tiles(converse, lab):
    server = lab(answer("Read."))

    result = converse(
        [turn(SCREENSHOT, encoded(draw()))],
        "each",
        base_url=server.base_url,
        **SMALL,
        max_tiles=2,
    )

    assert [text.splitlines()[0] for text in result.description.split("\n\n")] == [
        "Image 1, tile 1 of 2: column 1 of 2:",
        "Image 1, tile 2 of 2: column 2 of 2:",
        "Image 2:",
    ]


def test_a_url_that_is_passed_on_cannot_be_cut(converse, lab):
    server = lab(answer("Never asked."))

    with pytest.raises(UnsupportedContentError, match=r"url_mode='fetch'"):
        converse(
            [turn("https://x.example/a.png")],
            "montage",
            base_url=server.base_url,
            **SMALL,
        )

    assert server.requests == []


def test_one_answer_for_a_program_cannot_come_from_several_tiles(lab):
    server = lab(answer("Never asked."))
    with (
        PhosphoClient(base_url=server.base_url, **SMALL) as client,
        pytest.raises(UnsupportedContentError, match="detail='auto'"),
    ):
        client.converse([turn(SCREENSHOT)], ImagePolicy(one_answer=True))

    assert server.requests == []


@pytest.mark.parametrize(
    "options",
    [
        {"detail": "high"},
        {"max_tiles": 0},
        {"max_tiles": 1.5},
        {"detail": "tiles", "prepare": False},
    ],
)
def test_a_wrong_detail_is_an_error_at_once(converse, options):
    with pytest.raises(ConfigurationError, match=r"detail|max_tiles"):
        converse([turn(SCREENSHOT)], "montage", base_url="http://127.0.0.1:1", **options)
