"""The page about a job: one file, true to the manifest, and safe whatever the rows say."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import itertools
import re
import sys
import tracemalloc
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import ImageFinished, InputRecord, State
from phospho_multimodal.batch.report import page as report
from phospho_multimodal.batch.report.figures import count, date, duration, money
from phospho_multimodal.batch.report.page import make_thumbnail, write_report
from phospho_multimodal.batch.report.plots import Moment
from phospho_multimodal.settings import Settings
from pictures import draw, encoded, png_header

VOID = {"meta", "link", "img"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" style="background:url(https://example.test/)" x="',
    "</style><script>alert(1)</script>",
    "</title></svg><script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "{{ 7 * 191 }}{% for x in y %}",
    "&lt;script&gt;",
    "javascript:alert(1)",
    "<base href=https://example.test/><link rel=stylesheet href=//example.test>",
    "\ud800 alone \x00 \x1b[31m red \u202e backwards \ufffe",
    "\x00<scr\x00ipt>alert(1)</script>",
)


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), "an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    def drawings(self) -> list[str]:
        return re.findall(r"<svg.*?</svg>", self.source, re.DOTALL)


def row(number: int = 0, status: str = "described", **changed: Any) -> dict[str, Any]:
    return {
        "id": f"row-{number}",
        "source": f"https://user:secret@example.test/{number}.jpg?token=secret",
        "description": f"Answer {number}." if status == "described" else None,
        "status": status,
        "error_class": None if status == "described" else "ImageError",
        "error": None if status == "described" else f"Broken {number}.",
        "attempts": 1,
        "cost_usd": 0.01,
        "images_in_doubt": int(status == "in_doubt"),
        "duplicate_of": None,
        "sha256": "ab" * 32,
        "width": 1280,
        "height": 960,
        "seconds": 1.5,
        "prompt_id": "9f31c2ab",
        "model": "a-model",
        "time": "2026-11-25T10:10:00+00:00",
        **changed,
    }


def manifest_of(rows: Iterable[Mapping[str, Any]] = (), **changed: Any) -> dict[str, Any]:
    rows = list(rows)
    statuses = Counter(one["status"] for one in rows)
    return {
        "prompt_id": "9f31c2ab",
        "prompt": "What is this?",
        "model": "a-model",
        "parameters": {"max_new_tokens": 200},
        "stop": None,
        "created": "2026-11-25T10:10:00+00:00",
        "finished": "2026-11-25T10:12:05Z",
        "version": "1.2.3",
        "inputs": len(rows),
        "statuses": {
            status: statuses[status] for status in ("described", "failed", "in_doubt", "pending")
        },
        "error_classes": Counter(
            one["error_class"] or "Unknown" for one in rows if one["status"] == "failed"
        ),
        "distinct_pictures": len(rows),
        "duplicates": 0,
        "images_billed": statuses["described"],
        "images_in_doubt": statuses["in_doubt"],
        "usd_per_image": 0.01,
        "cost_usd": 0.01 * statuses["described"],
        "cost_in_doubt_usd": 0.01 * statuses["in_doubt"],
        "saved_by_deduplication_usd": 0.0,
        "attempts": len(rows),
        "seconds": 125.0,
        "runs": 1,
        "results": {"format": "parquet", "parts": [], "digest": "cd" * 32},
        **changed,
    }


def write(
    path: Path,
    rows: Iterable[Mapping[str, Any]] = (),
    manifest: Mapping[str, Any] | None = None,
    moments: Sequence[Moment] = (),
    **options: Any,
) -> Page:
    if manifest is None:
        manifest = manifest_of(rows)
    options.setdefault("thumbnail", lambda _: None)
    write_report(path / "_report.html", manifest, rows, moments, **options)
    return Page(path / "_report.html")


MINUTE = Moment(60.0, images_billed=6, images_in_doubt=1, rows=8)


def every_kind() -> list[dict[str, Any]]:
    return [
        row(0),
        row(1, "failed"),
        row(2, "failed", error_class="InvalidRequestError"),
        row(3, "in_doubt", error_class="ReplyLostError"),
        row(4, duplicate_of="row-0", cost_usd=0.0),
        row(5, "failed", error_class=None, error=None),
        row(6, "pending", error_class=None, error=None),
    ]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_texts_stay_text(hostile: str, tmp_path: Path):
    tame = write(tmp_path, every_kind(), moments=[MINUTE], thumbnail=lambda _: encoded())
    rows = [
        one | {"id": hostile, "error": hostile, "description": hostile} for one in every_kind()
    ] + [row(9, "failed", error_class=hostile)]
    part = {"name": hostile, "rows": 1, "bytes": 1, "sha256": hostile}
    manifest = manifest_of(
        rows,
        prompt=hostile,
        prompt_id=hostile,
        model=hostile,
        version=hostile,
        parameters={hostile: hostile},
        stop=[hostile],
        created=hostile,
        results={"format": hostile, "parts": [part], "digest": hostile},
    )

    page = write(tmp_path, rows, manifest, [MINUTE], thumbnail=lambda _: encoded())

    assert "script" not in {tag for tag, _ in page.elements}
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in tame.elements} | {
        *("table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary")
    }
    # Attributes have the page's own names, and of texts none but ours stands in one.
    names = {name for _, attributes in page.elements for name in attributes}
    assert names <= {name for _, attributes in tame.elements for name in attributes} | {"open"}
    values = "".join(
        value or "" for _, attributes in page.elements for value in attributes.values()
    )
    assert "alert" not in values
    assert "example.test" not in values
    shown = re.sub(r"[\x00\x1b\u202e\ud800\ufffe]", "\ufffd", hostile)
    assert page.text.count(" ".join(shown.split())) >= 10
    assert_nothing_outside_is_named(page)


def assert_nothing_outside_is_named(page: Page) -> None:
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name == "src":
                assert re.match(r"data:image/(jpeg|svg\+xml);base64,", value or "")
            elif name == "href":
                assert value == "data:," if tag == "link" else (value or "").startswith("#")
            else:
                assert "//" not in (value or "")
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path):
    page = write(tmp_path, every_kind(), moments=[MINUTE], thumbnail=lambda _: encoded())

    assert_nothing_outside_is_named(page)
    policy = next(one["content"] for one in page.all("meta") if "http-equiv" in one)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert "script" not in {tag for tag, _ in page.elements}


def test_where_a_picture_comes_from_is_not_told(tmp_path: Path):
    page = write(tmp_path, every_kind(), thumbnail=lambda _: encoded())

    assert "secret" not in page.source
    assert [one["alt"] for one in page.all("img")] == ["Image of row 1"]


def test_all_counts_are_those_of_the_manifest(tmp_path: Path):
    statuses = {"described": 987_654, "failed": 1_234, "in_doubt": 56, "pending": 7_890}
    manifest = manifest_of(
        inputs=996_834,
        statuses=statuses,
        error_classes={"ImageError": 1_200, "ServiceError": 34},
        distinct_pictures=900_000,
        duplicates=96_834,
        cost_usd=9_000.1,
        cost_in_doubt_usd=0.56,
        saved_by_deduplication_usd=968.34,
        seconds=7_500.0,
        runs=3,
    )

    text = write(tmp_path, every_kind(), manifest).text

    for told in (
        "987,654 of 996,834 inputs are described",
        "Inputs 996,834 Described 987,654 Failed 1,234 In doubt 56 Pending 7,890",
        "Billed $9,000.10 In doubt $0.56 Saved by deduplication $968.34",
        "Working time 2 hours and 5 minutes Rate 7,912 a minute",
        "900,000 images, 96,834 duplicates that cost nothing",
        "in 3 runs",
        "1,234 in all",
        "ImageError 1,200",
        "The first 1 of 1,200; the results hold all.",
        "Started 25 November 2026, 10:10 UTC; ended 25 November 2026, 10:12 UTC.",
        "7,890 pending. Run the same command again",
    ):
        assert told in text, told


def test_rows_are_shown_by_what_became_of_them(tmp_path: Path):
    rows = every_kind()
    manifest = manifest_of(rows)
    manifest["results"]["parts"] = [
        {"name": "part-00000.parquet", "rows": 6, "bytes": 4321, "sha256": "ef" * 32}
    ]

    text = write(tmp_path, rows, manifest).text

    assert "row-0 Answer 0. 1,280 × 960 px · $0.01 · 1.5 s" in text
    assert "row-6" not in text  # there is nothing to show of it yet
    assert "Answer 4." not in text  # the same answer once more
    assert "row-1 Broken 1." in text
    assert "InvalidRequestError 1 in all. Id What happened row-2 Broken 2." in text
    assert "Unknown" in text
    assert "row-3 ReplyLostError Broken 3. 1" in text
    assert "add --retry-in-doubt to the same command" in text
    assert f"part-00000.parquet 6 4,321 {'ef' * 32}" in text
    assert f"Digest of all rows {'cd' * 32}" in text
    assert "What is this?" in text
    assert "max_new_tokens 200" in text


@pytest.mark.parametrize(
    ("inputs", "described", "says"),
    [
        (0, 0, "There was nothing to describe"),
        (1, 1, "The one input is described"),
        (2, 2, "All 2 inputs are described"),
        (2, 0, "0 of 2 inputs are described"),
    ],
)
def test_the_title_says_what_came_of_it(inputs: int, described: int, says: str, tmp_path: Path):
    manifest = manifest_of(inputs=inputs)
    manifest["statuses"] |= {"described": described, "failed": inputs - described}

    assert write(tmp_path, (), manifest).text.split("·")[1].find(says) > 0


def test_a_job_without_rows_or_course_has_a_page(tmp_path: Path):
    nothing = manifest_of(seconds=0.0, finished=None)
    nothing["results"]["digest"] = None

    page = write(tmp_path, (), nothing)

    assert not page.drawings()
    assert "No part was written." in page.text
    assert "not finished" in page.text
    assert "Rate none" in page.text


def test_rows_without_pictures_have_a_placeholder(tmp_path: Path):
    rows = [row(0, width=None, height=None, seconds=None), row(1, attempts=3)]

    page = write(tmp_path, rows, thumbnail=lambda one: encoded() if one["id"] == "row-1" else None)

    assert len(page.all("img")) == 1
    assert "No picture to show row-0 Answer 0. $0.01 row-1" in page.text
    assert "3 attempts" in page.text


def test_a_picture_is_asked_for_only_if_it_is_shown(tmp_path: Path):
    asked: list[str] = []

    page = write(
        tmp_path,
        [row(number) for number in range(1000)],
        thumbnail=lambda one: asked.append(one["id"]),
        pictures=7,
    )

    numbers = [int(one.removeprefix("row-")) for one in asked]
    assert len(numbers) == 7
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    assert min(steps) > 60  # an even sample of a thousand
    assert max(steps) < 260
    assert numbers[0] < 150
    assert numbers[-1] > 740
    assert "7 of 1,000, taken evenly from all of them." in page.text
    assert not write(tmp_path, [row()], pictures=0).all("li")


def test_of_each_class_of_failures_the_first_are_shown(tmp_path: Path):
    rows = [row(number, "failed", error_class="ImageError") for number in range(500)]
    rows += [row(number, "failed", error_class="ServiceError") for number in range(500, 515)]
    rows += [row(number, "in_doubt") for number in range(600, 700)]

    text = write(tmp_path, rows).text

    assert "Broken 9." in text
    assert "Broken 10." not in text
    assert "Broken 509." in text
    assert "Broken 510." not in text
    assert "The first 10 of 500; the results hold all." in text
    assert "The first 50; the results hold all." in text
    assert "Broken 649." in text
    assert "Broken 650." not in text


def test_many_classes_are_few_bars(tmp_path: Path):
    rows = [row(number, "failed", error_class=f"Error{number:02}") for number in range(40)]

    page = write(tmp_path, rows)

    assert page.text.count("all others") == 1
    assert "Error29" in page.text
    assert "Error30" not in page.text


def test_a_long_text_is_cut_and_says_so(tmp_path: Path):
    text = write(tmp_path, [row(description="word " * 1000)]).text

    assert "… (3,000 characters more)" in text
    assert len(text) < 5000


@pytest.mark.long
def test_memory_stays_flat(tmp_path: Path):
    def rows() -> Iterator[dict[str, Any]]:
        kinds = ("described", "described", "failed", "in_doubt")
        for number in range(100_000):
            kind = kinds[number % 4]
            yield row(
                number,
                kind,
                description="d" * 1000,
                error="e" * 300,
                error_class=f"Error{number % 1000}",
            )

    manifest = manifest_of(inputs=100_000)
    thumbnail = encoded(draw(240, 180))
    write(
        tmp_path, every_kind(), moments=[MINUTE], thumbnail=lambda _: thumbnail
    )  # loads the libraries
    gc.collect()
    tracemalloc.start()
    try:
        write_report(
            tmp_path / "large.html", manifest, rows(), [MINUTE] * 100, thumbnail=lambda _: thumbnail
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def test_the_plots_are_images_that_load_nothing_and_say_what_they_show(tmp_path: Path):
    page = write(tmp_path, every_kind(), moments=[MINUTE, MINUTE, Moment(60.0, 0, 0, 1)])

    plots = [one for one in page.all("img") if "svg" in (one["src"] or "")]
    assert [one["alt"] for one in plots] == [
        "Cost so far: $0.12 billed, $0.02 in doubt",
        "Rows per minute: 8 rows a minute at most, over 1 minute each",
    ]
    for one in plots:
        drawing = ET.fromstring(base64.b64decode((one["src"] or "").partition(",")[2]))  # noqa: S314 - our own page
        assert not [element for element in drawing.iter() if element.tag.endswith("}image")]
        assert "minutes of working time" in "".join(drawing.itertext())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {(one["href"] or "").removeprefix("#") for one in page.all("a")}
    assert links == {"described", "failed", "in_doubt"}
    assert links <= set(ids)


def test_the_course_of_a_job_leaves_out_its_pauses(tmp_path: Path):
    job = Job.of("What is this?", Settings.resolve(api_key="key"), {})
    journal = Journal(tmp_path, job)
    ends = [*range(100), *(86_400 + second for second in range(100))]
    with contextlib.closing(journal):
        journal.add([InputRecord(f"{number}", "a.png") for number in range(len(ends))])
        keys = [f"{number:032}".encode() for number in range(len(ends))]
        journal.take((at, key, 8, 8) for at, key in enumerate(keys, start=1))
        journal.commit(
            [
                ImageFinished(key, State.DESCRIBED, description="A cat.", ended=1.8e9 + end)
                for key, end in zip(keys, ends, strict=True)
            ]
        )
        course = journal.course(200.0)

    assert len(course) == 100
    assert [sum(column) for column in zip(*course, strict=True)] == [200.0, 200, 0, 200]


def test_headings_are_in_order_and_every_table_has_a_caption(tmp_path: Path):
    page = write(tmp_path, every_kind(), moments=[MINUTE])

    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("table")) == len(page.all("caption")) > 0
    assert all(one["scope"] in {"col", "row"} for one in page.all("th"))


def test_a_page_is_whole_or_the_old_one(tmp_path: Path):
    write(tmp_path, [row(0)])
    before = (tmp_path / "_report.html").read_bytes()

    def broken(_: Mapping[str, Any]) -> bytes:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - whatever it was, it comes through
        write(tmp_path, [row(1)], thumbnail=broken)

    assert (tmp_path / "_report.html").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["_report.html"]


@pytest.mark.parametrize("library", ["jinja2", "matplotlib", "humanize"])
def test_without_a_library_the_error_names_the_extra(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(ImportError, match=r'pip install "phospho-multimodal\[batch\]"'):
        write(tmp_path, [row()], manifest_of(), [MINUTE])

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_thumbnail_is_a_small_jpeg(kind: str, tmp_path: Path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(draw(600, 400), kind))

    small = make_thumbnail(path, side=120)

    assert small is not None
    with Image.open(io.BytesIO(small)) as image:
        assert image.format == "JPEG"
        assert image.size == (120, 80)
    assert len(small) < 10_000
    assert make_thumbnail(draw(30, 20)) is not None


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no image",
        encoded()[:200],
        encoded(draw(900, 900))[:1500],
        png_header(30_000, 30_000),
        Path("/nowhere/picture.jpg"),
        Path("/"),
        "https://example.test/picture.jpg",
        "http://127.0.0.1:9/picture.jpg",
        "file:///etc/passwd",
        "%%%",
        3,
    ],
)
def test_there_is_no_thumbnail_of_what_is_no_picture(image: Any):
    assert make_thumbnail(image) is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (money(12.34), "$12.34"),
        (money(0), "$0.00"),
        (money(0.1), "$0.10"),
        (money(1), "$1.00"),
        (money(0.0125), "$0.0125"),
        (money("0.0004"), "$0.0004"),
        (money(0.99999), "$1.00"),
        (money(1234567.891), "$1,234,567.89"),
        (count(1234), "1,234"),
        (count(2.54), "2.5"),
        (count(0), "0"),
        (count(123.9), "124"),
        (duration(0.34), "0.3 seconds"),
        (duration(59.7), "1 minute"),
        (duration(62), "1 minute and 2 seconds"),
        (duration(3605), "1 hour"),
        (duration(7500), "2 hours and 5 minutes"),
        (duration(200_000), "2 days and 8 hours"),
        (date("2026-11-25T23:30:00-01:00"), "26 November 2026, 00:30 UTC"),
        (date("2026-11-25T10:10:00"), "25 November 2026, 10:10 UTC"),
        (date(None), "not yet"),
        (date("soon"), "soon"),
    ],
)
def test_figures_are_in_plain_english(written: str, expected: str):
    assert written == expected


def test_the_template_lies_beside_its_module():
    # The wheel holds every file of the package's folders.
    assert Path(report.__file__).with_name("report.html.j2").is_file()
