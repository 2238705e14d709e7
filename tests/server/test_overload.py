"""Clients that are slow, many or gone, and a server that stops during requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from live_server import serve
from phospho_multimodal.contract import PREDICT_PATH
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import InputImage, Question
from phospho_multimodal.server.engines.echo import EchoEngine
from phospho_multimodal.server.run import TimeoutProtocol, in_background

PATIENCE = 20
CLIENTS = 200
CLI = [sys.executable, "-c", "from phospho_multimodal.cli.main import main; main()"]


class ShortTempered(TimeoutProtocol):
    """Waits for a third of a second instead of a minute."""

    max_wait = 0.3


class UnhurriedEngine:
    """Answers with the question, after 20 ms."""

    name = "unhurried"

    def describe(self, picture: InputImage, question: Question) -> str:
        time.sleep(0.02)
        return question.text


def drip(client, seconds: float = 5.0) -> float:
    """Send a byte every 50 ms; return how long the server accepts them."""
    started = time.monotonic()
    client.socket.settimeout(0.05)
    while time.monotonic() - started < seconds:
        try:
            client.socket.sendall(b"x")
            if not client.socket.recv(4096):
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    return time.monotonic() - started


def rest_of(client) -> int:
    """Count the bytes that still come before the connection ends."""
    count = 0
    with contextlib.suppress(ConnectionError):
        while data := client.socket.recv(65536):
            count += len(data)
    return count


class TestSlowClients:
    @pytest.mark.parametrize(
        "begun",
        [
            pytest.param(b"", id="from the first byte"),
            pytest.param(b"POST /v2/predict HTTP/1.1\r\nHost: local", id="within the headers"),
            pytest.param(
                b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea", id="of a second request"
            ),
            pytest.param(
                b"POST /v2/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n",
                id="of a body that was refused already",
            ),
        ],
    )
    def test_a_request_that_drips_in_is_hung_up_on(self, dial, begun):
        app = create_app(EchoEngine(), api_key="key")
        with serve(app, http=ShortTempered) as base_url, dial(base_url) as client:
            client.socket.sendall(begun)
            assert drip(client) < 4

    def test_a_client_that_says_nothing_is_hung_up_on(self, dial):
        app = create_app(EchoEngine())
        with serve(app, http=ShortTempered) as base_url, dial(base_url) as client:
            assert client.reply() is None

    def test_a_client_between_two_requests_is_waited_for(self, dial):
        app = create_app(EchoEngine())
        with serve(app, http=ShortTempered) as base_url, dial(base_url) as client:
            for _ in range(3):
                client.socket.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.reply().status == 200
                time.sleep(0.4)

    def test_a_request_at_work_is_waited_for(self, dial, gated, picture):
        app = create_app(gated)
        content = json.dumps(picture.request("slow")).encode()
        with serve(app, http=ShortTempered) as base_url, dial(base_url) as client:
            client.send(f"Content-Length: {len(content)}", body=content)
            assert gated.entered.acquire(timeout=PATIENCE)
            time.sleep(0.5)
            gated.gate.set()
            assert client.reply().description == "slow"

    @pytest.mark.parametrize("dripping", [False, True], ids=["never comes", "drips"])
    def test_a_body_that_takes_too_long_is_a_408_and_kept_no_place(self, dial, picture, dripping):
        app = create_app(EchoEngine(), workers=1, max_queue=0, max_receive_seconds=0.5)
        with serve(app, http=TimeoutProtocol) as base_url, dial(base_url) as client:
            client.send("Content-Length: 1000", body=b"{")
            other = httpx.post(base_url + PREDICT_PATH, json=picture.request())
            assert other.status_code == 200
            with contextlib.suppress(OSError):  # a slow machine is past the limit already
                for _ in range(4 if dripping else 0):
                    time.sleep(0.1)
                    client.socket.sendall(b" ")
            reply = client.reply()
            assert (reply.status, reply.headers["connection"]) == (408, "close")
            assert reply.detail.startswith("The request did not arrive within 0.5 s.")
            assert client.reply() is None

    def test_a_client_that_takes_no_answer_keeps_no_place_and_is_hung_up_on(self, dial, picture):
        app = create_app(EchoEngine(), workers=1, max_queue=0)
        content = json.dumps(picture.request("x" * 20_000_000)).encode()
        with (
            serve(app, http=TimeoutProtocol, timeout_keep_alive=1) as base_url,
            dial(base_url) as client,
        ):
            client.send(f"Content-Length: {len(content)}", body=content)
            client.socket.recv(1)
            assert httpx.post(base_url + PREDICT_PATH, json=picture.request()).status_code == 200
            time.sleep(1.5)
            assert rest_of(client) < 20_000_000

    def test_bodies_that_hold_too_much_together_are_a_503(self, dial, picture):
        app = create_app(EchoEngine(), max_body_bytes=1000)
        with serve(app) as base_url, contextlib.ExitStack() as opened:
            clients = [opened.enter_context(dial(base_url)) for _ in range(5)]
            for client in clients[:4]:
                client.send("Content-Length: 1000", body=b" " * 999)
            time.sleep(0.2)
            clients[4].send("Content-Length: 900", body=b" " * 900)
            reply = clients[4].reply()
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            for client in clients[:4]:
                client.socket.sendall(b" ")
                assert client.reply().status == 422
            answer = httpx.post(base_url + PREDICT_PATH, json=picture.request())
            assert answer.status_code == 200


def test_an_answer_does_not_wait_for_its_head_to_be_acknowledged(picture):
    with (
        in_background(create_app(EchoEngine())) as base_url,
        httpx.Client(base_url=base_url) as client,
    ):
        waits = [
            client.post(PREDICT_PATH, json=picture.request()).elapsed.total_seconds()
            for _ in range(25)
        ]
    # The first responses are acknowledged immediately. Each later one would take 40 ms or more.
    assert min(waits[15:]) < 0.03


async def ask(base_url: str, content: bytes, *, hang_up: bool = False) -> tuple[int, bytes]:
    """Ask on a connection of one's own; or leave a moment after asking."""
    host, port = base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = "POST /v2/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    reply = b"" if hang_up else await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return (0 if hang_up else int(reply.split(maxsplit=2)[1])), reply


class TestCrowds:
    @pytest.mark.parametrize("gone", [False, True], ids=["all stay", "half of them hang up"])
    async def test_of_200_at_once_each_is_answered_or_told_to_come_back(self, picture, gone):
        app = create_app(UnhurriedEngine(), workers=2, max_queue=8)
        bodies = [json.dumps(picture.request(f"question {n}.")).encode() for n in range(CLIENTS)]
        with serve(app, http=TimeoutProtocol) as base_url:
            replies = await asyncio.wait_for(
                asyncio.gather(
                    *[
                        ask(base_url, body, hang_up=gone and n % 2 == 1)
                        for n, body in enumerate(bodies)
                    ]
                ),
                PATIENCE,
            )
            heard = [(n, reply) for n, reply in enumerate(replies) if not (gone and n % 2)]
            for n, (status, reply) in heard:
                assert status in {200, 503}
                wanted = f'"question {n}."' if status == 200 else "retry-after: 1"
                assert wanted.encode() in reply
            assert {status for _, (status, _) in heard} == {200, 503}

            async with httpx.AsyncClient(base_url=base_url) as client:
                started = time.monotonic()
                assert (await client.get("/health")).status_code == 200
                assert time.monotonic() - started < 5
            # Who hung up while being answered keeps a place for 20 ms more.
            await asyncio.sleep(0.3)
            replies = await asyncio.gather(*[ask(base_url, body) for body in bodies[:10]])
            assert [status for status, _ in replies] == [200] * 10


class TestShutdown:
    @pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT], ids=lambda told: told.name)
    def test_what_was_asked_is_answered_and_what_comes_later_refused(self, dial, picture, told):
        content = json.dumps(picture.request("in time")).encode()
        with (
            subprocess.Popen(  # noqa: S603 - our own command
                [*CLI, "serve", "--port", "0", "--engine", "echo"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
            contextlib.ExitStack() as opened,
        ):
            base_url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
            idle, *asking = [opened.enter_context(dial(base_url)) for _ in range(5)]
            idle.socket.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.reply().status == 200
            for client in asking:
                client.send(f"Content-Length: {len(content)}", "Expect: 100-continue")
                assert client.reply().status == 100  # the application is reading the body
                client.socket.sendall(content[:50])
            process.send_signal(told)
            assert idle.reply() is None
            assert is_refused(base_url)
            for client in asking:
                client.socket.sendall(content[50:])
            assert ["in time" in client.reply().description for client in asking] == [True] * 4
            assert [client.reply() for client in asking] == [None] * 4
            log, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, log
        assert "Traceback" not in log
        assert "in time" not in log


def is_refused(base_url: str) -> bool:
    host, port = base_url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False
