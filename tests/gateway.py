"""The local server in front of another model server, for the length of a `with` block."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from live_server import serve
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.openai import OpenAIEngine
from pictures import encoded

__all__ = ["PROMPT", "ask", "gateway", "until"]

PROMPT = "What is written on the third line of the letter?"


@contextlib.contextmanager
def gateway(
    url: str, *, model: str = "a-model", allow_urls: bool = False, **options: Any
) -> Iterator[httpx.Client]:
    """A client of the local server whose engine asks this upstream."""
    engine = OpenAIEngine(upstream=url, model=model, **options)
    app = create_app(engine, allow_urls=allow_urls)
    with serve(app) as base_url, httpx.Client(base_url=base_url, timeout=100) as client:
        yield client


def ask(
    client: httpx.Client, image: bytes | str | None = None, text: str = PROMPT, **parameters: Any
) -> httpx.Response:
    if not isinstance(image, str):
        image = base64.b64encode(image or encoded(kind="PNG")).decode()
    item = {"text": text, "image_url": image, **parameters}
    return client.post("/v2/predict", json={"model": "phospho-multimodal", "inputs": [item]})


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition; only a fault lets it take longer than these seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
