from __future__ import annotations

from pathlib import Path

import pytest
from tiny_llava import save_tiny_llava


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that works; not to be changed."""
    return save_tiny_llava(tmp_path_factory.mktemp("tiny-llava"))
