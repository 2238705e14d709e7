"""The page's files are where the package is, under the strict policy; tests/browser uses them."""

from __future__ import annotations

import re

import httpx
import pytest

from live_server import serve
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.echo import EchoEngine

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def client():
    with serve(create_app(EchoEngine(), api_key="k")) as url, httpx.Client(base_url=url) as client:
        yield client


def test_the_page_is_shown_without_a_key_and_all_its_files_are_there(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    paths = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    script = client.get("/playground/page.js").text
    paths += re.findall(r'from "(/[^"]+)"', script)
    assert len(paths) == 3
    for path in ["/", *paths]:
        file = client.get(path)
        assert file.status_code == 200
        assert file.headers["content-security-policy"] == POLICY
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.headers["referrer-policy"] == "no-referrer"


def test_nothing_on_the_page_comes_from_elsewhere_or_stands_inline(client):
    text = "".join(client.get(f"/playground/{name}").text for name in ("page.js", "code.js"))
    page = client.get("/").text
    assert "//" not in re.sub(r"^\s*// .*$|(?<=; )// .*$", "", page + text, flags=re.MULTILINE)
    assert re.findall(r"<script(?![^>]*src)|<style| on\w+=| style=|innerHTML", page + text) == []


def test_the_contracts_document_does_not_list_the_page(client):
    assert "/" not in client.get("/openapi.json").json()["paths"]
