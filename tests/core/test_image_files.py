"""Which files are read, however odd, and what the error says of those that are not."""

from __future__ import annotations

import base64
import io
import struct
import urllib.parse
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from image_files import chunk, gif, pixel, png, shown, tiff
from phospho_multimodal import ImageError, prepare_image
from phospho_multimodal.images.inspect import sniff
from pictures import draw, encoded

ORANGE = (200, 100, 50)
ROW = bytes(ORANGE * 8)
CLEAN = png(ROW)


def photo(width: int = 400, height: int = 300) -> Image.Image:
    rows, columns = np.indices((height, width))
    shades = np.stack([columns * 255 // width, rows * 255 // height, (rows * columns) % 256], -1)
    return Image.fromarray(shades.astype(np.uint8))


THUMBNAIL = tiff(bytes(576), (16, 12), {258: [8] * 3, 259: [1], 262: [2], 277: [3]})
RAW_PIXELS = {"photometric": 32803, "extratags": [(33421, "H", 2, (2, 2), True)]}


def camera_file(
    maker: str = "",
    *,
    second: dict[str, object],
    order: str = "<",
    dng: bool = False,
    big: bool = False,
    marked: bool = True,
):
    """A TIFF whose first image is a thumbnail, as cameras and DNG converters write it."""
    tags: list[object] = [(271, "s", 0, maker, True)] if maker else []
    if dng:
        tags.append((50706, "B", 4, (1, 4, 0, 0), True))
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as writer:
        writer.write(np.zeros((12, 16, 3), np.uint8), subfiletype=marked, subifds=1, extratags=tags)
        writer.write(**second)  # type: ignore[arg-type]
    return file.getvalue()


SENSOR = {"data": np.full((64, 96), 3000, np.uint16), **RAW_PIXELS}
FINISHED = {"data": np.full((64, 96, 3), ORANGE, np.uint8), "photometric": "rgb"}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        pytest.param(camera_file("NIKON CORPORATION", second=SENSOR), "NEF", id="NEF"),
        pytest.param(camera_file("NIKON", second=SENSOR, order=">"), "NEF", id="big-endian NEF"),
        pytest.param(camera_file("NIKON", second=SENSOR, big=True), "NEF", id="BigTIFF"),
        pytest.param(
            camera_file("NIKON", second=SENSOR, big=True, order=">"), "NEF", id="big-endian BigTIFF"
        ),
        *(
            pytest.param(
                camera_file(maker, second=SENSOR, marked=False), name, id=f"{name}, not marked"
            )
            for maker, name in {
                "SONY": "ARW",
                "PENTAX Corporation": "PEF",
                "SAMSUNG": "SRW",
                "Hasselblad": "3FR",
                "Phase One": "IIQ",
                "OLYMPUS IMAGING CORP.": "ORF",
                "Panasonic": "RW2",
            }.items()
        ),
        pytest.param(camera_file("Leica", second=SENSOR, dng=True), "DNG", id="DNG"),
        pytest.param(camera_file(second=SENSOR), "camera raw", id="of no maker"),
        pytest.param(b"II*\0\x10\0\0\0CR\x02\0" + bytes(100), "CR2", id="CR2"),
        pytest.param(b"\0\0\0\x18ftypcrx " + bytes(100), "CR3", id="CR3"),
        pytest.param(b"FUJIFILMCCD-RAW 0201" + bytes(100), "RAF", id="RAF"),
        pytest.param(b"IIRO\x08\0\0\0" + bytes(100), "ORF", id="ORF"),
        pytest.param(b"IIU\0\x08\0\0\0" + bytes(100), "RW2", id="RW2"),
        pytest.param(
            tiff(
                bytes(576),
                (16, 12),
                {254: [1], 258: [8] * 3, 259: [1], 262: [2], 277: [3], 330: [4000]},
                behind=bytes(6),
            ),
            "camera raw",
            id="with an empty directory",
        ),
    ],
)
def test_a_camera_raw_file_is_rejected_by_its_name(file: bytes, name: str):
    with pytest.raises(ImageError, match=rf"{name}.*Export it as JPEG or TIFF"):
        prepare_image(file)


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_finished_image_of_a_raw_file_is_sent_if_it_has_full_size(order: str, big: bool):
    file = camera_file("Apple", second=FINISHED, dng=True, order=order, big=big)

    assert pixel(file) == ORANGE
    assert shown(file).size == (96, 64)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (bytes(128) + b"DICM" + bytes(300), "DICOM"),
        (b"qoif" + bytes(60), "QOI"),
        (b"v/1\x01\x02\0\0\0" + bytes(60), "OpenEXR"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "Radiance"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL"),
        (b"P6\n8 8\n255\n" + bytes(192), "PNM"),
        (b"gimp xcf v011\0" + bytes(60), "GIMP"),
        (struct.pack("<IiiHH", 40, 8, 8, 1, 24) + bytes(300), "DIB"),
        (b"hello, this is a note", "text"),
    ],
)
def test_what_is_not_an_image_for_us_is_named(file: bytes, name: str):
    with pytest.raises(ImageError, match=f"This is .*{name}.*Supported are"):
        prepare_image(file)


def test_what_is_full_of_zeros_is_not_called_text():
    for file in (bytes(512), b"abc\0", b"\x01\x02\x03"):
        assert sniff(file) is None


def bmp(header: bytes, pixels: bytes) -> bytes:
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


BMP_SIZES = struct.pack("<iiHH", 8, 8, 1, 32)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        pytest.param(
            tiff(bytes(1024), (16, 16), {258: [16, 16], 259: [1], 262: [1], 277: [2], 338: [2]}),
            "TIFF",
            id="16-bit grey with alpha",
        ),
        pytest.param(
            tiff(bytes(3072), (16, 16), {258: [32] * 3, 259: [1], 262: [2], 277: [3], 339: [3]}),
            "TIFF",
            id="float RGB",
        ),
        pytest.param(
            tiff(bytes(99), (16, 16), {258: [8], 259: [34712], 262: [1], 277: [1]}),
            "TIFF",
            id="JPEG 2000 in TIFF",
        ),
        pytest.param(
            tiff(bytes(99), (16, 16), {258: [8] * 3, 259: [50001], 262: [2], 277: [3]}),
            "TIFF",
            id="WebP in TIFF",
        ),
        pytest.param(
            bmp(
                struct.pack("<I", 56)
                + BMP_SIZES
                + struct.pack("<IIiiII", 3, 256, 0, 0, 0, 0)
                + struct.pack("<IIII", 0x3FF00000, 0xFFC00, 0x3FF, 0),
                bytes(256),
            ),
            "BMP",
            id="bit fields of 10 bits",
        ),
        pytest.param(
            bmp(struct.pack("<I", 40) + BMP_SIZES + struct.pack("<IIiiII", 4, 9, 0, 0, 0, 0), b"j"),
            "BMP",
            id="JPEG in BMP",
        ),
        pytest.param(
            bmp(
                struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 0, 0, 0, 0, 300, 0) + bytes(1200),
                bytes(64),
            ),
            "BMP",
            id="a palette of 300 colours",
        ),
        pytest.param(
            encoded(draw()).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c", 1),
            "JPEG",
            id="12-bit JPEG",
        ),
        pytest.param(
            encoded(draw()).replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11", 1),
            "JPEG",
            id="lossless JPEG",
        ),
        pytest.param(
            encoded(draw(64, 48)).replace(b"\0\x11\x08\0\x30", b"\0\x11\x08\0\0", 1),
            "JPEG",
            id="JPEG whose height follows its pixels",
        ),
    ],
)
def test_a_valid_file_of_an_unusual_variant_is_not_called_broken(file: bytes, kind: str):
    with pytest.raises(ImageError, match=rf"variant of {kind} is not supported .* magick"):
        prepare_image(file)


def missing_huffman_table(file: bytes) -> bytes:
    scan = file.index(b"\xff\xda")
    return file[: scan + 6] + b"\x33" + file[scan + 7 :]


def missing_quantization_table(file: bytes) -> bytes:
    frame = file.index(b"\xff\xc0")
    return file[: frame + 12] + b"\x03" + file[frame + 13 :]


def half_with_end(file: bytes) -> bytes:
    return file[: len(file) // 2] + b"\xff\xd9"


def lost_last_rows(file: bytes) -> bytes:
    return file[: len(file) * 95 // 100] + b"\xff\xd9"


def a_component_without_scan(file: bytes) -> bytes:
    frame = file.index(b"\xff\xc0")
    return file[: frame + 10] + b"\x09" + file[frame + 11 :]


PHOTO = encoded(photo())


@pytest.mark.parametrize("size", [(400, 300), (1800, 1300)], ids=["small", "to be shrunk"])
@pytest.mark.parametrize(
    "damage",
    [
        missing_huffman_table,
        missing_quantization_table,
        half_with_end,
        lost_last_rows,
        a_component_without_scan,
    ],
)
def test_a_jpeg_without_all_of_its_pixels_is_an_error(damage, size):
    with pytest.raises(ImageError):
        prepare_image(damage(encoded(photo(*size))))


def test_a_palette_png_without_its_palette_is_an_error():
    with pytest.raises(ImageError, match="palette is missing"):
        prepare_image(png(bytes(8), colors=3))


def test_a_data_url_without_data_is_called_empty():
    with pytest.raises(ImageError, match="empty: 0 bytes"):
        prepare_image("data:image/png;base64,")


@pytest.mark.parametrize(
    ("brand", "kind"), [(b"miaf", "HEIF"), (b"MiHE", "HEIF"), (b"isom", "a video")]
)
def test_a_heic_is_known_by_any_of_its_brands(brand: bytes, kind: str):
    others = b"mif1heic" if kind == "HEIF" else b"isomiso2"

    assert sniff(b"\0\0\0\x20ftyp" + brand + bytes(4) + others) == kind


@pytest.mark.parametrize("part", [0.2, 0.3, 0.5])
@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 2}, {}])
def test_a_part_of_a_jpeg_with_an_end_marker_is_an_error(options, part: float):
    file = encoded(photo(), **options)

    with pytest.raises(ImageError):
        prepare_image(file[: int(len(file) * part)] + b"\xff\xd9")


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 30, "subsampling": 0}],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_marker_is_sent_with_one(options, mode: str, cut: int):
    whole = encoded(photo().convert(mode), **options)

    prepared = prepare_image(whole[:-cut])

    assert prepared.changes == ("end marker added",)
    assert np.array_equal(np.asarray(shown(prepared)), np.asarray(shown(whole)))


def test_a_large_jpeg_without_its_end_marker_is_shrunk_like_a_whole_one():
    whole = encoded(photo(2000, 1500))

    assert prepare_image(whole[:-2]).data == prepare_image(whole).data


TEXT = zlib.compress(b"{}," * 1_000_000)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([chunk(b"tEXt", b"a\0" + b"x" * 2_000_000)], id="2 MB of text"),
        pytest.param([chunk(b"zTXt", b"a\0\0" + TEXT)], id="3 MB of packed text"),
        pytest.param([chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT)], id="3 MB of international text"),
        pytest.param([chunk(b"zTXt", b"a\0\0" + TEXT)] * 5, id="five of them"),
        pytest.param([chunk(b"iCCP", b"a\0\0" + TEXT)], id="3 MB that are no profile"),
        pytest.param([chunk(b"tEXt", b"Author\0me", spoil=True)], id="tEXt, wrong checksum"),
        pytest.param([chunk(b"iCCP", b"x\0\0no", spoil=True)], id="iCCP, wrong checksum"),
        pytest.param([chunk(b"sBIT", b"\x08" * 3, spoil=True)], id="sBIT, wrong checksum"),
        pytest.param([chunk(b"gAMA", b"\0\1\x86\xa0", spoil=True)], id="gAMA, wrong checksum"),
        pytest.param([chunk(b"tRNS", b"\0" * 6, spoil=True)], id="tRNS, wrong checksum"),
        pytest.param([chunk(b"gAMA", b"\0")], id="a short gAMA"),
        pytest.param([chunk(b"tRNS", b"\0\0")], id="a short tRNS"),
        pytest.param([chunk(b"acTL", b"\0\0\0\2")], id="a short acTL"),
    ],
)
def test_a_png_is_read_whatever_its_metadata(extra: list[bytes]):
    assert pixel(png(ROW, *extra)) == ORANGE


def test_a_png_that_lacks_only_its_end_chunk_is_read():
    for cut in (0, 4, 11):
        end = chunk(b"IEND", b"")[:cut]
        assert pixel(png(ROW, end=False) + end) == ORANGE


def test_a_png_with_an_unknown_row_filter_is_not_sent_as_it_came():
    rows = (b"\7" + ROW) * 8
    file = png(ROW)
    spoiled = file.replace(
        file[file.index(b"IDAT") - 4 : file.index(b"IEND") - 4], chunk(b"IDAT", zlib.compress(rows))
    )

    with pytest.raises(ImageError):
        prepare_image(spoiled)


BASE64 = base64.b64encode(CLEAN).decode()


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("data:image/png;base64," + urllib.parse.quote(BASE64, safe=""), id="percent"),
        pytest.param("data:image/png," + urllib.parse.quote(CLEAN), id="percent, no base64"),
        pytest.param("data:image/png; base64," + BASE64, id="a space before base64"),
        pytest.param("data:image/png;base64 ," + BASE64, id="a space behind base64"),
        pytest.param("data:image/png;base64, " + BASE64, id="a space behind the comma"),
        pytest.param("\n data:image/png;base64," + BASE64, id="a line before it"),
        pytest.param("data:image/png;base64," + BASE64 + "#page", id="a fragment"),
        pytest.param("DATA:image/png;charset=utf-8;BASE64," + BASE64, id="capitals"),
        pytest.param("data:;base64," + BASE64[:40] + "%20\t\n" + BASE64[40:], id="white space"),
        pytest.param("data:;base64," + BASE64.rstrip("="), id="without padding"),
    ],
)
def test_a_data_url_that_browsers_open_is_read(url: str):
    assert prepare_image(url).data == CLEAN


def test_a_gif_cut_in_its_second_frame_shows_the_first():
    frames = [photo(60, 40), photo(60, 40).rotate(180)]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    second = file.index(b"\x2c", len(encoded(frames[0], "GIF")) - 20)
    for end in (second + 1, second + 5, second + 10, second + 30, len(file) - 1):
        assert shown(file[:end]).size == (60, 40), end
    assert pixel(gif((0, 0, 8, 8))[:-1]) == (0, 0, 255)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "deflate"}, {"tile": (16, 16)}, {"rowsperstrip": 4}],
    ids=["plain", "packed", "tiled", "strips"],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_bigtiff_of_either_byte_order_is_read(order: str, options):
    pixels = np.full((20, 30, 3), ORANGE, np.uint8)
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, bigtiff=True, byteorder=order, photometric="rgb", **options)

    assert pixel(file.getvalue(), (17, 9)) == ORANGE


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_first_page_of_a_bigtiff_is_sent_and_the_others_are_reported(order: str):
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=True) as writer:
        for shade in (200, 100):
            writer.write(np.full((20, 30), shade, np.uint8))

    prepared = prepare_image(file.getvalue())

    assert shown(prepared).getpixel((0, 0)) == (200,) * 3
    assert "first of several pages" in prepared.changes


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("count", [10**6, 2**60])
def test_a_bigtiff_whose_tags_would_fill_the_memory_is_an_error(order: str, count: int):
    header = (b"II+\0" if order == "<" else b"MM\0+") + struct.pack(order + "HHQ", 8, 0, 16)
    entry = struct.pack(order + "HHQQ", 700, 1, count, 16)
    file = header + struct.pack(order + "Q", 1000) + entry * 1000 + bytes(1_000_000)

    with pytest.raises(ImageError):
        prepare_image(file)
