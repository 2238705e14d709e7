"""What a job came to can be read when it did not end well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from live_server import serve
from phospho_multimodal import ConfigurationError, SpendingLimitError
from phospho_multimodal.batch import Summary, describe_many
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.echo import EchoEngine
from pictures import draw, encoded


def test_a_capped_job_tells_what_it_did(tmp_path: Path) -> None:
    pictures = [encoded(draw(20 + number, 20)) for number in range(4)]
    with serve(create_app(EchoEngine())) as base_url:
        options: Any = {"base_url": base_url, "results": "jsonl"}
        with pytest.raises(SpendingLimitError):
            describe_many(pictures, tmp_path, max_images=3, **options)
        (folder,) = tmp_path.iterdir()
        stopped = Summary.read(folder)
        assert (stopped.described, stopped.pending, stopped.images_billed) == (3, 1, 3)
        whole = describe_many(pictures, tmp_path, **options)
    assert Summary.read(folder) == whole
    assert (whole.described, whole.pending, whole.cost_usd) == (4, 0, 0.04)
    assert "4 inputs: 4 described" in str(whole)


def test_a_folder_without_a_job_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no _manifest\.json"):
        Summary.read(tmp_path)
