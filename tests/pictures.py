"""Pictures for tests, drawn on the spot."""

from __future__ import annotations

import io
import zlib
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw", "encoded", "png_header", "receipt"]


def draw(width: int = 60, height: int = 40, colour: str = "teal") -> Image.Image:
    """A plain picture whose four corners differ, so that a turned one is told from an upright."""
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, width // 2, height // 2), fill=colour)
    pen.rectangle((width // 2, height // 2, width, height), fill="black")
    return image


def encoded(image: Image.Image | None = None, kind: str = "JPEG", **options: Any) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    (image or draw()).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0]))
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def receipt(*lines: str, size: tuple[int, int] = (900, 400)) -> Image.Image:
    """A sheet with lines of text that OCR reads without doubt."""
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=40)
    for number, line in enumerate(lines or ("CAFE LUMIERE", "TOTAL 42.50")):
        pen.text((40, 40 + 100 * number), line, fill="black", font=font)
    return image
