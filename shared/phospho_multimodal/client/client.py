"""`PhosphoClient`, which sends with threads."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

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
    run_steps,
)
from phospho_multimodal.images.source import ImageInput, image_source
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT, ImagePolicy, Turn
from phospho_multimodal.settings import ClientOptions, Settings
from phospho_multimodal.spending.budget import Spending
from phospho_multimodal.transport.pool import ConnectionPool
from phospho_multimodal.transport.requests import (
    foreign_errors_as_httpx,
    make_request,
    read_response,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["PhosphoClient"]

T = TypeVar("T")


class _AbandonedError(Exception):
    """Ends a call whose answer nobody waits for any more."""


class PhosphoClient(BaseClient[httpx.Client]):
    """A client of the endpoint, for any number of threads.

    Create it after forking, or close it before: a child process shares its limits and its ledger in
    memory only as a copy, and a call that is in progress at the fork does not go on there.

    Example:
        ```python
        with PhosphoClient(base_url="http://127.0.0.1:8000") as client:
            prediction = client.describe(Path("receipt.png"), "What is the total?")
            print(prediction.description, prediction.metadata["cost_usd"])
        ```
    """

    _http_client_class = httpx.Client

    def __init__(
        self,
        *,
        spending: Spending | None = None,
        http_client: httpx.Client | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Check the settings. The first request opens a connection.

        Args:
            spending: The ledger with its spending limit. Without one, spending is counted and not
                limited.
            http_client: A client of your own to send with. It is not closed with this one. Its
                connections are not cut at `deadline=`, which bounds each wait instead: a server
                that sends its headers byte by byte can exceed it.
            **options: See `Settings.resolve`.

        Raises:
            MissingKeyError: There is no key, and the base URL is not a loopback address.
            ConfigurationError: A setting is out of range or contradicts another one.
        """
        self._set_up(ClientState.of(Settings.resolve(**options), spending), http_client)

    def _set_up(self, shared: ClientState, http_client: httpx.Client | None) -> None:
        super()._set_up(shared, http_client)
        self._slots = threading.BoundedSemaphore(self._settings.max_concurrency)
        self._cores = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._pool: ConnectionPool | None = None
        self._lock = threading.Lock()

    def describe(
        self,
        image: ImageInput,
        prompt: str = DEFAULT_PROMPT,
        *,
        model: str | None = None,
        stop: Sequence[str] | None = None,
        **parameters: Unpack[ParameterOptions],
    ) -> Prediction:
        """Send one prompt about one image.

        Args:
            image: A `pathlib.Path`, bytes, a binary file object, a PIL image, or a string that is
                an http(s) URL, a `data:` URL or base64. A string is never a path.
            prompt: The prompt.
            model: The model, by default the client's.
            stop: Strings at which the answer is cut.
            **parameters: `max_new_tokens` (1 to 250), `temperature` (0.1 to 1.0; 0 becomes 0.1),
                `repetition_penalty`, `top_p` (0 to 1). Only parameters that are set are sent.

        Returns:
            The answer and its cost.

        Raises:
            PhosphoError: See the tree in `phospho_multimodal.errors`.
        """
        turn = Turn("user", (prompt, image_source(image)))
        return self.converse([turn], model=model, stop=stop, parameters=parameters)

    def converse(
        self,
        turns: Sequence[Turn],
        policy: ImagePolicy | None = None,
        *,
        model: str | None = None,
        stop: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """Send a conversation, which `plan_conversation` turns into one prompt.

        Args:
            turns: The turns, oldest first.
            policy: What to do with several images, and with none.
            model: The model, by default the client's.
            stop: Strings at which the answer is cut.
            parameters: Generation parameters. `None` means not set.

        Returns:
            The answer and its cost.

        Raises:
            PhosphoError: See the tree in `phospho_multimodal.errors`.
        """
        return self.run(self._converse(turns, policy, model, stop, parameters))

    def check(self) -> EndpointStatus:
        """Check whether the endpoint responds and accepts the key. Nothing is billed."""
        return self.run(check_endpoint(self._settings))

    def close(self) -> None:
        """Close the connections. A borrowed `http_client` stays open."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self, exchange: Generator[Step, Any, T], perform: Callable[[Step], Any] | None = None
    ) -> T:
        """Do the steps of an exchange until it returns.

        Args:
            exchange: The exchange, for example `send_with_retries`.
            perform: A function that does each step instead of `self.perform`, which it may call.

        Returns:
            What the exchange returns.

        Raises:
            PhosphoError: See the tree in `phospho_multimodal.errors`.
        """
        return run_steps(exchange, perform or self.perform)

    def perform(self, step: Step) -> Any:
        """Do one step of an exchange, and return its result."""
        if isinstance(step, SendRequest):
            return self._send(step)
        if isinstance(step, AcquireSlot):
            return self._acquire_slot(step.deadline)
        if isinstance(step, RunInThread):
            return self._run_here(step)
        if isinstance(step, Gather):
            return self._gather(step.exchanges)
        return time.sleep(step.seconds)

    def _gather(self, exchanges: Sequence[Generator[Step, Any, T]]) -> list[T | PhosphoError]:
        abandoned = threading.Event()

        def perform(step: Step) -> Any:
            if abandoned.is_set():
                raise _AbandonedError
            if isinstance(step, (SendRequest, AcquireSlot, RunInThread, Gather)):
                return self.perform(step)
            return abandoned.wait(step.seconds)

        def outcome(exchange: Generator[Step, Any, T]) -> T | PhosphoError:
            try:
                return run_steps(exchange, perform)
            except PhosphoError as error:
                return error

        workers = min(len(exchanges), self._settings.max_concurrency)
        with ThreadPoolExecutor(workers, thread_name_prefix="phospho") as pool:
            try:
                futures = [pool.submit(outcome, exchange) for exchange in exchanges]
                return [future.result() for future in futures]
            except BaseException:
                # Nothing more is sent. The requests in flight end and settle their money.
                abandoned.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _run_here(self, step: RunInThread) -> Any:
        if not step.computes:
            return step.run()
        with self._cores:
            return step.run()

    def _acquire_slot(self, deadline: float | None) -> Callable[[], None] | None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._slots.acquire(timeout=left):
            return None
        try:
            wait = self._shared.rate.reserve(time.monotonic(), latest=deadline)
            if wait:
                time.sleep(wait)
        except BaseException:
            self._slots.release()
            raise
        if wait is None:
            self._slots.release()
            return None
        return self._slots.release

    def _send(self, step: SendRequest) -> HttpResponse:
        request = make_request(step, self._settings.timeouts, self._http_client)
        try:
            if self._http_client is None:
                response = self._connections().handle_request(request)
                return read_response(response, step.deadline)
            with foreign_errors_as_httpx():
                response = self._http_client.send(request, stream=True, follow_redirects=False)
                return read_response(response, step.deadline)
        except httpx.TransportError:
            if step.deadline is not None and time.monotonic() >= step.deadline:
                raise DeadlineError from None
            raise

    def _connections(self) -> ConnectionPool:
        with self._lock:
            self._check_open()
            if self._pool is None:
                self._pool = ConnectionPool(self._settings)
                weakref.finalize(self, self._pool.close)
            return self._pool
