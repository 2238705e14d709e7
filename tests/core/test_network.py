"""Large bodies, slow servers, TLS, other event loops and idle connections."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any, cast

import httpx
import pytest
import trustme
from PIL import Image

from drivers import Driver
from fault_server import Behaviour, Connection, FaultServer, Received, answer, hang, raw
from phospho_multimodal import (
    AsyncPhosphoClient,
    AuthenticationError,
    ConnectionFailedError,
    PhosphoClient,
    PhosphoError,
    ReplyLostError,
    Spending,
)
from pictures import encoded

PICTURE = encoded()
NEVER = 20.0


def noise(side: int) -> bytes:
    """Draw what nothing compresses: a JPEG of four bytes a pixel, sent as it is."""
    dots = Random(0).randbytes(3 * side * side)  # noqa: S311 - the same in every run
    file = BytesIO()
    Image.frombytes("RGB", (side, side), dots).save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


class SlowSocket:
    """A connection that is read in bits, with a pause before each."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client

    def recv(self, most: int) -> bytes:
        time.sleep(0.001)
        return self._client.recv(min(most, 64 * 1024))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class SlowServer(FaultServer):
    def _serve(self, client: socket.socket) -> None:
        super()._serve(cast("socket.socket", SlowSocket(client)))


def tell_digest(connection: Connection, request: Received) -> None:
    answer(hashlib.sha256(request.image).hexdigest())(connection, request)


def test_a_server_that_reads_slowly_gets_a_large_picture_whole(driver: Driver):
    picture = noise(2000)
    with SlowServer(tell_digest).running() as server:
        told = driver.describe(picture, base_url=server.base_url, max_image_side=4096)

    assert told.description == hashlib.sha256(picture).hexdigest()


def stop_reading(connection: Connection) -> None:
    connection.server.stopping.wait(NEVER)


def test_a_server_that_stops_reading_was_not_sent_the_picture(driver: Driver):
    spending = Spending()
    with FaultServer(before_body=stop_reading).running() as server:
        options: dict[str, Any] = {
            "base_url": server.base_url,
            "max_image_side": 8192,
            "max_retries": 0,
            "timeout": httpx.Timeout(NEVER, write=0.3),
            "spending": spending,
        }
        with pytest.raises(ConnectionFailedError):
            driver.describe(noise(2000), **options)
        assert server.connections == 1

    snapshot = spending.snapshot()
    assert (snapshot.images_in_doubt, snapshot.images_reserved) == (0, 0)


async def test_cancelled_while_the_server_does_not_read_the_picture_was_not_sent():
    spending = Spending()
    picture = noise(2000)
    with FaultServer(before_body=stop_reading).running() as server:
        async with AsyncPhosphoClient(
            base_url=server.base_url, max_image_side=8192, spending=spending
        ) as client:
            task = asyncio.create_task(client.describe(picture))
            await asyncio.sleep(1.0)  # what the kernel takes is taken
            assert server.open_connections == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    snapshot = spending.snapshot()
    assert (snapshot.images_in_doubt, snapshot.images_reserved) == (0, 0)


def refuse_unread(connection: Connection) -> None:
    """Answer as soon as the head has come, and close with the rest unread: that is a reset."""
    connection.reply(401, b'{"detail": "no such key"}', billed=False)
    connection.socket.close()


def reset_after_the_head(connection: Connection) -> None:
    connection.abort()


@pytest.mark.parametrize("side", [8, 600])
@pytest.mark.parametrize("behave", [reset_after_the_head, refuse_unread])
def test_an_image_is_in_doubt_only_if_all_of_it_was_sent(driver: Driver, behave: Any, side: int):
    spending = Spending()
    picture = noise(side)
    with FaultServer(before_body=behave).running() as server:
        options: dict[str, Any] = {"base_url": server.base_url, "max_retries": 0}
        failures = [
            error_of(driver, picture, **options, spending=spending).__class__ for _ in range(20)
        ]

    # If all of it went out before the reset came, the server may have read it.
    lost = failures.count(ReplyLostError)
    unsent = failures.count(ConnectionFailedError) + failures.count(AuthenticationError)
    assert unsent + lost == 20
    assert spending.snapshot().images_in_doubt == lost


def error_of(driver: Driver, picture: bytes, **options: Any) -> PhosphoError:
    with pytest.raises(PhosphoError) as raised:
        driver.describe(picture, **options)
    return raised.value


def test_a_body_without_an_end_is_lost_at_the_deadline(driver: Driver, lab):
    begun = b'HTTP/1.1 200 OK\r\n\r\n{"predictions": [{"description": "half'
    server = lab(raw(begun, billed=True, then="keep"))
    with pytest.raises(ReplyLostError, match="deadline"):
        driver.describe(PICTURE, base_url=server.base_url, deadline=1.0, max_retries=0)


async def close_and_wait(client: AsyncPhosphoClient) -> None:
    await client.aclose()
    await asyncio.sleep(0)  # where a cancellation strikes that closing did not wait for


async def test_a_cancelled_close_closes_every_connection(lab):
    server = lab(answer())
    async with AsyncPhosphoClient(base_url=server.base_url) as client:
        await asyncio.gather(*[client.describe(PICTURE) for _ in range(8)])
        assert server.open_connections > 1
        asyncio.current_task().cancel()
        with pytest.raises(asyncio.CancelledError):
            await close_and_wait(client)
    await asyncio.to_thread(server.wait_until_idle)


def answer_and_close(connection: Connection, request: Received) -> None:
    answer()(connection, request)
    connection.socket.close()


def test_a_connection_that_ended_while_no_loop_ran_is_not_used_again(lab):
    server = lab(answer_and_close, answer())
    loop = asyncio.new_event_loop()
    client = AsyncPhosphoClient(base_url=server.base_url, max_retries=0)
    try:
        loop.run_until_complete(client.describe(PICTURE, "one"))
        server.wait_until_idle()
        time.sleep(0.05)
        second = loop.run_until_complete(client.describe(PICTURE, "two"))
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()

    assert second.description == "You asked: two"
    assert server.connections == 2


class EncryptedServer(FaultServer):
    """The same behind TLS."""

    def __init__(self, context: ssl.SSLContext, *script: Behaviour) -> None:
        super().__init__(*script)
        self._listener = context.wrap_socket(self._listener, server_side=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    made = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path


@pytest.fixture
def encrypted(authority: tuple[trustme.CA, Path]) -> Iterator[FaultServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority[0].issue_cert("127.0.0.1").configure_cert(context)
    with EncryptedServer(context, answer()).running() as server:
        yield server


@pytest.mark.parametrize("verify", ["path", "context"])
def test_over_tls_questions_share_a_connection(
    driver: Driver, encrypted: FaultServer, authority: tuple[trustme.CA, Path], verify: str
):
    context = ssl.create_default_context(cafile=authority[1])
    context.set_alpn_protocols(["h2", "http/1.1"])  # a user's own may offer what we do not speak
    given_as: dict[str, Any] = {"path": str(authority[1]), "context": context}
    options = {"base_url": f"https://127.0.0.1:{encrypted.port}", "verify": given_as[verify]}

    results = driver.run(options, (PICTURE, "one"), (noise(900), "two"), (PICTURE, "three"))

    assert [r.description for r in results] == [f"You asked: {n}" for n in ("one", "two", "three")]
    assert encrypted.connections == 1


def test_a_certificate_that_nobody_vouches_for_is_an_error(driver: Driver, encrypted: FaultServer):
    with pytest.raises(ConnectionFailedError, match="CERTIFICATE_VERIFY_FAILED"):
        driver.describe(
            PICTURE, base_url=f"https://127.0.0.1:{encrypted.port}", api_key="k", max_retries=0
        )


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run on Windows")
def test_another_event_loop_answers_and_gives_up_as_asyncios_own(lab):
    import uvloop  # noqa: PLC0415 - there is none for Windows

    server = lab(answer(), answer(), hang())

    async def ask() -> list[str]:
        async with AsyncPhosphoClient(base_url=server.base_url, max_retries=0) as client:
            answers = [(await client.describe(PICTURE, name)).description for name in "ab"]
            task = asyncio.create_task(client.describe(PICTURE))
            await asyncio.to_thread(server.wait_for_requests, 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client.spending.snapshot().images_in_doubt == 1
            return answers

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(ask()) == ["You asked: a", "You asked: b"]
    finally:
        loop.close()
    assert server.connections == 1


class Watched(BytesIO):
    """A picture that is read slowly, and tells how many are read at the same time."""

    now = 0
    most = 0
    lock = threading.Lock()

    def read(self, *arguments: Any) -> bytes:
        with self.lock:
            type(self).now += 1
            type(self).most = max(self.most, self.now)
        time.sleep(0.02)
        with self.lock:
            type(self).now -= 1
        return super().read(*arguments)


@pytest.mark.parametrize("waits_with", ["threads", "await"])
def test_pictures_are_made_ready_on_as_many_threads_as_there_are_cores(
    lab, monkeypatch: pytest.MonkeyPatch, waits_with: str
):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(Watched, "most", 0)
    server = lab(answer("A receipt."))
    pictures = [Watched(PICTURE) for _ in range(8)]
    answers: list[str] = []

    if waits_with == "await":

        async def ask() -> None:
            async with AsyncPhosphoClient(base_url=server.base_url) as client:
                told = await asyncio.gather(*map(client.describe, pictures))
                answers.extend(one.description for one in told)

        asyncio.run(ask())
    else:
        with PhosphoClient(base_url=server.base_url) as client:
            threads = [
                threading.Thread(
                    target=lambda p=picture: answers.append(client.describe(p).description)
                )
                for picture in pictures
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    assert answers == ["A receipt."] * 8
    assert Watched.most == 2
