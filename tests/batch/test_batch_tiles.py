"""A batch with `detail="tiles"`: each image has one row, which joins the answers of its tiles."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from describing_many import Batch, Endpoint, described, fill, read_rows, slow
from fault_server import reset, status
from phospho_multimodal import ConfigurationError, SpendingLimitError
from phospho_multimodal.batch import describe_many

TILES = {"detail": "tiles", "max_image_side": 64}


def screenshot(path: Path) -> Path:
    """An image that needs three columns and two rows of tiles of 64 pixels; all of them differ."""
    Image.linear_gradient("L").resize((160, 90)).rotate(1, expand=False).save(path)
    return path


def counted(server: Endpoint) -> Counter[bytes]:
    """How often each tile was sent."""
    return Counter(request.image for request in server.questions)


HEADINGS = [
    f"Tile {at + 1} of 6: row {row} of 2, column {column} of 3"
    for at, (row, column) in enumerate((row, column) for row in (1, 2) for column in (1, 2, 3))
]


def test_an_image_has_one_row_with_the_answers_of_its_tiles_and_the_price_is_known_before(
    endpoint, batch: Batch, tmp_path
):
    photos = fill(tmp_path / "photos", 1)
    screenshot(photos / "00001.png")
    server = endpoint()
    before = []

    def confirm(preflight) -> bool:
        before.append((preflight.inputs, preflight.pictures, preflight.requests, server.billed))
        before.append(preflight.usd_expected)
        return True

    summary = batch(photos, tmp_path / "out", base_url=server.base_url, confirm=confirm, **TILES)

    small, tiled = read_rows(summary)
    assert [small["id"], tiled["id"]] == ["00000.png", "00001.png"]
    assert [part.partition(":\n")[0] for part in tiled["description"].split("\n\n")] == HEADINGS
    assert before == [(2, 2, 7, 0), Decimal("0.07")]
    assert server.billed == summary.images_billed == 7
    assert (tiled["attempts"], tiled["cost_usd"]) == (6, pytest.approx(0.06))
    assert summary.manifest["distinct_pictures"] == 2
    prompts = [json.loads(request.body)["inputs"][0]["text"] for request in server.questions]
    assert sum("tile 2 of 6" in prompt for prompt in prompts) == 1


def test_the_same_image_twice_is_paid_for_once(endpoint, batch: Batch, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        screenshot(photos / name)
    server = endpoint()

    summary = batch(photos, tmp_path / "out", base_url=server.base_url, **TILES)

    first, second = read_rows(summary)
    assert first["description"] == second["description"]
    assert (second["duplicate_of"], second["cost_usd"]) == ("a.png", 0.0)
    assert server.billed == 6


def test_the_same_command_goes_on_where_the_spending_limit_stopped_it(
    endpoint, batch: Batch, tmp_path
):
    photos = tmp_path / "photos"
    photos.mkdir()
    screenshot(photos / "a.png")
    server = endpoint()
    options = {"base_url": server.base_url, **TILES}

    with pytest.raises(SpendingLimitError):
        batch(photos, tmp_path / "out", max_images=2, **options)
    assert server.billed == 2
    summary = batch(photos, tmp_path / "out", max_images=6, **options)

    assert summary.described == 1
    assert server.billed == summary.images_billed == 6


@pytest.mark.parametrize(
    ("fault", "again", "error"),
    [
        (status(422, b'{"detail": "No."}'), "retry_failed", "InvalidRequestError"),
        (reset(), "retry_in_doubt", "ReplyLostError"),
    ],
)
def test_only_the_tile_without_an_answer_is_sent_again(
    endpoint, batch: Batch, tmp_path, *, fault, again, error
):
    photos = tmp_path / "photos"
    photos.mkdir()
    screenshot(photos / "a.png")
    server = endpoint(fault, described())
    options = {"base_url": server.base_url, "concurrency": 1, **TILES}

    (row,) = read_rows(batch(photos, tmp_path / "out", **options))
    assert row["description"] is None
    assert row["error_class"] == error
    assert re.match(r"Tile \d of 6: ", row["error"])
    summary = batch(photos, tmp_path / "out", **options, **{again: True})

    assert summary.described == 1
    assert len(server.questions) == 7
    assert summary.images_billed == 6
    assert summary.images_in_doubt == (again == "retry_in_doubt")


def test_a_url_that_is_not_opened_is_rejected_before_anything_is_sent(
    endpoint, batch: Batch, tmp_path
):
    photos = fill(tmp_path / "photos", 1)
    server = endpoint()

    with pytest.raises(ConfigurationError, match="url_mode='fetch'"):
        batch(
            [photos / "00000.png", "https://x.example/a.png"],
            tmp_path / "out",
            base_url=server.base_url,
            **TILES,
        )

    assert server.billed == 0


def test_another_number_of_tiles_is_another_job(endpoint, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    screenshot(photos / "a.png")
    server = endpoint()
    ask = Batch("sync", "jsonl")

    for most in (2, 6):
        ask(photos, tmp_path / "out", base_url=server.base_url, max_tiles=most, **TILES)

    assert len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(ConfigurationError, match="max_tiles"):
        ask(photos, tmp_path / "out", base_url=server.base_url, max_tiles=0, **TILES)


def test_after_a_kill_between_tiles_the_answered_tiles_are_not_paid_again(endpoint, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    screenshot(photos / "a.png")
    server = endpoint(slow(0.05))
    flags = f"--base-url {server.base_url} --detail tiles --max-image-side 64 --concurrency 1"
    flags += " --format jsonl --yes"
    code = "from phospho_multimodal.cli.main import main; main()"
    command = ["batch", str(photos), "--out", str(tmp_path / "out"), *flags.split()]
    with subprocess.Popen([sys.executable, "-c", code, *command]) as process:  # noqa: S603 - ours
        try:
            server.wait_for_requests(5)  # two about the endpoint, and three tiles
        finally:
            process.kill()
    resume = partial(
        describe_many,
        photos,
        tmp_path / "out",
        base_url=server.base_url,
        results="jsonl",
        **TILES,
    )

    doubtful = resume()
    assert (doubtful.described, doubtful.in_doubt) == (0, 1)
    assert set(counted(server).values()) == {1}
    summary = resume(retry_in_doubt=True)

    assert summary.described == 1
    assert len(counted(server)) == 6
    assert sum(counted(server).values()) == 7
    assert summary.images_billed == 6
    assert summary.images_in_doubt == 1


def test_the_expected_time_counts_tiles_as_the_requests_that_they_are(endpoint, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    screenshot(photos / "a.png")
    server = endpoint()
    describe = partial(
        describe_many, photos, tmp_path / "out", base_url=server.base_url, results="jsonl", **TILES
    )
    worked = describe().manifest["seconds"]
    Image.linear_gradient("L").resize((160, 90)).rotate(2, expand=False).save(photos / "b.png")
    before = []

    def confirm(preflight) -> bool:
        before.append(preflight)
        return False

    describe(confirm=confirm)

    assert before[0].requests == 6
    assert before[0].seconds == pytest.approx(worked, abs=0.01)
    assert before[0].seconds_from == "an earlier run"
