"""Every httpx transport sends the whole request, and the ledger is the same over all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from httpx_aiohttp import HttpxAiohttpClient

from fault_server import Behaviour, answer, hang, prediction, raw, reset, status
from phospho_multimodal import AsyncPhosphoClient, PhosphoClient, PhosphoError, Spending
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.settings import Settings
from pictures import encoded

PICTURE = encoded()
LARGE_PICTURE = encoded(kind="PNG", compress_level=0) + b"\0" * 3_000_000

Clients = Callable[..., Any]


async def _ask(client: Any, image: bytes) -> Any:
    try:
        if isinstance(client, PhosphoClient):
            return await asyncio.to_thread(client.describe, image)
        return await client.describe(image)
    except PhosphoError as error:
        return error


def _end(result: Any) -> str:
    return type(result).__name__ if isinstance(result, Exception) else "an answer"


@asynccontextmanager
async def _own(**options: Any) -> AsyncIterator[Any]:
    with PhosphoClient(**options) as client:
        yield client


@asynccontextmanager
async def _own_async(**options: Any) -> AsyncIterator[Any]:
    async with AsyncPhosphoClient(**options) as client:
        yield client


@asynccontextmanager
async def _httpx(**options: Any) -> AsyncIterator[Any]:
    with httpx.Client() as http_client:
        yield PhosphoClient(http_client=http_client, **options)


def _async_with(make: Callable[[], httpx.AsyncClient]) -> Clients:
    @asynccontextmanager
    async def borrowing(**options: Any) -> AsyncIterator[Any]:
        async with make() as http_client:
            yield AsyncPhosphoClient(http_client=http_client, **options)

    return borrowing


OVER_SOCKETS = {
    "the client's own": _own,
    "the async client's own": _own_async,
    "httpx.Client": _httpx,
    "httpx.AsyncClient": _async_with(httpx.AsyncClient),
    "httpx-aiohttp": _async_with(HttpxAiohttpClient),
}

# What the server does, how the call ends, requests received, images billed, images in doubt.
FAULTS: dict[str, tuple[list[Behaviour], str, int, int, int]] = {
    "answers": ([answer()], "an answer", 1, 1, 0),
    "answers in the second attempt": ([status(503), answer()], "an answer", 2, 1, 0),
    "disconnects after the request": ([raw(b"", billed=True)], "ReplyLostError", 1, 0, 1),
    "resets after the request": ([reset()], "ReplyLostError", 1, 0, 1),
    "never answers": ([hang()], "ReplyLostError", 1, 0, 1),
    "answers garbage": ([raw(b"\x00\xff" * 500, billed=True)], "ReplyLostError", 1, 0, 1),
    "disconnects in the body": (
        [raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", billed=True)],
        "ReplyLostError",
        *(1, 0, 1),
    ),
    "is a gateway that gives up": ([status(502)], "ServiceError", 1, 0, 1),
    "is a gateway that times out": ([status(504)], "ServiceError", 1, 0, 1),
    "refuses": ([status(422)], "InvalidRequestError", 1, 0, 0),
}


@pytest.mark.parametrize("transport", OVER_SOCKETS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_the_ledger_is_the_same_over_every_transport_when_a_server(
    fault: str, transport: str, lab
):
    script, end, *counts = FAULTS[fault]
    server, spending = lab(*script), Spending()
    options = {"base_url": server.base_url, "spending": spending, "timeout": 0.5}

    async with OVER_SOCKETS[transport](**options) as client:
        result = await _ask(client, PICTURE)

    booked = spending.snapshot()
    assert _end(result) == end
    assert [len(server.requests), booked.images_billed, booked.images_in_doubt] == counts
    assert server.billed <= booked.images_billed + booked.images_in_doubt


@pytest.mark.parametrize("transport", OVER_SOCKETS)
async def test_nothing_is_booked_where_nothing_listens(transport: str):
    spending = Spending()
    options = {"base_url": "http://127.0.0.1:9", "spending": spending}

    async with OVER_SOCKETS[transport](**options) as client:
        result = await _ask(client, PICTURE)

    assert _end(result) == "ConnectionFailedError"
    assert (spending.snapshot().images_billed, spending.snapshot().images_in_doubt) == (0, 0)


@pytest.mark.parametrize("transport", OVER_SOCKETS)
async def test_every_transport_sends_the_body_as_it_is(transport: str, lab):
    server = lab(answer())
    options = {"base_url": server.base_url, "prepare": False}

    async with OVER_SOCKETS[transport](**options) as client:
        result = await _ask(client, LARGE_PICTURE)

    assert _end(result) == "an answer"
    assert server.requests[0].image == LARGE_PICTURE


class App:
    """An ASGI application and an httpx handler that do the same."""

    def __init__(self, does: str) -> None:
        self.does = does
        self.bodies: list[bytes] = []

    def _respond(self, body: bytes) -> tuple[int, bytes]:
        self.bodies.append(body)
        if self.does == "raises":
            reason = "the application failed"
            raise LookupError(reason)
        if self.does == "raises what httpx raises":
            reason = "it says that it never connected"
            raise httpx.ConnectTimeout(reason)
        return (502, b"{}") if self.does == "answers 502" else (200, prediction("Yes."))

    def handle(self, request: httpx.Request) -> httpx.Response:
        status_code, content = self._respond(request.read())
        return httpx.Response(status_code, content=content)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        status_code, content = self._respond(body)
        await send({"type": "http.response.start", "status": status_code, "headers": []})
        await send({"type": "http.response.body", "body": content})


def _mock(app: App, **options: Any) -> PhosphoClient:
    transport = httpx.MockTransport(app.handle)
    return PhosphoClient(http_client=httpx.Client(transport=transport), **options)


def _async_mock(app: App, **options: Any) -> AsyncPhosphoClient:
    transport = httpx.MockTransport(app.handle)
    return AsyncPhosphoClient(http_client=httpx.AsyncClient(transport=transport), **options)


def _asgi(app: App, **options: Any) -> AsyncPhosphoClient:
    transport = httpx.ASGITransport(app)
    return AsyncPhosphoClient(http_client=httpx.AsyncClient(transport=transport), **options)


@pytest.mark.parametrize("make", [_mock, _async_mock, _asgi])
@pytest.mark.parametrize(
    ("does", "end", "billed", "in_doubt"),
    [
        ("answers", "an answer", 1, 0),
        ("answers 502", "ServiceError", 0, 1),
        ("raises", "ReplyLostError", 0, 1),
        ("raises what httpx raises", "ReplyLostError", 0, 1),
    ],
)
async def test_the_ledger_is_the_same_in_one_process_when_the_application(
    does: str, end: str, billed: int, in_doubt: int, make: Any
):
    app, spending = App(does), Spending()

    result = await _ask(make(app, base_url="http://localhost", spending=spending), PICTURE)

    booked = spending.snapshot()
    assert _end(result) == end
    assert (booked.images_billed, booked.images_in_doubt) == (billed, in_doubt)
    assert [json.loads(body)["inputs"][0]["text"] for body in app.bodies] == [
        "Describe this image."
    ]
    assert getattr(result, "__context__", None) is None


async def test_an_application_that_fails_before_it_reads_has_received_nothing():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError

    spending = Spending()
    client = AsyncPhosphoClient(
        base_url="http://localhost",
        http_client=httpx.AsyncClient(transport=httpx.ASGITransport(app)),
        spending=spending,
    )

    result = await _ask(client, PICTURE)

    assert _end(result) == "ConnectionFailedError"
    assert spending.snapshot().images_in_doubt == 0


def test_a_batch_sends_over_aiohttp_unless_it_is_given_a_client(lab):
    shared = ClientState.of(Settings.resolve(base_url=lab().base_url), None)
    own = httpx.AsyncClient()

    assert isinstance(AsyncPhosphoClient.over_aiohttp(shared)._http_client, HttpxAiohttpClient)
    assert AsyncPhosphoClient.over_aiohttp(shared, own)._http_client is own


async def test_the_client_over_aiohttp_is_closed_with_the_one_that_made_it(lab):
    server = lab(answer())
    shared = ClientState.of(Settings.resolve(base_url=server.base_url), None)

    async with AsyncPhosphoClient.over_aiohttp(shared) as client:
        await client.describe(PICTURE)

    assert client._http_client.is_closed
    await asyncio.to_thread(server.wait_until_idle)
