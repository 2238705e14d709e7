"""The fixtures of `tests/contract`: what the endpoint is asked, and what it answers.

The server's tests send each request and compare the answer; the client's tests play each answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CONTRACT_KEY = "contract-key"
"""The key that the cases hold for the right one."""


def contract_cases() -> list[Any]:
    """Read every case, as a parameter named after its file."""
    files = sorted((Path(__file__).parent / "contract").glob("*.json"))
    return [
        pytest.param(json.loads(file.read_text(encoding="utf-8")), id=file.stem) for file in files
    ]
