from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from describing import describe
from fault_server import FaultServer
from llama_index_phospho import ImageDescriptionExtractor
from pictures import draw

COLOURS = ["teal", "red", "gold", "navy", "plum", "pink", "tan", "lime"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Files of distinct pictures."""
    paths = [tmp_path / f"{colour}.png" for colour in COLOURS]
    for path in paths:
        draw(colour=path.stem).save(path)
    return paths


@pytest.fixture
def server(server: FaultServer) -> FaultServer:
    """Answers with what is peculiar to the picture."""
    server.script = [describe]
    return server


@pytest.fixture
def extractor(make: Callable[..., Any]) -> Callable[..., ImageDescriptionExtractor]:
    """Makes extractors, with a model of this server if they get no other."""

    def new(llm: Any = None, **options: Any) -> ImageDescriptionExtractor:
        options = {"show_progress": False, **options}
        return ImageDescriptionExtractor(llm=llm or make(), **options)

    return new
