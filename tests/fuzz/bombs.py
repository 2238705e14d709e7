"""Pictures made to hurt: each has to end in an ImageError or a right answer, quick and small."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from pictures import draw, encoded, png_header

__all__ = ["BOMBS"]


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + checksum


def _png_with(*chunks: bytes) -> bytes:
    """A small PNG with chunks put in after its header."""
    file = encoded(draw(), "PNG")
    return file[:33] + b"".join(chunks) + file[33:]


def _zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(1)
    block = b"\0" * 1_000_000
    packed = [packer.compress(block) for _ in range(megabytes)]
    return b"".join([*packed, packer.flush()])


def _gif_of(frames: int) -> bytes:
    frame = (
        b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c\x00\x00\x00\x00\x10\x00\x10\x00\x00\x02"
        b"\x0e\x84\x8f\xa9\xcb\xed\x0f\xa3\x9c\xb4\xda\x8b\xb3\x3e\x05\x00"
    )
    small = encoded(Image.new("P", (16, 16)), "GIF")
    return small[:-1] + frame * frames + b";"


def _sized(kind: str, side: int) -> bytes:
    """A file of a small picture whose header says that it is a large one."""
    file = bytearray(encoded(draw(), kind))
    if kind == "GIF":
        file[6:10] = struct.pack("<HH", min(side, 65535), min(side, 65535))
    elif kind == "BMP":
        file[18:26] = struct.pack("<ii", side, side)
    elif kind == "JPEG":
        start = file.index(b"\xff\xc0")
        file[start + 5 : start + 9] = struct.pack(">HH", min(side, 65535), min(side, 65535))
    elif kind == "TIFF":
        for tag in (256, 257):
            at = next(file.index(head) for head in _tiff_entries(tag) if head in file)
            file[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    return bytes(file)


def _tiff_entries(tag: int) -> list[bytes]:
    """How an entry of a TIFF may begin: with a short or a long number."""
    return [struct.pack("<HH", tag, kind) for kind in (3, 4)]


def _saved(mode: str, side: int, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


def _half(file: bytes) -> bytes:
    return file[: len(file) // 2]


def _packed_tiff(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


def _many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each asks for a pass over all pixels."""
    file = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    return file[:last] + file[last:-2] * count + file[-2:]


def _looping_tiff() -> bytes:
    """A TIFF whose list of pictures is a circle."""
    file = bytearray(encoded(draw(), "TIFF"))
    start = struct.unpack("<I", file[4:8])[0]
    entries = struct.unpack("<H", file[start : start + 2])[0]
    after = start + 2 + 12 * entries
    file[after : after + 4] = struct.pack("<I", start)
    return bytes(file)


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG header of 200 megapixels": lambda: png_header(20_000, 10_000),
    "PNG header of 4 gigapixels": lambda: png_header(65_535, 65_535),
    "PNG header of 2^31 by 2^31": lambda: png_header(2**31 - 1, 2**31 - 1),
    "PNG header of no pixels": lambda: png_header(0, 0),
    "PNG of 100 honest black megapixels": lambda: _saved("RGB", 10_000, "PNG"),
    "PNG of 36 transparent megapixels": lambda: _saved("RGBA", 6_000, "PNG"),
    "PNG of 36 megapixels with a palette": lambda: _saved("P", 6_000, "PNG"),
    "PNG of 100 grey megapixels": lambda: _saved("L", 10_000, "PNG"),
    "WebP of 49 black megapixels": lambda: _saved("RGB", 7_000, "WEBP"),
    "GIF of 100 black megapixels": lambda: _saved("P", 10_000, "GIF"),
    "JPEG of 100 black megapixels": lambda: _saved("RGB", 10_000, "JPEG"),
    "AVIF of 36 black megapixels": lambda: _saved("RGB", 6_000, "AVIF"),
    "AVIF of 20 black megapixels": lambda: _saved("RGB", 4_470, "AVIF"),
    "WebP of 36 black megapixels": lambda: _saved("RGB", 6_000, "WEBP"),
    "WebP of 36 transparent megapixels": lambda: _saved("RGBA", 6_000, "WEBP", lossless=True),
    "WebP of 20 transparent megapixels": lambda: _saved("RGBA", 4_470, "WEBP", lossless=True),
    "SVG of 800 comments": lambda: b"<!---->" * 800 + b"\xff",
    "TIFF of 36 black megapixels, packed": lambda: _packed_tiff(6_000),
    **{f"{kind} that says 30,000 by 30,000": (lambda kind=kind: _sized(kind, 30_000))
       for kind in ("GIF", "BMP", "JPEG", "TIFF")},
    "GIF of 10,000 frames": lambda: _gif_of(10_000),
    "PNG with a text chunk of 80 MB": lambda: _png_with(
        _chunk(b"zTXt", b"Comment\0\0" + _zeros(80))
    ),
    "PNG with an international text chunk of 80 MB": lambda: _png_with(
        _chunk(b"iTXt", b"Comment\0\x01\0\0\0" + _zeros(80))
    ),
    "PNG with 20,000 text chunks": lambda: _png_with(*[_chunk(b"tEXt", b"a\0b")] * 20_000),
    "PNG with a colour profile of 80 MB": lambda: _png_with(
        _chunk(b"iCCP", b"icc\0\0" + _zeros(80))
    ),
    "PNG whose data unfolds to 100 MB": lambda: (
        encoded(draw(), "PNG")[:33] + _chunk(b"IDAT", _zeros(100)) + _chunk(b"IEND", b"")
    ),
    "JPEG with a thousand scans": lambda: _many_scans(1000),
    "JPEG with 60,000 empty segments": lambda: (
        b"\xff\xd8" + b"\xff\xe1\x00\x02" * 60_000 + encoded(draw(), "JPEG")[2:]
    ),
    "TIFF that refers to itself": _looping_tiff,
    **{f"cut-off {kind}": (lambda kind=kind: encoded(draw(900, 700), kind)[:-40])
       for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")},
    **{f"first half of a {kind}": (lambda kind=kind: _half(encoded(draw(900, 700), kind)))
       for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")},
}  # fmt: skip
