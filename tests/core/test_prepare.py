"""What becomes of a picture before it is sent."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import signal
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from phospho_multimodal import ConfigurationError, ImageError, PreparedImage, prepare_image
from phospho_multimodal.images import inspect as headers
from phospho_multimodal.images.inspect import find_passthrough, sniff
from phospho_multimodal.images.prepare import prepare_source
from phospho_multimodal.images.source import image_source
from pictures import draw, encoded, png_header

LOSSLESS = ("PNG", "GIF", "BMP", "TIFF")
ALWAYS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
ORIENTATION = 0x0112
GPS = 0x8825


def opened(prepared: PreparedImage) -> Image.Image:
    image = Image.open(io.BytesIO(prepared.data))
    image.load()
    return image


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures, 0 to 255."""
    left, right = (np.asarray(i.convert("RGB"), dtype=float) for i in (one, other))
    assert left.shape == right.shape
    return float(np.abs(left - right).mean())


def exif(orientation: int = 1, *, gps: bool = False) -> Image.Exif:
    data = Image.Exif()
    data[ORIENTATION] = orientation
    data[0x010F] = "Camera of a person"
    if gps:
        data[GPS] = {1: "N", 2: (48.0, 51.0, 30.0)}
    return data


@pytest.mark.parametrize("kind", ALWAYS)
def test_every_type_is_read_by_its_content(kind: str):
    prepared = prepare_image(encoded(draw(), kind))

    assert (prepared.width, prepared.height) == (60, 40)
    assert prepared.format == ("PNG" if kind in LOSSLESS else "JPEG")
    assert difference(opened(prepared), draw()) < 12


def test_heic_is_read_with_its_extra():
    import pillow_heif  # noqa: PLC0415 - the extra itself

    buffer = io.BytesIO()
    pillow_heif.from_pillow(draw(64, 48)).save(buffer, format="HEIF")

    prepared = prepare_image(buffer.getvalue())

    assert prepared.format == "JPEG"
    assert difference(opened(prepared), draw(64, 48)) < 12


def test_heic_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)

    with pytest.raises(ImageError, match=r"phospho-multimodal\[heif\]"):
        prepare_image(b"\x00\x00\x00\x18ftypheic" + b"\x00" * 40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_arrives_upright_and_without_exif(orientation: int, kind: str):
    upright = draw(80, 50)
    turned_back = {
        1: upright,
        2: ImageOps.mirror(upright),
        3: upright.rotate(180),
        4: ImageOps.flip(upright),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    photo = encoded(turned_back, kind, exif=exif(orientation, gps=kind != "TIFF"))

    prepared = prepare_image(photo)

    image = opened(prepared)
    assert difference(image, upright) < 6
    assert not image.getexif()
    assert b"Camera" not in prepared.data
    assert ("turned upright" in prepared.changes) == (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(orientation: int):
    prepared = prepare_image(encoded(draw(), "JPEG", exif=exif(orientation)))

    assert (prepared.width, prepared.height) == (60, 40)


def test_a_clean_picture_is_sent_byte_for_byte():
    for kind, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("PNG", {}),
        ("PNG", {"compress_level": 0}),
    ):
        file = encoded(draw(300, 200), kind, **options)
        prepared = prepare_image(file)
        assert prepared.data == file
        assert prepared.changes == ()


def _with_text_chunk() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "Somebody")
    return encoded(draw(), "PNG", pnginfo=info)


UNCLEAN = [
    pytest.param(encoded(draw(), "JPEG", exif=exif()), id="JPEG with EXIF"),
    pytest.param(encoded(draw(), "JPEG", comment=b"Somebody"), id="JPEG with a comment"),
    pytest.param(encoded(draw(), "JPEG", xmp=b"<x:xmpmeta/>"), id="JPEG with XMP"),
    pytest.param(encoded(draw(), "JPEG") + b"trailing", id="JPEG with something after its end"),
    pytest.param(encoded(draw(), "JPEG") + encoded(draw(), "JPEG"), id="two JPEGs in a row"),
    pytest.param(encoded(draw().convert("CMYK"), "JPEG"), id="CMYK JPEG"),
    pytest.param(encoded(draw(), "PNG") + b"trailing", id="PNG with something after its end"),
    pytest.param(_with_text_chunk(), id="PNG with a text chunk"),
    pytest.param(encoded(draw(), "PNG", exif=exif()), id="PNG with EXIF"),
    pytest.param(encoded(draw(), "PNG", dpi=(300, 300)), id="PNG with a resolution"),
    pytest.param(encoded(draw().convert("P"), "PNG"), id="PNG with a palette"),
    pytest.param(encoded(draw().convert("RGBA"), "PNG"), id="PNG with alpha"),
    pytest.param(encoded(draw(2000, 100), "JPEG"), id="JPEG over the side limit"),
]


@pytest.mark.parametrize("file", UNCLEAN)
def test_anything_else_is_written_anew_and_clean(file: bytes):
    prepared = prepare_image(file)

    assert prepared.data != file
    assert prepared.changes
    again = prepare_image(prepared.data)
    assert again.data == prepared.data
    assert again.changes == ()
    assert b"Somebody" not in prepared.data
    assert b"trailing" not in prepared.data


def test_the_same_input_gives_the_same_bytes():
    file = encoded(draw(3000, 2000), "JPEG", exif=exif(6))

    assert prepare_image(file) == prepare_image(file)
    assert prepare_image(file).sha256 == prepare_image(file).sha256


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((3000, 2000), 1536, (1536, 1024)),
        ((2000, 3000), 1536, (1024, 1536)),
        ((1536, 1536), 1536, (1536, 1536)),
        ((1537, 10), 1536, (1536, 10)),
        ((5000, 1), 100, (100, 1)),
        ((3000, 2000), 1, (1, 1)),
    ],
)
def test_the_longest_side_is_shrunk_and_never_grown(size, side: int, expected):
    prepared = prepare_image(encoded(draw(*size), "JPEG"), max_image_side=side)

    assert (prepared.width, prepared.height) == expected
    assert opened(prepared).size == expected


def test_a_display_p3_photo_keeps_its_colours():
    red = Image.new("RGB", (32, 32), (220, 60, 40))

    prepared = prepare_image(encoded(red, "PNG", icc_profile=_display_p3()))

    # Display P3's 220, 60, 40 as sRGB, by the matrix between the two spaces' primaries
    assert np.asarray(opened(prepared))[0, 0] == pytest.approx((239, 35, 17), abs=3)
    assert "colours to sRGB" in prepared.changes
    assert "icc_profile" not in opened(prepared).info


def _display_p3() -> bytes:
    """An ICC profile with Display P3's primaries and the sRGB curve, written by hand."""
    return _matrix_profile(
        red=(0.51512, 0.24120, -0.00105),
        green=(0.29198, 0.69225, 0.04189),
        blue=(0.15710, 0.06657, 0.78407),
    )


def _matrix_profile(**primaries: tuple[float, float, float]) -> bytes:
    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(v) for v in values)

    curve = b"para\0\0\0\0\0\x03\0\0" + b"".join(
        fixed(v) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    )
    text = b"desc\0\0\0\0\0\0\0\x03P3\0" + b"\0" * 78
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    for name, values in primaries.items():
        tags[name[0].encode() + b"XYZ"] = xyz(values)
        tags[name[0].encode() + b"TRC"] = curve
    offset = 128 + 4 + 12 * len(tags)
    table, body = len(tags).to_bytes(4, "big"), b""
    for tag, data in tags.items():
        padded = data + b"\0" * (-len(data) % 4)
        table += tag + (offset + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += padded
    size = 128 + len(table) + len(body)
    header = size.to_bytes(4, "big") + b"\0\0\0\0\x04\x30\0\0mntrRGB XYZ " + b"\0" * 12 + b"acsp"
    header += b"\0" * 28 + fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return header.ljust(128, b"\0") + table + body


def test_a_broken_profile_does_not_lose_the_picture():
    prepared = prepare_image(encoded(draw(), "JPEG", icc_profile=b"not a profile" * 20))

    assert "unreadable colour profile ignored" in prepared.changes
    assert difference(opened(prepared), draw()) < 12


def test_an_srgb_profile_changes_no_colour():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    prepared = prepare_image(encoded(draw(), "PNG", icc_profile=srgb))

    assert difference(opened(prepared), draw()) < 1


def _sixteen_bit() -> Image.Image:
    ramp = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    return Image.fromarray(ramp)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight_with_the_same_shades(kind: str):
    prepared = prepare_image(encoded(_sixteen_bit(), kind))

    shades = np.asarray(opened(prepared).convert("L"), dtype=float)
    assert shades.min() < 2
    assert shades.max() > 253
    assert abs(shades.mean() - 127.5) < 2


def test_cmyk_becomes_rgb():
    prepared = prepare_image(encoded(draw().convert("CMYK"), "TIFF"))

    assert opened(prepared).mode == "RGB"
    assert difference(opened(prepared), draw()) < 20


def test_transparency_is_put_on_white():
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 10, 20))

    pixels = np.asarray(opened(prepare_image(encoded(image, "PNG"))).convert("RGB"))

    assert tuple(pixels[5, 15]) == (255, 255, 255)
    assert tuple(pixels[5, 5]) == (0, 0, 255)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "F", "HSV"]
)
def test_a_pil_image_of_any_mode_is_taken(mode: str):
    grey = draw().convert("L")
    image = grey.convert(mode) if mode in {"1", "I", "F", "LA", "PA"} else draw().convert(mode)

    prepared = prepare_image(image)

    assert prepared.form == "pil"
    assert opened(prepared).mode in {"L", "RGB"}


def test_of_an_animation_the_first_frame_is_taken():
    frames = [draw(colour=colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        prepared = prepare_image(file)
        assert difference(opened(prepared), frames[0]) < 12
        assert "first frame of an animation" in prepared.changes


def test_a_lossless_picture_over_a_megabyte_becomes_a_jpeg():
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 255, (900, 900, 3), np.uint8))

    prepared = prepare_image(encoded(noise, "BMP"))

    assert prepared.format == "JPEG"


def test_without_preparation_the_file_is_checked_and_sent_as_it_is(tmp_path: pathlib.Path):
    photo = encoded(draw(3000, 2000), "JPEG", exif=exif(6))

    sent = prepare_source(image_source(photo), prepare=False)

    assert isinstance(sent, PreparedImage)
    assert sent.data == photo
    assert (sent.format, sent.width, sent.height) == ("JPEG", 3000, 2000)
    with pytest.raises(ImageError, match="text"):
        prepare_source(image_source(b"no image"), prepare=False)


@pytest.mark.parametrize(
    ("width", "height", "allowed"),
    [(10_000, 10_001, False), (100_000, 1_001, False), (20_000, 10_000, False)],
)
def test_too_many_pixels_are_refused_by_the_header(width: int, height: int, allowed: bool):
    with pytest.raises(ImageError, match="at most 100 million are decoded"):
        prepare_image(png_header(width, height))


def test_a_file_over_50_megabytes_is_refused_unread(tmp_path: pathlib.Path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(50 * 1024 * 1024 + 1)

    for source in (path, path.read_bytes(), path.open("rb")):
        with pytest.raises(ImageError, match="the limit is 52,428,800"):
            prepare_image(source)
        getattr(source, "close", lambda: None)()


@pytest.mark.parametrize("side", [0, -1])
def test_a_side_below_one_is_refused(side: int):
    with pytest.raises(ConfigurationError, match="max_image_side"):
        prepare_image(encoded(), max_image_side=side)


def test_a_url_is_not_opened_here():
    with pytest.raises(ImageError, match="does not open"):
        prepare_image("https://x.example/a.png")


@pytest.mark.parametrize("kind", ALWAYS)
@given(cut=st.floats(0.0, 0.999))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_cut_off_file_is_an_error_or_a_picture(kind: str, cut: float):
    whole = encoded(draw(200, 100), kind)

    _error_or_picture(whole[: int(len(whole) * cut)])


MAGIC = {kind: encoded(draw(), kind)[:32] for kind in ALWAYS}


@pytest.mark.parametrize("kind", ALWAYS)
@given(garbage=st.binary(max_size=2000), kept=st.integers(2, 32))
@settings(max_examples=60, deadline=None)
def test_garbage_after_the_magic_bytes_is_an_error_or_a_picture(
    kind: str, garbage: bytes, kept: int
):
    _error_or_picture(MAGIC[kind][:kept] + garbage)


@pytest.mark.parametrize("kind", ALWAYS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_with_flipped_bytes_is_an_error_or_a_picture(kind: str, data: Any):
    file = bytearray(encoded(draw(), kind))
    for position in data.draw(st.lists(st.integers(0, len(file) - 1), min_size=1, max_size=8)):
        file[position] ^= data.draw(st.integers(1, 255))

    _error_or_picture(bytes(file))


def _error_or_picture(file: bytes) -> None:
    try:
        prepared = prepare_image(file, max_image_side=128)
    except ImageError:
        return
    assert max(prepared.width, prepared.height) <= 128
    assert sniff(prepared.data) in {"JPEG", "PNG"}


@given(st.binary(max_size=300))
def test_the_header_reader_never_fails(data: bytes):
    for file in (data, b"\xff\xd8" + data, b"\x89PNG\r\n\x1a\n" + data):
        find_passthrough(file, 1536)
        sniff(file)


def test_a_callers_own_image_stays_as_it_is():
    frames = [draw(2000, 100, colour) for colour in ("red", "green", "blue")]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for kind, content in (("JPEG", encoded(draw(3000, 2000), exif=exif(6))), ("GIF", file)):
        image = Image.open(io.BytesIO(content))
        if kind == "GIF":
            image.seek(1)
        before = (image.size, image.mode, dict(image.info), image.tell())

        prepared = prepare_image(image)

        assert (image.size, image.mode, dict(image.info), image.tell()) == before
        if kind == "GIF":  # the frame that it shows
            assert difference(opened(prepared), draw(1536, 77, "green")) < 12


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "I;16", "L", "1"])
def test_a_far_too_large_picture_is_shrunk_like_any_other(mode: str):
    large = ramp(mode, 3000, 2000)
    opaque = Image.open(io.BytesIO(prepare_image(large, max_image_side=3000).data))

    shrunk = prepare_image(large, max_image_side=300)

    assert (shrunk.width, shrunk.height) == (300, 200)
    expected = opaque.convert("RGB").resize((300, 200), Image.Resampling.LANCZOS)
    assert difference(opened(shrunk), expected) < 4


def ramp(mode: str, width: int, height: int) -> Image.Image:
    """Soft shades in any mode."""
    shades = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    grey = Image.fromarray(shades.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((shades * 257).astype(np.uint16))
    if mode in {"RGBA", "LA"}:
        picture = grey.convert(mode)
        picture.putalpha(grey)
        return picture
    return grey.convert("RGB").convert(mode)


def test_a_small_file_with_very_many_pixels_is_a_bomb():
    bomb = encoded(Image.new("RGB", (9000, 9000)), "PNG")

    assert len(bomb) < 300_000
    with pytest.raises(ImageError, match="decompression bomb"):
        prepare_image(bomb)


def test_a_large_jpeg_is_no_bomb():
    assert prepare_image(encoded(Image.new("RGB", (9000, 9000)), "JPEG")).width == 1536


def _png(*chunks: tuple[bytes, bytes], crc: int | None = None) -> bytes:
    file = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        check = zlib.crc32(kind + content) if crc is None else crc
        file += len(content).to_bytes(4, "big") + kind + content + check.to_bytes(4, "big")
    return file


_HEADER = (b"IHDR", b"\0\0\0\x08\0\0\0\x08\x08\x02\0\0\0")
_END = (b"IEND", b"")
_ROWS = zlib.compress(b"\0" * (8 * 25))


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(_png(_HEADER, _END), id="no pixels"),
        pytest.param(_png(_HEADER, (b"IDAT", b"no such stream"), _END), id="garbage"),
        pytest.param(_png(_HEADER, (b"IDAT", _ROWS[:-6]), _END), id="a stream cut off"),
        pytest.param(_png(_HEADER, (b"IDAT", _ROWS), _END, crc=7), id="wrong checksums"),
        pytest.param(b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xd9", id="no scan"),
        pytest.param(
            encoded(draw(400, 400)).partition(b"\xff\xda")[0]
            + b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0"
            + b"\xff\xd9",
            id="an empty scan",
        ),
    ],
)
def test_what_only_looks_like_a_clean_file_is_an_error(file: bytes):
    assert find_passthrough(file, 1536) is None
    with pytest.raises(ImageError):
        prepare_image(file)


def test_a_clean_png_with_rows_to_spare_or_too_few_is_not_sent_as_it_came():
    for rows in (7, 9):
        file = _png(_HEADER, (b"IDAT", zlib.compress(b"\0" * (rows * 25))), _END)
        assert find_passthrough(file, 1536) is None
    assert find_passthrough(_png(_HEADER, (b"IDAT", _ROWS), _END), 1536) is not None


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["L", "RGB"]))
def test_an_interlaced_png_is_clean_like_any_other(width: int, height: int, mode: str):
    def drawn(x: int, y: int) -> bytes:
        return bytes((x * 7 + y * 13 + band) % 256 for band in range(len(mode)))

    rows = b""
    for left, top, every_x, every_y in headers._ADAM7:
        for y in range(top, height, every_y):
            row = b"".join(drawn(x, y) for x in range(left, width, every_x))
            rows += b"\0" + row if row else b""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = size + bytes([8, 2 if mode == "RGB" else 0, 0, 0, 1])
    file = _png((b"IHDR", header), (b"IDAT", zlib.compress(rows)), _END)

    assert find_passthrough(file, 1536) is not None
    assert Image.open(io.BytesIO(file)).getpixel((width - 1, height - 1)) is not None


@pytest.mark.parametrize(
    ("mode", "scale"), [("F", 1 / 255), ("F", 1.0), ("F", 257.0), ("F", 1e6), ("I", 1), ("I", 257)]
)
def test_floats_and_long_integers_keep_their_shades(mode: str, scale: float):
    shades = np.tile(np.arange(256), (16, 1))
    wide = Image.fromarray((shades * scale).astype(np.float32 if mode == "F" else np.int32))
    assert wide.mode == mode

    prepared = prepare_image(wide)

    assert difference(opened(prepared), Image.fromarray(shades.astype(np.uint8))) < 1.5
    assert any("to 8 bits" in change for change in prepared.changes)


def test_the_transparent_value_of_sixteen_bits_is_white():
    shades = np.array([[0, 30000, 65535]], dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(shades).save(file, "PNG", transparency=30000)

    prepared = prepare_image(file)

    assert np.asarray(opened(prepared)).tolist() == [[0, 255, 255]]


def test_an_avif_of_a_general_brand_is_no_heic():
    file = encoded(draw(), "AVIF").replace(b"ftypavif", b"ftypmif1", 1)

    assert prepare_image(file).width == 60


class _SlowFile(io.BytesIO):
    """A file that lets other threads go on after each read and seek, as a network's does."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        time.sleep(0.002)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        place = super().seek(offset, whence)
        time.sleep(0.002)
        return place


@pytest.mark.parametrize("make", [Image.open, lambda file: file], ids=["pil", "file"])
def test_one_open_picture_is_whole_for_all_threads_that_ask_about_it(make):
    noise = np.random.default_rng(7).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    file = encoded(Image.fromarray(noise))  # read in a dozen pieces
    alone = prepare_image(make(_SlowFile(file)))
    opened_once = make(_SlowFile(file))

    with ThreadPoolExecutor(4) as threads:
        prepared = list(threads.map(prepare_image, [opened_once] * 8))

    assert {one.sha256 for one in prepared} == {alone.sha256}
    assert prepare_image(opened_once).sha256 == alone.sha256


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_picture_that_was_being_read_when_a_process_forked_can_be_read_in_the_child():
    reading, go_on = threading.Event(), threading.Event()

    class Waiting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if threading.current_thread() is not threading.main_thread():
                reading.set()
                go_on.wait(30)
            return super().read(size)

    file = Waiting(encoded())
    other = threading.Thread(target=prepare_image, args=[file])
    other.start()
    assert reading.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends the child, and not by 0
        with contextlib.suppress(BaseException):
            prepare_image(file)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    other.join()

    assert status == 0
