"""A batch with `detail="tiles"`: each tile is an input with a row, counted before it is paid."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from describing_many import Batch, fill, read_rows
from phospho_multimodal import ConfigurationError, SpendingLimitError

TILES = {"detail": "tiles", "max_image_side": 64}


def screenshot(path: Path) -> Path:
    """An image that needs three columns and two rows of tiles of 64 pixels; all of them differ."""
    Image.linear_gradient("L").resize((160, 90)).rotate(1, expand=False).save(path)
    return path


def test_each_tile_has_a_row_and_the_price_is_known_before(endpoint, batch: Batch, tmp_path):
    photos = fill(tmp_path / "photos", 1)
    screenshot(photos / "00001.png")
    server = endpoint()
    told = []

    def confirm(preflight) -> bool:
        told.append((preflight.inputs, preflight.pictures, server.billed))
        return True

    summary = batch(photos, tmp_path / "out", base_url=server.base_url, confirm=confirm, **TILES)

    ids = [f"00001.png#tile {number} of 6" for number in range(1, 7)]
    assert [row["id"] for row in read_rows(summary)] == ["00000.png", *ids]
    assert told == [(7, 7, 0)]
    assert server.billed == summary.images_billed == 7


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

    assert summary.described == 6
    assert server.billed == 6


def test_a_url_that_is_not_opened_has_a_row_with_its_error(endpoint, batch: Batch, tmp_path):
    server = endpoint()

    summary = batch(
        ["https://x.example/a.png"], tmp_path / "out", base_url=server.base_url, **TILES
    )

    (row,) = read_rows(summary)
    assert row["error_class"] == "UnsupportedContentError"
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
