"""The server opens no URL unless told to, and then public ones only."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from fetch_corpus import FORBIDDEN_URLS

from fault_server import Behaviour, FaultServer, drip
from internet import Internet, redirect
from internet import picture as file_of
from live_server import serve
from phospho_multimodal.contract import PREDICT_PATH
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.echo import EchoEngine

URL = "http://pictures.example/a.png?token=fetch-secret"

Online = Callable[..., Internet]


@pytest.fixture
def online(monkeypatch) -> Iterator[Online]:
    """Starts a server that is the whole internet to every fetch of the test."""
    with contextlib.ExitStack() as stack:

        def start(*script: Behaviour) -> Internet:
            server = stack.enter_context(FaultServer(*script).running())
            return Internet(server).install(monkeypatch)

        yield start


@pytest.fixture(scope="module")
def opening() -> Iterator[httpx.Client]:
    """Asks a server with one worker that may open URLs."""
    app = create_app(EchoEngine(), allow_urls=True, workers=1)
    with serve(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


def asked(client: httpx.Client, url: str, **options) -> httpx.Response:
    item = {"text": "What is this?", "image_url": url}
    body = {"model": "phospho-multimodal", "inputs": [item]}
    return client.post(PREDICT_PATH, json=body, **options)


def refusal(response: httpx.Response) -> tuple[str, str]:
    """The type and the words of a 422 about the image."""
    assert response.status_code == 422, response.text
    (item,) = response.json()["detail"]
    assert item["loc"] == ["body", "inputs", 0, "image_url"]
    return item["type"], item["msg"]


def test_without_being_told_to_it_opens_no_url(echo_client, online):
    internet = online()
    kind, words = refusal(asked(echo_client, URL))
    assert kind == "url_not_allowed"
    assert "--allow-urls" in words
    assert "base64" in words
    assert internet.dialled == []


DOCUMENTED = """{
  "inputs": [
    {"text": "What is this?", "image_url": "http://pictures.example/a.png?token=fetch-secret"}
  ],
  "model": "phospho-multimodal"
}"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
class TestTheVendorsCurlCommand:
    """The command of the vendor's documentation, with another address."""

    def run(self, base_url: str) -> tuple[int, dict]:
        headers = ["Authorization: Bearer a-key", "Content-Type: application/json"]
        command = ["curl", "-sS", "-w", "\n%{http_code}", "-X", "POST", f"{base_url}/v2/predict"]
        for header in ["accept: application/json", *headers]:
            command += ["-H", header]
        answer = subprocess.run([*command, "-d", DOCUMENTED], capture_output=True, check=True)  # noqa: S603
        body, _, status = answer.stdout.decode().rpartition("\n")
        return int(status), json.loads(body)

    def test_a_server_that_opens_no_urls_says_what_to_do(self, echo_client, online):
        internet = online()
        status, body = self.run(str(echo_client.base_url).rstrip("/"))
        (problem,) = body["detail"]
        assert (status, problem["type"]) == (422, "url_not_allowed")
        assert "--allow-urls" in problem["msg"]
        assert "base64" in problem["msg"]
        assert internet.dialled == []

    def test_with_allow_urls_it_gets_an_answer(self, opening, online, picture):
        online(file_of(picture.data))
        status, body = self.run(str(opening.base_url).rstrip("/"))
        assert status == 200
        assert '"format": "PNG"' in body["predictions"][0]["description"]


def test_told_to_it_fetches_a_public_image(opening, online, picture):
    internet = online(redirect("https://other.example/b.png"), file_of(picture.data))
    response = asked(opening, URL, headers={"Authorization": "Bearer a-key", "Cookie": "a=b"})
    seen = json.loads(response.json()["predictions"][0]["description"])
    assert (seen["format"], seen["width"], seen["height"]) == ("PNG", 30, 20)
    assert internet.addresses == ["93.184.216.34", "1.1.1.1"]
    assert not {"authorization", "cookie"} & set(internet.requests[1].headers)


def test_told_to_it_still_takes_base64(opening, online, picture):
    internet = online()
    assert asked(opening, picture.base64).status_code == 200
    assert internet.dialled == []


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(url, id=name)
        for name, url in FORBIDDEN_URLS.items()
        if url.lower().startswith(("http://", "https://"))
    ],
)
def test_a_forbidden_url_is_a_422_and_no_connection(url, opening, online):
    internet = online()
    kind, words = refusal(asked(opening, url))
    assert kind == "url_not_fetched"
    assert "Pass the image itself" in words
    assert internet.dialled == []


@pytest.mark.parametrize("scheme", ["file:///etc/passwd", "ftp://pictures.example/a.png"])
def test_any_other_url_is_no_base64(scheme, opening):
    assert refusal(asked(opening, scheme))[0] == "base64_invalid"


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/", "file:///etc/hosts"],
)
def test_a_redirect_inside_is_a_422(location, opening, online):
    internet = online(redirect(location))
    assert refusal(asked(opening, URL))[0] == "url_not_fetched"
    assert internet.addresses == ["93.184.216.34"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(b"<html>", "url_not_fetched", id="a web page"),
        pytest.param(b"%PDF-1.7", "image_unreadable", id="a document"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "image_unreadable", id="a file that is cut off"),
    ],
)
def test_what_is_no_image_is_a_422_that_tells_nothing_of_the_path(body, kind, opening, online):
    online(file_of(body))
    found, words = refusal(asked(opening, URL))
    assert found == kind
    assert "fetch-secret" not in words


def test_who_hangs_up_frees_the_worker_at_once(opening, online, picture):
    internet = online(drip(b"HTTP/1.1 200 OK\r\n\r\n" + b"y" * 1000))
    begun = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        asked(opening, URL, timeout=0.3)
    assert asked(opening, picture.base64).status_code == 200
    assert time.monotonic() - begun < 5
    internet.server.wait_until_idle()
