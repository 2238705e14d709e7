"""The pages of the reference that are generated from the code are up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

GENERATE = Path(__file__).parents[1] / "cookbook" / "reference" / "generate.py"


def test_the_generated_pages_are_those_that_are_stored() -> None:
    """`.venv/bin/python cookbook/reference/generate.py` writes them again."""
    for path, text in runpy.run_path(str(GENERATE))["pages"]().items():
        assert path.read_text(encoding="utf-8") == text
