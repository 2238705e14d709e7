"""A picture that hides in the text of a tool is found, and no text that a tool may give is."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phospho_multimodal import UnsupportedContentError
from phospho_multimodal.images.source import ImageSource
from phospho_multimodal.messages.content_blocks import make_turn
from phospho_multimodal.messages.conversation import Turn
from phospho_multimodal.messages.embedded_images import (
    LONGEST_RUN,
    check_tool_text,
    split_embedded_images,
)
from pictures import encoded, receipt


def noise(size: int, seed: int) -> bytes:
    """The same bytes for the same seed, and none of them to be expected."""
    return hashlib.shake_256(str(seed).encode()).digest(size)


NOISE = encoded(Image.effect_noise((120, 90), 64).convert("RGB"), kind="PNG")
BLANK = Image.new("RGB", (80, 80), "white")

# What a tool may well say, each longer than the limit, and none of it a file.
TEXTS = {
    "prose": "The receipt was printed at the counter; nobody had asked for it. " * 200,
    "a language without spaces": "収据は受付で印刷されました" * 800,
    "a gene": "ACGTTGCA" * 2000,
    "a protein": "MKVLAAGIVGLLLAQWERTYPSDFGHNKCVBM" * 400,
    "hexadecimal": noise(20_000, 1).hex(),
    "hexadecimal in capitals": noise(20_000, 1).hex().upper(),
    "base32": base64.b32encode(noise(20_000, 1)).decode(),
    "digits of pi": "31415926535897932384626433832795" * 400,
    "a rule": "-" * 20_000,
    "another rule": "_" * 20_000,
    "laughter": "ha" * 10_000,
    "certificates": (
        "-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(noise(1970, 1)).decode()
        + "-----END CERTIFICATE-----\n"
    )
    * 20,
    "digests": "\n".join(noise(32, n).hex() for n in range(500)),
    "digests in base64": "\n".join(base64.b64encode(noise(32, n)).decode() for n in range(500)),
    "tokens": "\n".join(
        ".".join(base64.urlsafe_b64encode(noise(300, n)).decode() for _ in "abc") for n in range(20)
    ),
    "paths": "\n".join(f"/srv/photos/2026/11/{n:08}/Receipt-{n}_large.jpeg" for n in range(500)),
    "links": " ".join(
        f"https://x.example/a/{n}?signature=aB3%2F{n}xYz&expires={n}" for n in range(300)
    ),
    "numbers": json.dumps([n / 7 for n in range(3000)]),
    "records": json.dumps([{"id": n, "name": f"Item{n}", "seen": True} for n in range(500)]),
    "a page with small pictures": 400
    * (
        '<img src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7">'
    ),
    "code": Path(__file__).read_text("utf-8") * 2,
    "bytes as Python shows them": repr(b"\x00\x01\x02hello" * 2000),
    "the first bytes of a file": f"{NOISE[:40]!r} is how it begins. " + "And so on. " * 2000,
}

FILES = {
    "a PNG": NOISE,
    "a JPEG": encoded(receipt()),
    "a blank sheet without compression": encoded(BLANK, kind="BMP"),
    "a blank TIFF": encoded(BLANK, kind="TIFF"),
    "a GIF": encoded(receipt(), kind="GIF"),
    "a WebP": encoded(receipt(), kind="WEBP"),
    "anything": noise(LONGEST_RUN, 1),
}

WRAPPINGS = {
    "bare": lambda data: base64.b64encode(data).decode(),
    "for URLs": lambda data: base64.urlsafe_b64encode(data).decode(),
    "with line breaks": lambda data: base64.encodebytes(data).decode(),
    "with the line breaks of mail": lambda data: (
        base64.encodebytes(data).decode().replace("\n", "\r\n")
    ),
    "in JSON": lambda data: json.dumps({"a": [base64.b64encode(data).decode()]}),
    "in JSON with line breaks": lambda data: json.dumps(base64.encodebytes(data).decode()),
    "as Python shows a block": lambda data: str({"data": base64.b64encode(data).decode()}),
    "as a data URL in prose": lambda data: (
        f"Here it is: data:image/png;base64,{base64.b64encode(data).decode()}. Well?"
    ),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_a_tool_may_say_passes(text: str) -> None:
    assert len(text) > 500
    check_tool_text(text)


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_file_in_base64_is_found(data: bytes, wrap: Any) -> None:
    text = wrap(data)
    assert len(text) > LONGEST_RUN
    with pytest.raises(UnsupportedContentError, match="list of content blocks") as raised:
        check_tool_text(text, "camera")
    message = str(raised.value)
    assert "the tool 'camera'" in message
    assert "Nothing was sent." in message
    assert text[:40] not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "data", [FILES[name] for name in FILES if name != "anything"], ids=lambda data: data[:3].hex()
)
def test_bytes_that_python_made_into_text_are_found(data: bytes) -> None:
    for text in (str(data), str({"type": "image", "data": data})):
        with pytest.raises(UnsupportedContentError):
            check_tool_text(text)


PICTURES = {name: data for name, data in FILES.items() if name != "anything"}


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("wrap", [*WRAPPINGS.values(), str, repr], ids=[*WRAPPINGS, "str", "repr"])
def test_pictures_are_taken_out_of_a_text_whole(data: bytes, wrap: Any) -> None:
    text = f"Before: {wrap(data)}\nBetween: {wrap(data)}\nAfter"
    before, first, between, second, after = split_embedded_images(text)
    assert isinstance(first, ImageSource)
    assert isinstance(second, ImageSource)
    assert first.read() == second.read() == data
    assert isinstance(before, str)
    assert before.startswith("Before: ")
    assert "Between: " in str(between)
    assert str(after).endswith("\nAfter")
    assert len(f"{before}{between}{after}") < 150
    assert "base64," not in f"{before}{between}{after}"


@pytest.mark.parametrize(
    "text", [*TEXTS.values(), base64.b64encode(FILES["anything"]).decode()], ids=[*TEXTS, "a file"]
)
def test_what_is_no_picture_stays_text(text: str) -> None:
    assert split_embedded_images(text) == [text]


# What looks like a picture, and is none, or cannot be read any more.
ODD_TEXTS = {
    "words that begin like a BMP": repr(b"BMW sold cars. " + noise(LONGEST_RUN, 1)),
    "a sound": repr(b"RIFF\x00\x10\x00\x00WAVEfmt " + noise(LONGEST_RUN, 1)),
    "cut off": repr(FILES["a PNG"])[:6000] + "... [truncated]",
    "a line break within": repr(FILES["a GIF"]).replace("\\x00", "\n", 1),
    "half a character within": repr(FILES["a GIF"]).replace("\\x00", "\ud800", 1),
    "many beginnings": "b'BM\\x00" * 5000,
    "backslashes": "b'BM" + "\\" * 50_000 + "'" * 50_000,
    "base64 of two letters": base64.b64encode(b"BM" + noise(LONGEST_RUN, 1)).decode(),
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_what_only_looks_like_a_picture_stays_text(text: str) -> None:
    begin = time.process_time()
    assert split_embedded_images(text) == [text]
    assert time.process_time() - begin < 1


def test_a_short_first_line_behind_an_escaped_break_is_no_error() -> None:
    symbols = base64.b64encode(noise(3 * LONGEST_RUN, 1)).decode()
    text = f"\\n{symbols[:59]}\n{symbols[59:]}"
    assert split_embedded_images(text) == [text]
    with pytest.raises(UnsupportedContentError):
        check_tool_text(text)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_a_picture_behind_another_whose_last_line_is_full_is_found(kind: str) -> None:
    data = encoded(receipt(), kind=kind)
    # Filled up until it has whole lines of 57 bytes.
    missing = -len(data) % 57
    first = {
        "PNG": lambda: data[:8] + bytes(missing) + data[8:],
        "JPEG": lambda: data[:2] + b"\xff" * missing + data[2:],
        "GIF": lambda: data[:6] + bytes(missing) + data[6:],
    }[kind]()
    found = split_embedded_images((base64.encodebytes(first) + base64.encodebytes(NOISE)).decode())
    assert [part.read() for part in found if isinstance(part, ImageSource)] == [first, NOISE]


def test_a_large_picture_as_python_shows_bytes_takes_no_long_time() -> None:
    data = b"\x89PNG\r\n\x1a\n" + noise(4_000_000, 1)
    begin = time.process_time()
    (picture,) = split_embedded_images(repr(data))
    assert isinstance(picture, ImageSource)
    assert picture.read() == data
    assert time.process_time() - begin < 3


@settings(max_examples=50)
@given(size=st.integers(LONGEST_RUN, 3 * LONGEST_RUN), width=st.integers(60, 200))
def test_no_byte_is_lost_between_lines(size: int, width: int) -> None:
    data = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + noise(size, size)
    symbols = base64.b64encode(data).decode()
    lines = "\n".join(symbols[at : at + width] for at in range(0, len(symbols), width))
    before, picture, after = split_embedded_images(f"It is\n{lines}\nAll of it.")
    assert isinstance(picture, ImageSource)
    assert (before, picture.read()) == ("It is\n", data)
    assert str(after).strip() == "All of it."


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\\n"])
@pytest.mark.parametrize("width", [60, 76, 10**9])
def test_two_pictures_on_lines_of_their_own_are_two(width: int, line_break: str) -> None:
    pictures = [PICTURES["a JPEG"], PICTURES["a PNG"], PICTURES["a JPEG"] + b"!", NOISE + b"!!"]
    lines = []
    for data in pictures:
        symbols = base64.b64encode(data).decode()
        if width > len(symbols):
            symbols = symbols.rstrip("=")
        lines += [symbols[at : at + width] for at in range(0, len(symbols), width)]
    found = split_embedded_images(line_break.join(lines))
    assert [part.read() for part in found if isinstance(part, ImageSource)] == pictures
    assert not "".join(part for part in found if isinstance(part, str)).strip("\\nr\r\n")


def test_no_module_of_the_standard_library_is_taken_for_a_file() -> None:
    """Five million characters that people wrote, tables and tests of encodings among them."""
    modules = list(Path(os.__file__).parent.glob("*.py"))
    assert len(modules) > 100
    for module in modules:
        check_tool_text(module.read_text("utf-8"))


words = st.text(min_size=1, max_size=30)
alphabets = ["ACGT", "0123456789abcdef", "01", "-=", "abcdefghijklmnopqrstuvwxyz234567"]


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=1, max_size=40), st.sampled_from([" ", "\n", ", ", "\t", "; "]))
def test_no_text_of_words_is_taken_for_a_file(text: list[str], between: str) -> None:
    check_tool_text(between.join(text * (20_000 // len(text))))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(alphabets), st.integers(LONGEST_RUN, 30_000), st.integers())
def test_no_long_run_of_few_symbols_is_taken_for_a_file(
    alphabet: str, length: int, seed: int
) -> None:
    check_tool_text("".join(alphabet[byte % len(alphabet)] for byte in noise(length, seed)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3 * LONGEST_RUN // 4, 40_000),
    st.integers(),
    st.text(max_size=9),
    st.text(max_size=9),
)
def test_random_bytes_in_base64_are_found_wherever_they_stand(
    size: int, seed: int, before: str, after: str
) -> None:
    text = f"{before} {base64.b64encode(noise(size, seed)).decode()} {after}"
    with pytest.raises(UnsupportedContentError):
        check_tool_text(text)


@pytest.mark.parametrize("length", [59, 60, 4095])
def test_the_search_takes_linear_time(length: int) -> None:
    """Runs that just miss what is looked for."""
    run = ("aB3" * length)[:length]
    text = f"{run} " * (4_000_000 // length)
    start = time.process_time()
    check_tool_text(text)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_only_a_tool_is_asked(role: Any) -> None:
    text = base64.b64encode(NOISE).decode()
    assert make_turn(role, [text]) == Turn(role, (text,))
    with pytest.raises(UnsupportedContentError):
        make_turn("tool", [text])
