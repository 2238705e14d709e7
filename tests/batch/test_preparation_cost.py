"""The CPU time that a batch needs for a photo, compared with the usual recipe of Pillow."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from phospho_multimodal.batch.counting import count_inputs
from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.pipeline.preparation import Preparation
from phospho_multimodal.batch.sources.select import open_source
from phospho_multimodal.settings import Settings

PHOTOS = 4


def draw_photos(folder: Path) -> list[Path]:
    """Photos of 12 megapixels with the metadata of a camera, of one size in bytes."""
    folder.mkdir()
    rough = Image.effect_noise((500, 375), 90).convert("RGB").resize((4000, 3000))
    paths = [folder / f"{number}.jpg" for number in range(PHOTOS)]
    for number, path in enumerate(paths):
        exif = Image.Exif()
        exif[0x010F] = f"Camera {number}"
        rough.save(path, quality=92, exif=exif)
    return paths


def usual_recipe(path: Path) -> bytes:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    buffer = io.BytesIO()
    upright.resize((1536, 1152), Image.Resampling.LANCZOS).save(buffer, "JPEG")
    return buffer.getvalue()


def seconds_of_a_core(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.long
def test_a_photo_costs_at_most_0_55_of_the_usual_recipe(tmp_path: Path):
    paths = draw_photos(tmp_path / "photos")
    settings = Settings.resolve(api_key="key")
    job = Job.of("What is this?", settings, {})

    def prepare(run: int) -> None:
        source = open_source(tmp_path / "photos")
        with contextlib.closing(Journal(tmp_path / f"job-{run}", job)) as journal:
            count_inputs(source, journal, settings)
            preparation = Preparation(source, journal, job, settings, lambda: False)
            ready = 0
            while inputs := preparation.next_inputs():
                ready += len(preparation.make_ready(inputs).questions)
        assert ready == 1  # the metadata is not sent, so all photos are one image

    prepare(0)
    usual = min(seconds_of_a_core(lambda: [usual_recipe(path) for path in paths]) for _ in range(3))
    batch = min(seconds_of_a_core(lambda run=run: prepare(run)) for run in (1, 2, 3))  # type: ignore[misc]
    print(f"{batch / PHOTOS:.3f} s a photo, {usual / PHOTOS:.3f} s by the usual recipe")
    assert batch <= 0.55 * usual
