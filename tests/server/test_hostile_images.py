"""Hostile images are rejected or answered, within little time and memory."""

from __future__ import annotations

import base64
import itertools
import re
import signal
import struct
import subprocess
import sys
import time
import zlib

import httpx
import pytest
from fastapi import HTTPException
from PIL import Image

from phospho_multimodal.contract import PREDICT_PATH
from phospho_multimodal.server.input_image import read_image
from pictures import encoded, png_header

PROMPTLY = 2.0  # seconds of a core; the slowest takes a quarter of it
MEMORY = 150  # MB above an idle server; it takes about ten

SERVER = """
import pathlib, resource, sys
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.echo import EchoEngine
from phospho_multimodal.server.run import base_url, bind, run

def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # what getrusage says there begins with the parent's peak
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) // 2 ** 10
    unit = 2 ** 20 if sys.platform == "darwin" else 2 ** 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit

listener = bind("127.0.0.1", 0, api_key=None)
app = create_app(EchoEngine())
before = peak()
print(base_url(listener), flush=True)
run(app, listener)
print("grown by", peak() - before, "MB", flush=True)
"""


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(*chunks: bytes, pixels: bytes = zlib.compress(b"\0" * 52)) -> bytes:
    """A PNG of 4 × 4 pixels with these chunks before its pixels."""
    size = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", size), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def nothing_compressed(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(10**6)) for _ in range(megabytes)) + packer.flush()


def gif_header(width: int, height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0" * 6
    return screen + b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02\x4c\x01\0;"


def bmp_header(width: int, height: int) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + sizes + bytes(100)


def tiff(width: int, height: int, *, next_page: int = 0) -> bytes:
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, width * height % 2**32)]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + struct.pack("<I", next_page)
    )


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended


def jpeg_of_many_scans(count: int) -> bytes:
    """A large JPEG whose last scan, a few bytes, goes over all of its pixels again and again."""
    file = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + last * count + b"\xff\xd9"


def animation(kind: str, frames: int) -> bytes:
    pictures = [Image.new("L", (8, 8), shade % 2 * 255) for shade in range(frames)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


SMALL = {
    kind: encoded(Image.linear_gradient("L").convert("RGB").resize((40, 30)), kind)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
}
PAGE = b"<html><script>alert(1)</script></html>"
BOMB = nothing_compressed(200)

REFUSED = {
    "a PNG that says 200 megapixels": png_header(20_000, 10_000),
    "a PNG that says all there are": png_header(2**31 - 1, 2**31 - 1),
    "a PNG that says 100 megapixels and has none": png_header(10_000, 10_000),
    "a WebP that says 16 bits by 16 bits": webp_header(16_384, 16_384),
    "a WebP that says 24 bits by 24 bits": webp_header(2**24, 2**24),
    "a GIF that says 16 bits by 16 bits": gif_header(65_535, 65_535),
    "a BMP that says 10 gigapixels": bmp_header(100_000, 100_000),
    "a BMP of negative height": bmp_header(10, -(2**31)),
    "a TIFF that says 10 gigapixels": tiff(100_000, 100_000),
    "a TIFF that says 99 megapixels and has none": tiff(10_000, 9_999),
    "a PNG of no width": png_header(0, 10),
    "a GIF of no size": gif_header(0, 0),
    "a BMP of no width": bmp_header(0, 10),
    "a TIFF of no width": tiff(0, 10),
    "a JPEG of 3,000 scans": jpeg_of_many_scans(3_000),
    "a JPEG of half a million comments": (
        SMALL["JPEG"][:2] + b"\xff\xfe\0\2" * 500_000 + SMALL["JPEG"][2:]
    ),
    "a PDF that holds a JPEG": b"%PDF-1.7\n" + SMALL["JPEG"],
    "a web page that holds a GIF": PAGE + SMALL["GIF"],
    "an SVG drawing": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "an archive": b"PK\3\4" + bytes(100),
    "a signature and nothing else": b"\x89PNG\r\n\x1a\n",
    "zeros": bytes(1000),
}
ANSWERED = {
    "200 MB in a zTXt": (png(chunk(b"zTXt", b"a\0\0" + BOMB)), (4, 4)),
    "200 MB in an iTXt": (png(chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), (4, 4)),
    "200 MB in an iCCP": (png(chunk(b"iCCP", b"a\0\0" + BOMB)), (4, 4)),
    "60 times 10 MB in a zTXt": (
        png(*[chunk(b"zTXt", b"%d\0\0" % n + nothing_compressed(10)) for n in range(60)]),
        (4, 4),
    ),
    "200 MB behind the pixels": (png(pixels=BOMB), (4, 4)),
    "a PNG with a web page behind it": (SMALL["PNG"] + PAGE, (40, 30)),
    "a JPEG with a video behind it": (SMALL["JPEG"] + b"\xff\xda\0\2" * 200_000, (40, 30)),
    "a GIF with an archive behind it": (SMALL["GIF"] + b"PK\3\4" + bytes(100), (40, 30)),
    "a GIF of 10,000 frames": (animation("GIF", 10_000), (8, 8)),
    "a WebP of 500 frames": (animation("WEBP", 500), (8, 8)),
    "a PNG that says 2 billion frames": (
        png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        (4, 4),
    ),
    "a TIFF whose pages go in circles": (tiff(8, 8, next_page=8), (8, 8)),
}


@pytest.fixture(scope="module")
def server():
    """A server in another process, whose memory is measured at the end."""
    with subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            printed, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert int(re.search(r"grown by (\d+) MB", printed)[1]) < MEMORY


def ask(base_url: str, file: bytes) -> httpx.Response:
    item = {"text": "?", "image_url": base64.b64encode(file).decode()}
    body = {"model": "phospho-multimodal", "inputs": [item]}
    started = time.process_time()
    response = httpx.post(base_url + PREDICT_PATH, json=body, timeout=30)
    assert time.process_time() - started < PROMPTLY
    return response


@pytest.mark.parametrize("file", REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_or_too_much_of_one_is_a_422(server, file):
    response = ask(server, file)
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert (problem["loc"][-1], problem["type"]) == ("image_url", "image_unreadable")
    assert len(problem["msg"]) < 200


@pytest.mark.parametrize(("file", "size"), ANSWERED.values(), ids=ANSWERED)
def test_an_image_with_more_than_an_image_in_it_is_still_that_image(server, file, size):
    response = ask(server, file)
    assert response.status_code == 200, response.text
    answer = response.json()["predictions"][0]["description"]
    assert f'"width": {size[0]}, "height": {size[1]}' in answer


@pytest.mark.parametrize("kind", SMALL)
def test_a_file_cut_off_anywhere_is_refused_or_still_shows_its_image(kind):
    file = SMALL[kind]
    for end in itertools.chain(range(64), range(64, len(file), 1 + len(file) // 64)):
        assert looked_at(file[:end]) in (422, (40, 30)), end


@pytest.mark.parametrize("kind", SMALL)
def test_a_file_with_any_byte_spoilt_does_nothing_worse_than_being_refused(kind):
    file = SMALL[kind]
    for position in range(4, len(file), 1 + len(file) // 200):
        started = time.process_time()
        looked_at(file[:position] + bytes([file[position] ^ 0xFF]) + file[position + 1 :])
        assert time.process_time() - started < PROMPTLY, position


def looked_at(file: bytes) -> object:
    """Read a file as the server does; a rejection is a result, every other exception is raised."""
    try:
        return read_image(base64.b64encode(file).decode(), max_megapixels=1).pixels.size
    except HTTPException as refusal:
        return refusal.status_code
