"""The soaks with interruptions in small. `batch_interrupted.py` is run by hand, with more."""

from __future__ import annotations

import sys

import pytest
from batch_interrupted import parse, soak

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM and wait4 are of POSIX"),
]


@pytest.mark.parametrize(
    "command",
    [
        "sigterm --pictures 200 --stops 2 --longest-run 0.2",
        "away --pictures 200 --away-seconds 1",
        "quota --pictures 100 --quota 60",
    ],
)
def test_every_image_is_described_and_paid_for_once(command: str, tmp_path):
    options = parse(command.split())
    assert soak(options.which, tmp_path, options) == []
