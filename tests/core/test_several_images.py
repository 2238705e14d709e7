"""Any number of images through a door for one."""

from __future__ import annotations

import asyncio
import io
import itertools
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fault_server import Connection, FaultServer, Received, answer, hang, prediction, reset
from phospho_multimodal import (
    AsyncPhosphoClient,
    AuthenticationError,
    PhosphoClient,
    PhosphoError,
    Prediction,
    ServiceError,
    Spending,
    SpendingLimitError,
    UnsupportedContentError,
)
from phospho_multimodal.images.montage import lay_out
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import ImagePolicy, Turn
from pictures import draw, encoded

COLOURS = ("red", "lime", "blue", "orange", "purple")


def picture(colour: str, size: tuple[int, int] = (300, 200)) -> bytes:
    return encoded(Image.new("RGB", size, colour), "PNG")


def turn(text: str, *images: object) -> Turn:
    return Turn("user", (text, *(image_source(image) for image in images)))


@pytest.fixture(params=["sync", "async"])
def converse(request: pytest.FixtureRequest):
    """Ask one conversation with either client."""

    def ask(turns: list[Turn], multi_image: str, max_images: int = 16, **options) -> Prediction:
        policy = ImagePolicy(multi_image=multi_image, max_images=max_images)  # type: ignore[arg-type]
        if request.param == "sync":
            with PhosphoClient(**options) as client:
                return client.converse(turns, policy)

        async def run() -> Prediction:
            async with AsyncPhosphoClient(**options) as client:
                return await client.converse(turns, policy)

        return asyncio.run(run())

    return ask


def by_colour(behaviours: dict[str, object]):
    """Behave by the colour of the picture that came."""

    def behave(connection: Connection, request: Received) -> None:
        pixel = Image.open(io.BytesIO(request.image)).convert("RGB").getpixel((5, 5))
        for colour in COLOURS:
            if pixel == Image.new("RGB", (1, 1), colour).getpixel((0, 0)):
                break
        behaviours.get(colour, answer(f"It is {colour}."))(connection, request)  # type: ignore[operator]

    return behave


def status_of(code: int):
    return lambda connection, _: connection.reply(code, b'{"detail": "no"}', billed=False)


def test_a_montage_is_one_image_with_every_picture_on_it(converse, lab):
    server = lab(answer("Three squares."))
    sources = [picture(colour) for colour in COLOURS[:3]]

    result = converse([turn("Compare.", *sources)], "montage", base_url=server.base_url)

    (request,) = server.requests
    assert request.item["text"] == (
        'Compare.\nThe image is a montage of 3 images: "Image 1" is the tile marked 1,'
        ' "Image 2" is the tile marked 2, "Image 3" is the tile marked 3.'
    )
    sheet = Image.open(io.BytesIO(request.image)).convert("RGB")
    seen = [colour for _, colour in sorted(sheet.getcolors(2**24), reverse=True)]
    for colour in COLOURS[:3]:
        assert Image.new("RGB", (1, 1), colour).getpixel((0, 0)) in seen[:6]
    assert result.metadata["images_billed"] == 1
    assert result.metadata["image_policy"] == "montage"
    assert [image["width"] for image in result.metadata["images"]] == [300, 300, 300]
    assert len({image["sha256"] for image in result.metadata["images"]}) == 3


def test_each_asks_about_every_image_and_answers_in_their_order(converse, lab):
    server = lab(by_colour({}))
    sources = [picture(colour) for colour in COLOURS]

    result = converse([turn("What colour?", *sources)], "each", base_url=server.base_url)

    assert result.description == "\n\n".join(
        f"Image {number}:\nIt is {colour}." for number, colour in enumerate(COLOURS, start=1)
    )
    assert {request.item["text"] for request in server.requests} == {"What colour?"}
    assert result.metadata["images_billed"] == result.metadata["attempts"] == server.billed == 5
    assert result.metadata["cost_usd"] == 0.05


def test_each_asks_at_once_and_within_the_clients_limit(converse, lab):
    gate = threading.Barrier(3)

    def behave(connection: Connection, request: Received) -> None:
        gate.wait(5)  # passes only if three come at once
        answer("Yes.")(connection, request)

    server = lab(behave)

    converse(
        [turn("?", *[picture(c) for c in COLOURS[:3]])],
        "each",
        base_url=server.base_url,
        max_concurrency=3,
    )

    assert server.most_in_flight == 3


def test_a_failure_is_told_in_its_place_and_loses_no_answer(converse, lab):
    server = lab(by_colour({"lime": status_of(400), "blue": reset()}))
    spending = Spending()
    sources = [picture(colour) for colour in COLOURS[:4]]

    result = converse(
        [turn("What colour?", *sources)], "each", base_url=server.base_url, spending=spending
    )

    first, second, third, fourth = result.description.split("\n\n")
    assert first == "Image 1:\nIt is red."
    assert second.startswith("Image 2:\n[no answer: InvalidRequestError: ")
    assert third.startswith("Image 3:\n[no answer: ReplyLostError: ")
    assert fourth == "Image 4:\nIt is orange."
    assert result.metadata["images_billed"] == spending.snapshot().images_billed == 2
    assert result.metadata["images_in_doubt"] == spending.snapshot().images_in_doubt == 1
    assert spending.snapshot().images_reserved == 0


def test_if_all_fail_the_first_error_is_raised(converse, lab):
    server = lab(status_of(503))
    spending = Spending()

    with pytest.raises(ServiceError) as caught:
        converse(
            [turn("?", *[picture(c) for c in COLOURS[:3]])],
            "each",
            base_url=server.base_url,
            spending=spending,
            max_retries=0,
        )

    assert caught.value.attempts == 3
    assert spending.snapshot().images_reserved == spending.snapshot().images_billed == 0


@pytest.mark.parametrize("code", [401, 402, 404])
def test_a_refusal_for_good_stops_what_is_not_yet_sent(converse, lab, code: int):
    server = lab(status_of(code))
    spending = Spending()

    with pytest.raises(PhosphoError) as caught:
        converse(
            [turn("?", *[picture(c) for c in COLOURS])],
            "each",
            base_url=server.base_url,
            spending=spending,
            max_concurrency=1,
        )

    assert caught.value.status_code == code  # type: ignore[attr-defined]
    assert len(server.requests) == 1
    assert spending.snapshot().images_reserved == 0


def test_an_answer_before_the_refusal_is_kept(converse, lab):
    server = lab(answer("Paid for."), status_of(401))

    result = converse(
        [turn("?", *[picture(c) for c in COLOURS])],
        "each",
        base_url=server.base_url,
        max_concurrency=1,
    )

    assert result.description.count("Paid for.") == 1
    assert result.description.count("[no answer: AuthenticationError: ") == 4
    assert len(server.requests) == 2
    assert issubclass(AuthenticationError, PhosphoError)


def test_each_reserves_for_all_before_the_first_is_sent(converse, lab):
    server = lab()

    with pytest.raises(SpendingLimitError, match="5 more images"):
        converse(
            [turn("?", *[picture(c) for c in COLOURS])],
            "each",
            base_url=server.base_url,
            spending=Spending(max_images=4),
        )

    assert server.requests == []


def test_each_takes_urls_that_are_passed_on(converse, lab):
    server = lab(answer("Yes."))

    converse(
        [turn("?", "https://x.example/a.png", picture("red"))], "each", base_url=server.base_url
    )

    assert len(server.requests) == 2


def test_a_montage_of_a_url_that_may_not_be_opened_names_the_ways_out(converse, lab):
    server = lab()

    with pytest.raises(UnsupportedContentError, match=r"url_mode='fetch'.*multi_image='each'"):
        converse(
            [turn("?", "https://x.example/a.png", picture("red"))],
            "montage",
            base_url=server.base_url,
        )

    assert server.requests == []


@pytest.mark.parametrize("multi_image", ["montage", "each"])
def test_more_than_max_images_is_an_error_before_paying(converse, lab, multi_image: str):
    server = lab()
    images = [picture("red")] * 4

    with pytest.raises(UnsupportedContentError, match="4 images and max_images is 3"):
        converse([turn("?", *images)], multi_image, max_images=3, base_url=server.base_url)

    assert server.requests == []


def test_one_broken_picture_stops_all_before_paying(converse, lab):
    server = lab()

    for multi_image in ("montage", "each"):
        with pytest.raises(PhosphoError, match="broken or cut off"):
            converse(
                [turn("?", picture("red"), picture("blue")[:90])],
                multi_image,
                base_url=server.base_url,
            )

    assert server.requests == []


async def test_cancelling_each_settles_every_image():
    with FaultServer(hang()).running() as server:
        spending = Spending()
        async with AsyncPhosphoClient(
            base_url=server.base_url, spending=spending, max_concurrency=2
        ) as client:
            sources = [turn("?", *[picture(c) for c in COLOURS])]
            task = asyncio.create_task(client.converse(sources, ImagePolicy(multi_image="each")))
            await asyncio.to_thread(server.wait_for_requests, 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        snapshot = spending.snapshot()
        assert (snapshot.images_in_doubt, snapshot.images_reserved) == (2, 0)


sizes = st.lists(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)).filter(
        lambda size: max(size) / min(size) < 20
    ),
    min_size=2,
    max_size=16,
)


# Specks between giants were once refused as too many for the sheet.
@example(sizes=[(2, 30), (181, 48), (594, 62), (90, 800)], max_side=800)
@given(sizes=sizes, max_side=st.sampled_from([800, 1536, 2048]))
@settings(deadline=None, max_examples=60)
def test_tiles_keep_their_order_their_shape_and_their_distance(sizes, max_side: int):
    fitted = [_within(size, max_side) for size in sizes]

    tiles, (width, height) = lay_out(fitted, max_side)

    assert width <= max_side
    assert height <= max_side
    for (original_width, original_height), tile in zip(fitted, tiles, strict=True):
        assert 1 <= tile.width <= original_width
        assert 1 <= tile.height <= original_height
        assert abs(tile.width / original_width - tile.height / original_height) <= 1 / min(
            original_width, original_height
        )
        assert tile.left >= 8
        assert tile.top >= 8 + 16
        assert tile.left + tile.width + 8 <= width
        assert tile.top + tile.height + 8 <= height
    for one, other in itertools.pairwise(tiles):
        assert (one.top, one.left) < (other.top, other.left)
    for one, other in itertools.combinations(tiles, 2):
        apart = (
            one.left + one.width + 8 <= other.left
            or other.left + other.width + 8 <= one.left
            or one.top + one.height + 16 <= other.top
            or other.top + other.height + 16 <= one.top
        )
        assert apart


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@pytest.mark.parametrize(
    ("sizes", "least"),
    [
        pytest.param([(1000, 1000)] * 4, 0.70, id="four squares"),
        pytest.param([(1500, 1000)] * 2, 0.72, id="two photos"),
        pytest.param([(600, 1500)] * 3, 0.83, id="three receipts"),
        pytest.param([(1000, 1000)] * 16, 0.33, id="sixteen squares"),
        pytest.param([(300, 200)] * 5, 1.0, id="small ones stay as they are"),
    ],
)
def test_little_of_the_sheet_is_wasted(sizes, least: float):
    tiles, _ = lay_out(sizes, 1536)

    assert (
        min(tile.width / size[0] for tile, size in zip(tiles, sizes, strict=True)) >= least * 0.98
    )


def test_a_sheet_too_small_for_its_tiles_is_an_error():
    with pytest.raises(UnsupportedContentError, match="do not fit"):
        lay_out([(100, 100)] * 16, 100)


def test_the_same_pictures_make_the_same_sheet(converse, lab):
    server = lab(answer("Yes."))
    sources = [encoded(draw(500, 300)), picture("red")]

    for _ in range(2):
        converse([turn("?", *sources)], "montage", base_url=server.base_url)

    assert server.requests[0].body == server.requests[1].body
    assert prediction("Yes.")
