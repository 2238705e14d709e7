"""Image files written by hand, for what no encoder at hand writes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from phospho_multimodal import PreparedImage, prepare_image

__all__ = ["RAMP", "chunk", "gif", "pixel", "png", "shown", "tiff"]

RAMP: Any = np.tile(np.linspace(0, 65535, 64).astype("<u2"), (8, 1))
"""Grey from black to white, 64 × 8 pixels of 16 bits."""


def chunk(kind: bytes, data: bytes, *, spoil: bool = False) -> bytes:
    """A chunk of a PNG, with a wrong checksum if `spoil`."""
    check = zlib.crc32(kind + data) ^ spoil
    return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")


def png(
    samples: bytes, *extra: bytes, depth: int = 8, colors: int = 2, side: int = 8, end: bool = True
) -> bytes:
    """A PNG whose rows are all alike, with further chunks before its pixels."""
    header = struct.pack(">IIBBBBB", side, side, depth, colors, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + samples) * side))
    parts = (chunk(b"IHDR", header), *extra, pixels, chunk(b"IEND", b"") if end else b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif(frame: tuple[int, int, int, int], *, local_palette: bool = False) -> bytes:
    """A GIF of 8 × 8 pixels with background red, of which a blue frame covers a part."""
    red, white, blue = bytes([255, 0, 0]), bytes([255, 255, 255]), bytes([0, 0, 255])
    palette = red + white + blue + bytes(3)
    left, top, width, height = frame
    local = 0x81 if local_palette else 0
    image = io.BytesIO()
    Image.new("P", (width, height), 2).save(image, "GIF", optimize=False)
    pixels = image.getvalue()
    data = pixels[pixels.index(b",") + 10 : -1]
    file = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x81, 0, 0) + palette
    file += b"," + struct.pack("<HHHHB", left, top, width, height, local)
    return file + (palette if local_palette else b"") + data + b";"


def tiff(
    pixels: bytes,
    size: tuple[int, int],
    tags: dict[int, Sequence[int]],
    *,
    order: str = "<",
    behind: bytes = b"",
) -> bytes:
    """A TIFF of one strip; what is put behind begins at byte 4000."""
    entries: dict[int, tuple[str, Sequence[int]]] = {
        tag: ("L" if max(values) > 0xFFFF else "H", values) for tag, values in tags.items()
    }
    entries |= {256: ("H", [size[0]]), 257: ("H", [size[1]]), 278: ("H", [size[1]])}
    entries |= {273: ("L", [1000]), 279: ("L", [len(pixels)])}
    body, values = b"", b""
    after = 8 + 2 + 12 * len(entries) + 4
    for tag, (form, numbers) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(numbers)}{form}", *numbers)
        if len(raw) > 4:
            place, values = after + len(values), values + raw
            raw = struct.pack(f"{order}L", place)
        kind = {"H": 3, "L": 4}[form]
        body += struct.pack(f"{order}HHL", tag, kind, len(numbers)) + raw.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8)
    head = start + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + values
    file = head.ljust(1000, b"\0") + pixels
    return file.ljust(4000, b"\0") + behind if behind else file


def shown(file: Any, **options: Any) -> Image.Image:
    """The image that is sent, decoded."""
    prepared = file if isinstance(file, PreparedImage) else prepare_image(file, **options)
    image = Image.open(io.BytesIO(prepared.data))
    image.load()
    return image.convert("RGB")


def pixel(file: Any, place: tuple[int, int] = (0, 0)) -> tuple[int, int, int]:
    """One pixel of the image that is sent."""
    red, green, blue = shown(file).getpixel(place)  # type: ignore[misc]
    return red, green, blue
