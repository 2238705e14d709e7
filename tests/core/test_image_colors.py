"""The pixels that are sent are those that a browser shows, however a file stores them."""

from __future__ import annotations

import io
import math
import struct
import warnings

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from image_files import RAMP, chunk, gif, pixel, png, shown, tiff
from phospho_multimodal import ImageError, prepare_image
from pictures import encoded

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)
P3_RED = (239, 35, 17)
"""Display P3's (220, 60, 40) in sRGB."""
ORANGE = bytes([220, 60, 40])


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def cicp(primaries: int, transfer: int, *, full: bool = True) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, full]))


SRGB_CHUNK = chunk(b"sRGB", b"\0")
ADOBE = chunk(b"cHRM", struct.pack(">8I", *(31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)))


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        pytest.param(png(ORANGE * 8, cicp(12, 13)), P3_RED, id="cICP of Display P3"),
        pytest.param(
            png(ORANGE * 8, chunk(b"PLTE", ORANGE * 2), cicp(12, 13)), P3_RED, id="with a palette"
        ),
        pytest.param(png((ORANGE + b"\xff") * 8, cicp(12, 13), colors=6), P3_RED, id="with alpha"),
        pytest.param(
            png(bytes([220, 0, 60, 0, 40, 0]) * 8, cicp(12, 13), depth=16), P3_RED, id="of 16 bits"
        ),
        pytest.param(png(bytes([200, 100, 50] * 8), cicp(9, 13)), (241, 76, 29), id="BT.2020"),
        pytest.param(png(bytes([128] * 8), cicp(1, 8), colors=0), (188,) * 3, id="linear light"),
        pytest.param(png(ORANGE * 8, cicp(1, 13)), tuple(ORANGE), id="cICP of sRGB"),
        pytest.param(png(ORANGE * 8, gamma(1.0), cicp(1, 13)), tuple(ORANGE), id="cICP first"),
        pytest.param(
            png(bytes([16, 235, 126] * 8), cicp(1, 13, full=False)), (0, 255, 128), id="video range"
        ),
        pytest.param(png(bytes([128] * 8), gamma(1.0), colors=0), (188,) * 3, id="linear grey"),
        pytest.param(png(bytes([128] * 24), gamma(1.0)), (188,) * 3, id="linear RGB"),
        pytest.param(
            png(bytes([0, 0, 0, 128] * 8), gamma(1.0), colors=6), (127,) * 3, id="linear, alpha"
        ),
        pytest.param(png(bytes([128] * 24), gamma(1 / 1.8)), (145,) * 3, id="gamma 1.8"),
        pytest.param(png(bytes([128] * 24), gamma(1.0), SRGB_CHUNK), (128,) * 3, id="sRGB wins"),
        pytest.param(png(bytes([128] * 24), gamma(0.45455)), (128,) * 3, id="usual gamma"),
        pytest.param(
            png(bytes([0, 255, 0] * 8), gamma(0.45455), ADOBE), (0, 255, 0), id="primaries of Adobe"
        ),
        pytest.param(
            png(bytes([200, 100, 100] * 8), gamma(0.45455), ADOBE), (227, 97, 98), id="and a red"
        ),
    ],
)
def test_colors_that_a_png_names_by_number_become_srgb(file: bytes, expected):
    assert pixel(file) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((12, 13), P3_RED),
        ((9, 13), (255, 0, 20)),
        ((1, 13), tuple(ORANGE)),
        ((2, 2), tuple(ORANGE)),
    ],
)
@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_colors_that_a_heic_or_avif_names_by_number_become_srgb(kind: str, numbers, expected):
    image = Image.new("RGB", (64, 64), tuple(ORANGE))
    buffer = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(
            buffer,
            quality=-1,
            chroma=444,
            color_primaries=numbers[0],
            transfer_characteristics=numbers[1],
            matrix_coefficients=6,
            full_range_flag=1,
        )
        file = buffer.getvalue()
    else:
        image.save(buffer, "AVIF", quality=100, subsampling="4:4:4")
        file = buffer.getvalue()
        place = file.index(b"colrnclx") + 8
        file = file[:place] + struct.pack(">HH", *numbers) + file[place + 4 :]

    assert pixel(file, (5, 5)) == pytest.approx(expected, abs=5)


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_keeps_dark_middle_and_bright_apart(transfer: int):
    shades = [pixel(png(bytes([v] * 24), cicp(9, transfer)))[0] for v in (0, 64, 148, 255)]

    assert shades[0] == 0
    assert shades[1] < 80
    assert 130 < shades[2] < 220
    assert shades[3] == 255


def test_a_collection_is_sent_as_its_primary_image():
    collection = pillow_heif.HeifFile()
    for color in ("red", "lime", "blue"):
        collection.add_from_pillow(Image.new("RGB", (64, 48), color))
    for primary, expected in enumerate([RED, (0, 255, 0), BLUE]):
        buffer = io.BytesIO()
        collection.save(buffer, primary_index=primary, quality=-1, chroma=444)
        assert pixel(buffer.getvalue(), (5, 5)) == pytest.approx(expected, abs=12)


GREY_16 = {258: [16], 259: [1], 262: [1], 277: [1]}
WHITE_LONG = np.full((8, 64), 2**32 - 1, "<u4").tobytes()
LONG = np.tile(np.linspace(0, 2**32 - 1, 64).astype("<u4"), (8, 1)).tobytes()
HALF = np.tile(np.linspace(0, 1, 64).astype("<f4"), (8, 1)).tobytes()
BLACK_TO_WHITE, WHITE_TO_BLACK = (0, 255), (255, 0)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        pytest.param(tiff(RAMP.tobytes(), (64, 8), GREY_16), BLACK_TO_WHITE, id="16 bits"),
        pytest.param(
            tiff(RAMP.tobytes(), (64, 8), GREY_16 | {262: [0]}), WHITE_TO_BLACK, id="zero is white"
        ),
        pytest.param(
            tiff(RAMP.astype(">u2").tobytes(), (64, 8), GREY_16, order=">"),
            BLACK_TO_WHITE,
            id="big-endian",
        ),
        pytest.param(
            tiff((b"\x00" * 48 + b"\xff" * 48) * 8, (64, 8), GREY_16 | {258: [12]}),
            BLACK_TO_WHITE,
            id="12 bits",
        ),
        pytest.param(tiff(LONG, (64, 8), GREY_16 | {258: [32]}), BLACK_TO_WHITE, id="32 bits"),
        pytest.param(
            tiff(WHITE_LONG, (64, 8), GREY_16 | {258: [32]}), (255, 255), id="white of 32 bits"
        ),
        pytest.param(
            tiff((RAMP >> 4).tobytes(), (64, 8), GREY_16 | {339: [2]}),
            BLACK_TO_WHITE,
            id="signed, as computed tomography",
        ),
        pytest.param(
            tiff(HALF, (64, 8), GREY_16 | {258: [32], 339: [3], 262: [0]}),
            WHITE_TO_BLACK,
            id="floats whose zero is white",
        ),
    ],
)
def test_a_deep_tiff_keeps_its_shades(file: bytes, expected):
    image = shown(file)

    assert (image.getpixel((0, 0))[0], image.getpixel((63, 0))[0]) == expected


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(
            tiff(
                RAMP.tobytes() * 3, (64, 8), GREY_16 | {258: [16] * 3, 262: [2], 277: [3], 284: [2]}
            ),
            id="16-bit planes",
        ),
        pytest.param(tiff(bytes(512), (64, 8), GREY_16 | {258: [8], 339: [2]}), id="signed bytes"),
        pytest.param(
            tiff(RAMP.tobytes(), (64, 8), GREY_16 | {262: [0]}, order=">"),
            id="big-endian whose zero is white",
        ),
        pytest.param(tiff(bytes(4096), (64, 8), GREY_16 | {258: [64], 339: [3]}), id="64 bits"),
    ],
)
@pytest.mark.parametrize("form", ["bytes", "pil"])
def test_a_tiff_that_would_be_read_wrongly_is_rejected_by_its_variant(file: bytes, form: str):
    if form == "pil":
        try:
            image = Image.open(io.BytesIO(file))
        except OSError:
            return  # Pillow rejects it itself
    with pytest.raises(ImageError, match=r"variant of TIFF .* magick"):
        prepare_image(file if form == "bytes" else image)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        pytest.param(png(b"\x55\x55", chunk(b"tRNS", b"\0\1"), depth=2, colors=0), WHITE, id="2"),
        pytest.param(png(b"\x77" * 4, chunk(b"tRNS", b"\0\7"), depth=4, colors=0), WHITE, id="4"),
        pytest.param(png(b"\0", chunk(b"tRNS", b"\0\0"), depth=1, colors=0), WHITE, id="1"),
        pytest.param(
            png(b"\x12\x34" * 8, chunk(b"tRNS", b"\x12\x34"), depth=16, colors=0), WHITE, id="16"
        ),
        pytest.param(
            png(b"\x12\x34" * 8, chunk(b"tRNS", b"\x12\x35"), depth=16, colors=0),
            (18,) * 3,
            id="16, another low byte",
        ),
        pytest.param(
            png(bytes([0, 5, 0, 6, 0, 7]) * 8, chunk(b"tRNS", bytes([0, 5, 0, 6, 0, 7])), depth=16),
            WHITE,
            id="RGB of 16",
        ),
        pytest.param(
            png(bytes([0, 5, 0, 6, 0, 7]) * 8, chunk(b"tRNS", bytes([0, 5, 0, 6, 0, 8])), depth=16),
            (0, 0, 0),
            id="RGB of 16, another low byte",
        ),
    ],
)
def test_the_transparent_value_of_a_png_is_white(file: bytes, expected):
    assert pixel(file) == expected


@pytest.mark.parametrize("local_palette", [False, True], ids=["global palette", "local palette"])
@pytest.mark.parametrize("frame", [(4, 4, 2, 2), (0, 0, 8, 4), (2, 0, 6, 8)])
def test_around_a_gif_frame_that_is_smaller_than_its_canvas_is_white(frame, local_palette: bool):
    image = shown(gif(frame, local_palette=local_palette))

    left, top, width, height = frame
    inside = image.crop((left, top, left + width, top + height))
    assert inside.getcolors() == [(width * height, BLUE)]
    assert sorted(image.getcolors() or []) == sorted(
        [(width * height, BLUE), (64 - width * height, WHITE)]
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("form", ["bytes", "pil"])
def test_an_orientation_in_xmp_turns_nothing(kind: str, form: str):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="3"/></x:xmpmeta>'
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste("black", (0, 0, 64, 32))
    options = {"xmp": xmp} if kind != "PNG" else {}
    if kind == "TIFF":
        options = {"tiffinfo": {700: xmp}}
    file = encoded(picture, kind, **options)
    if kind == "PNG":
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        file = file[:33] + text + file[33:]

    image = Image.open(io.BytesIO(file)) if form == "pil" else file

    assert pixel(image, (5, 5))[0] < 50


@pytest.mark.parametrize("place", [0, 5, 2_999_999])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_a_number_is_an_error_wherever_it_is(place: int, value: float):
    values = np.linspace(0, 1, 3_000_000, dtype=np.float32).reshape(1500, 2000)
    values.flat[place] = value

    with pytest.raises(ImageError, match="not numbers"):
        prepare_image(Image.fromarray(values))


@pytest.mark.parametrize(
    ("shade", "background"),
    [("white", "black"), ((240, 240, 240), "black"), ("black", "white"), ("red", "white")],
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_drawn_on_transparency_can_be_seen(shade, background: str, mode: str):
    image = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    image.paste(shade, (50, 20, 60, 80))
    if mode == "P":
        image = image.quantize(4)
    elif mode == "LA":
        image = image.convert("LA")

    prepared = prepare_image(encoded(image, "PNG"))

    assert f"transparency on {background}" in prepared.changes
    low, high = shown(prepared).convert("L").getextrema()
    assert high - low > 100


@pytest.mark.parametrize(
    ("black", "background"),
    [
        ([(120, 40, 135, 60)], "grey"),
        ([(8, 8, 62, 10), (8, 8, 10, 92), (8, 90, 62, 92), (60, 8, 62, 92)], "white"),
    ],
    ids=["apart", "as a frame"],
)
def test_white_content_with_some_black_can_be_seen(black, background: str):
    image = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    image.paste("white", (10, 10, 60, 90))
    for box in black:
        image.paste("black", box)

    assert f"transparency on {background}" in prepare_image(image).changes


@pytest.mark.parametrize("mode", ["La", "RGBa", "LA", "RGBA"])
def test_premultiplied_alpha_is_read(mode: str):
    image = Image.new("RGBA", (8, 8), (128, 128, 128, 128))
    image = image.convert("RGBa") if mode == "RGBa" else image.convert("LA").convert(mode)

    assert pixel(image)[0] == pytest.approx(191, abs=2)


def test_lab_becomes_rgb():
    image = Image.new("LAB", (8, 8), (255, 128, 128))

    assert pixel(image) == pytest.approx(WHITE, abs=2)


def test_warnings_of_pillow_reach_nobody():
    damaged = bytearray(encoded(Image.new("RGB", (64, 64)), "TIFF", tiffinfo={305: "x" * 90}))
    place = damaged.index(struct.pack("<HH", 305, 2))
    damaged[place + 8 : place + 12] = struct.pack("<L", 2**31)
    animation = chunk(b"acTL", struct.pack(">II", 0, 0))
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    files = [
        bytes(damaged),
        png(bytes(24), animation),
        encoded(palette, "PNG", transparency=bytes([7, 99])),
        encoded(Image.new("1", (10_000, 9_000), 1), "TIFF", compression="group4"),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        for file in files:
            prepare_image(file)
        assert warnings.filters == before
    assert caught == []
