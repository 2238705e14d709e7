"""`AsyncPhosphoClient`, which sends with `await`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import httpx

from phospho_multimodal.client.base import BaseClient
from phospho_multimodal.contract import ParameterOptions
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.exchange.health_check import EndpointStatus, check_endpoint
from phospho_multimodal.exchange.prediction import Prediction
from phospho_multimodal.exchange.steps import (
    AcquireSlot,
    DeadlineError,
    Gather,
    HttpResponse,
    RunInThread,
    SendRequest,
    Step,
    run_steps_async,
)
from phospho_multimodal.images.source import ImageInput, image_source
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT, ImagePolicy, Turn
from phospho_multimodal.settings import ClientOptions, Settings
from phospho_multimodal.spending.budget import Spending
from phospho_multimodal.transport.aiohttp import aiohttp_client
from phospho_multimodal.transport.pool import AsyncConnectionPool
from phospho_multimodal.transport.requests import (
    foreign_errors_as_httpx,
    make_request,
    read_response_async,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["AsyncPhosphoClient"]

T = TypeVar("T")


class AsyncPhosphoClient(BaseClient[httpx.AsyncClient]):
    """A client of the endpoint for event loops, also for one loop after another.

    Each event loop has its own connections and its own `max_concurrency`. Close a loop only when
    its calls have ended: money that a call holds then stays reserved or becomes in doubt.

    Example:
        ```python
        async with AsyncPhosphoClient(base_url="http://127.0.0.1:8000") as client:
            prediction = await client.describe(Path("receipt.png"), "What is the total?")
        ```

    With many concurrent calls, the extra `aiohttp` needs less CPU for each of them:
        ```python
        from httpx_aiohttp import HttpxAiohttpClient

        async with HttpxAiohttpClient() as http_client:
            client = AsyncPhosphoClient(http_client=http_client)
        ```
    """

    _http_client_class = httpx.AsyncClient

    def __init__(
        self,
        *,
        spending: Spending | None = None,
        http_client: httpx.AsyncClient | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Check the settings. The first request opens a connection.

        Args:
            spending: The ledger with its spending limit. Without one, spending is counted and not
                limited.
            http_client: A client of your own to send with. It is not closed with this one.
            **options: See `Settings.resolve`.

        Raises:
            MissingKeyError: There is no key, and the base URL is not a loopback address.
            ConfigurationError: A setting is out of range or contradicts another one.
        """
        self._set_up(ClientState.of(Settings.resolve(**options), spending), http_client)

    def _set_up(self, shared: ClientState, http_client: httpx.AsyncClient | None) -> None:
        super()._set_up(shared, http_client)
        self._loops: dict[asyncio.AbstractEventLoop, _LoopResources] = {}
        self._aiohttp_client: httpx.AsyncClient | None = None

    @classmethod
    def over_aiohttp(
        cls, shared: ClientState, http_client: httpx.AsyncClient | None = None
    ) -> Self:
        """Make a client as `sharing` does, for one event loop with many concurrent requests.

        Args:
            shared: What it shares with others.
            http_client: A client of your own to send with. Without one, requests go over aiohttp
                if the extra `aiohttp` is installed and no proxy is used.

        Returns:
            The client.

        Raises:
            ConfigurationError: `http_client` is of the wrong class, or contradicts a setting.
        """
        client = cls.sharing(shared, http_client)
        if http_client is None:
            made = aiohttp_client(shared.settings)
            client._http_client = client._aiohttp_client = made  # noqa: SLF001 - of the same class
        return client

    async def describe(
        self,
        image: ImageInput,
        prompt: str = DEFAULT_PROMPT,
        *,
        model: str | None = None,
        stop: Sequence[str] | None = None,
        **parameters: Unpack[ParameterOptions],
    ) -> Prediction:
        """Send one prompt about one image. See `PhosphoClient.describe`."""
        turn = Turn("user", (prompt, image_source(image)))
        return await self.converse([turn], model=model, stop=stop, parameters=parameters)

    async def converse(
        self,
        turns: Sequence[Turn],
        policy: ImagePolicy | None = None,
        *,
        model: str | None = None,
        stop: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """Send a conversation as one prompt. See `PhosphoClient.converse`."""
        return await self.run(self._converse(turns, policy, model, stop, parameters))

    async def check(self) -> EndpointStatus:
        """Check whether the endpoint responds and accepts the key. Nothing is billed."""
        return await self.run(check_endpoint(self._settings))

    async def aclose(self) -> None:
        """Close this loop's connections. A borrowed `http_client` stays open."""
        self._closed = True
        resources = self._loops.pop(asyncio.get_running_loop(), None)
        if resources is not None:
            await resources.close()
        if self._aiohttp_client is not None:
            await self._aiohttp_client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def run(
        self,
        exchange: Generator[Step, Any, T],
        perform: Callable[[Step], Awaitable[Any]] | None = None,
    ) -> T:
        """Do the steps of an exchange until it returns. See `PhosphoClient.run`."""
        return await run_steps_async(exchange, perform or self.perform)

    async def perform(self, step: Step) -> Any:
        """Do one step of an exchange, and return its result."""
        if isinstance(step, SendRequest):
            return await self._send(step)
        if isinstance(step, AcquireSlot):
            return await self._acquire_slot(step.deadline)
        if isinstance(step, RunInThread):
            limiter = (await self._resources()).cores if step.computes else None
            return await anyio.to_thread.run_sync(step.run, limiter=limiter)
        if isinstance(step, Gather):
            return await self._gather(step.exchanges)
        return await asyncio.sleep(step.seconds)

    async def _gather(self, exchanges: Sequence[Generator[Step, Any, T]]) -> list[T | PhosphoError]:
        async def outcome(exchange: Generator[Step, Any, T]) -> T | PhosphoError:
            try:
                return await self.run(exchange)
            except PhosphoError as error:
                return error

        tasks = [asyncio.ensure_future(outcome(exchange)) for exchange in exchanges]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _acquire_slot(self, deadline: float | None) -> Callable[[], None] | None:
        slots, borrower = (await self._resources()).slots, object()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        with anyio.move_on_after(left) as scope:
            await slots.acquire_on_behalf_of(borrower)
        if scope.cancelled_caught:
            return None
        release = partial(slots.release_on_behalf_of, borrower)
        try:
            wait = self._shared.rate.reserve(time.monotonic(), latest=deadline)
            if wait:
                await asyncio.sleep(wait)
        except BaseException:
            release()
            raise
        if wait is None:
            release()
            return None
        return release

    async def _send(self, step: SendRequest) -> HttpResponse:
        request = make_request(step, self._settings.timeouts, self._http_client)
        if step.deadline is None:
            return await self._send_request(request)
        with anyio.move_on_after(max(0.0, step.deadline - time.monotonic())):
            return await self._send_request(request)
        raise DeadlineError

    async def _send_request(self, request: httpx.Request) -> HttpResponse:
        if self._http_client is None:
            pool = (await self._resources()).pool
            return await read_response_async(await pool.handle_async_request(request))
        with foreign_errors_as_httpx():
            response = await self._http_client.send(request, stream=True, follow_redirects=False)
            return await read_response_async(response)

    async def _resources(self) -> _LoopResources:
        self._check_open()
        loop = asyncio.get_running_loop()
        resources = self._loops.get(loop)
        if resources is None:
            for closed in [known for known in list(self._loops) if known.is_closed()]:
                self._loops.pop(closed, None)
            self._loops[loop] = resources = _LoopResources(self._settings)
            await resources.close_with_loop()
        return resources


class _LoopResources:
    """The connections and limits of one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.pool = AsyncConnectionPool(settings)
        self.slots = anyio.CapacityLimiter(settings.max_concurrency)
        self.cores = anyio.CapacityLimiter(os.cpu_count() or 1)
        self._closer: AsyncGenerator[None, None] | None = None

    async def close_with_loop(self) -> None:
        """Close the connections when `asyncio.run` ends: it closes asynchronous generators."""
        if sys.get_asyncgen_hooks().finalizer is not None:  # the loops of nest_asyncio have none
            self._closer = _close_at_end(self.pool)
            await anext(self._closer)

    async def close(self) -> None:
        await (self.pool.aclose() if self._closer is None else self._closer.aclose())


async def _close_at_end(pool: AsyncConnectionPool) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await pool.aclose()
