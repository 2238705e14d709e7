"""A page of the local server in the system's Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from live_server import serve
from phospho_multimodal.cli.demo import draw_receipt
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import load_engine

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    with serve(create_app(load_engine("ocr"))) as url:
        yield url


@pytest.fixture
def context(browser: Browser, base_url: str) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base_url)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, base_url: str) -> Iterator[Page]:
    """The page, which must have sent requests to this server only, and logged no error."""
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.goto(base_url)
    yield page
    own = (f"{base_url}/", "blob:", "data:")
    assert [url for url in asked if not url.startswith(own)] == []
    # A status other than 200 is on the console too; what is not to be there is the policy's word.
    assert [line for line in complaints if "Failed to load resource" not in line] == []


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    return draw_receipt(tmp_path / "it's a receipt.png")


@pytest.fixture
def run_in(tmp_path: Path):
    """Run a program in the folder of the image."""

    def run(*command: str) -> str:
        done = subprocess.run(  # noqa: S603 - our own page's code, on our own server
            command, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
