"""What a request may bring, how many may wait, and where the server may listen."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from live_server import serve
from phospho_multimodal.contract import PREDICT_PATH
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.echo import EchoEngine
from phospho_multimodal.server.run import base_url as url_of
from phospho_multimodal.server.run import bind, in_background

PATIENCE = 20
JSON = {"Content-Type": "application/json"}


def connection(base_url: str) -> socket.socket:
    parts = urlsplit(base_url)
    return socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE)


def head(*headers: str) -> bytes:
    fixed = (f"POST {PREDICT_PATH} HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    lines = [*fixed, *headers, "", ""]
    return "\r\n".join(lines).encode()


def whole_request(body: dict) -> bytes:
    content = orjson.dumps(body)
    return head(f"Content-Length: {len(content)}") + content


def status_of(reply: bytes) -> int:
    return int(reply.split(maxsplit=2)[1])


def eventually(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read():
    with serve(create_app(EchoEngine())) as base_url, connection(base_url) as client:
        client.sendall(head("Content-Length: 80000001"))
        assert status_of(client.recv(4096)) == 413


def test_a_body_that_does_not_tell_its_length_is_given_up_at_the_limit():
    app = create_app(EchoEngine(), max_body_bytes=1000)
    with serve(app) as base_url, connection(base_url) as client:
        client.sendall(head("Transfer-Encoding: chunked"))
        for _ in range(3):
            client.sendall(b"190\r\n" + b"x" * 400 + b"\r\n")  # and no end
        assert status_of(client.recv(4096)) == 413


def test_the_largest_body_is_still_read(picture):
    body = orjson.dumps(picture.request())
    with serve(create_app(EchoEngine(), max_body_bytes=len(body))) as base_url:
        statuses = [
            httpx.post(base_url + PREDICT_PATH, content=content, headers=JSON).status_code
            for content in (body, body + b" ")
        ]
    assert statuses == [200, 413]


def test_a_client_that_sends_all_of_a_large_body_still_hears_why():
    with serve(create_app(EchoEngine(), max_body_bytes=1000)) as base_url:
        body = b"x" * 20_000_000
        response = httpx.post(base_url + PREDICT_PATH, content=body, headers=JSON)
    assert response.status_code == 413


def test_the_key_is_asked_for_before_the_body_is_read():
    with serve(create_app(EchoEngine(), api_key="key")) as base_url, connection(base_url) as client:
        client.sendall(head("Content-Length: 1000"))
        assert status_of(client.recv(4096)) == 403


def test_an_image_of_too_many_pixels_is_refused_by_its_header(picture):
    with serve(create_app(EchoEngine(), max_megapixels=0)) as base_url:
        response = httpx.post(base_url + PREDICT_PATH, json=picture.request())
    item = response.json()["detail"][0]
    assert (response.status_code, item["type"]) == (422, "image_unreadable")
    assert "30 × 20 pixels" in item["msg"]


@contextlib.contextmanager
def asking(app, picture):
    """Yield a function that sends a request in the background, on a new connection."""
    with serve(app) as base_url, ThreadPoolExecutor(8) as threads:

        def ask(text, timeout=PATIENCE):
            return threads.submit(
                httpx.post, base_url + PREDICT_PATH, json=picture.request(text), timeout=timeout
            )

        yield base_url, ask


def test_a_full_queue_answers_503_and_says_when_to_come_back(gated, picture):
    with asking(create_app(gated, workers=1, max_queue=0), picture) as (_, ask):
        first = ask("first")
        assert gated.entered.acquire(timeout=PATIENCE)
        refused = ask("second").result()
        gated.gate.set()
        assert first.result().status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert gated.seen == ["first"]


def test_as_many_wait_as_may_and_are_answered_in_the_end(gated, picture):
    with asking(create_app(gated, workers=2, max_queue=3), picture) as (_, ask):
        answers = [ask(f"at work {n}") for n in range(2)]
        assert all(gated.entered.acquire(timeout=PATIENCE) for _ in range(2))
        answers += [ask(f"waiting {n}") for n in range(5)]
        eventually(lambda: sum(answer.done() for answer in answers) == 2)
        gated.gate.set()
        statuses = sorted(answer.result().status_code for answer in answers)
    assert statuses == [200] * 5 + [503] * 2


def test_while_the_engine_is_busy_the_server_still_answers(gated, picture):
    with asking(create_app(gated, workers=1, max_queue=0), picture) as (base_url, ask):
        answer = ask("busy")
        assert gated.entered.acquire(timeout=PATIENCE)
        assert httpx.get(base_url + "/health").status_code == 200
        gated.gate.set()
        assert answer.result().status_code == 200


def test_a_client_that_hangs_up_while_waiting_gives_its_place_away(gated, picture):
    app = Observed(create_app(gated, workers=1, max_queue=1))
    with asking(app, picture) as (base_url, ask):
        first = ask("at work")
        assert app.listening.acquire(timeout=PATIENCE)
        with connection(base_url) as gone:
            gone.sendall(whole_request(picture.request("hangs up")))
            assert app.listening.acquire(timeout=PATIENCE)
            assert is_refused(base_url, picture)
        eventually(lambda: not is_refused(base_url, picture))
        gated.gate.set()
        assert first.result().status_code == 200
    assert "hangs up" not in gated.seen


class Observed:
    """Tells when a request, read to its end, listens for its client: it is at work or in line."""

    def __init__(self, app) -> None:
        self.app = app
        self.listening = threading.Semaphore(0)

    async def __call__(self, scope, receive, send) -> None:
        whole = False

        async def observed():
            nonlocal whole
            if whole:
                self.listening.release()
            message = await receive()
            whole = message["type"] == "http.request" and not message.get("more_body", False)
            return message

        await self.app(scope, observed, send)


def is_refused(base_url, picture) -> bool:
    """Check whether another request is rejected; one that waits gives up again."""
    try:
        answer = httpx.post(base_url + PREDICT_PATH, json=picture.request("probe"), timeout=0.2)
    except httpx.ReadTimeout:
        return False
    return answer.status_code == 503


def test_a_client_that_hangs_up_while_answered_does_not_wedge_the_worker(gated, picture):
    with asking(create_app(gated, workers=1, max_queue=0), picture) as (base_url, ask):
        with connection(base_url) as gone:
            gone.sendall(whole_request(picture.request("hangs up")))
            assert gated.entered.acquire(timeout=PATIENCE)
        # The thread cannot be stopped, so its place stays taken until it is done.
        assert ask("too early").result().status_code == 503
        gated.gate.set()
        eventually(lambda: ask("later").result().status_code == 200)


def test_a_client_that_hangs_up_within_its_body_leaves_the_server_alone(picture, caplog):
    with serve(create_app(EchoEngine(), workers=1, max_queue=0)) as base_url:
        with connection(base_url) as gone:
            gone.sendall(head("Content-Length: 1000") + b"{")
        response = httpx.post(base_url + PREDICT_PATH, json=picture.request())
    assert response.status_code == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_loopback_needs_no_key(host):
    with bind(host, 0, api_key=None) as listener:
        assert url_of(listener).startswith("http://127.")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "example.org", "localhost.x"])  # noqa: S104 - to be refused
def test_any_other_address_needs_a_key(host):
    with pytest.raises(ConfigurationError, match=r"needs a key.*--api-key"):
        bind(host, 0, api_key=None)


def test_with_a_key_every_address_may_be_bound_to():
    with bind("0.0.0.0", 0, api_key="key") as listener:  # noqa: S104 - what is tested
        assert listener.getsockname()[1] > 0


def test_a_taken_port_is_told_in_one_sentence():
    with bind("127.0.0.1", 0, api_key=None) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port}: .*--port"):
            bind("127.0.0.1", port, api_key=None)


def test_a_server_in_the_background_stops_with_its_block():
    with in_background(create_app(EchoEngine())) as base_url:
        assert httpx.get(base_url + "/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(base_url + "/health")
