"""The batch's soak in small; `batch_soak.py` itself is run by hand, with more of everything."""

from __future__ import annotations

import sys

import pytest
from batch_soak import soak

pytestmark = pytest.mark.long


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and wait4 are of POSIX")
def test_every_row_arrives_once_and_every_cent(tmp_path):
    assert soak(300, 3, tmp_path, memory=False) == []
