"""`PhosphoClient`: owns the connections, and does what the exchange asks, with threads."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx

from phospho_multimodal.errors import ConfigurationError, PhosphoError
from phospho_multimodal.exchange.answer import answer_turns
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.exchange.health_check import EndpointStatus, check_endpoint
from phospho_multimodal.exchange.prediction import GenerationOptions, Prediction
from phospho_multimodal.exchange.steps import (
    AcquireSlot,
    DeadlineError,
    Gather,
    HttpResponse,
    RunInThread,
    SendRequest,
    Step,
)
from phospho_multimodal.images.source import ImageInput, image_source
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT, ImagePolicy, Turn
from phospho_multimodal.settings import (
    ClientOptions,
    ParameterOptions,
    Settings,
    checked_model,
    checked_parameters,
    checked_stop,
)
from phospho_multimodal.spending.budget import Spending
from phospho_multimodal.spending.processes import after_fork
from phospho_multimodal.transport.pool import (
    ConnectionPool,
    build_request,
    check_borrowed,
    foreign_errors_as_httpx,
    read_reply,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["PhosphoClient"]

T = TypeVar("T")


class _GivenUpError(Exception):
    """Ends a conversation whose answer nobody waits for any more."""


class PhosphoClient:
    """Asks the endpoint about images; one client serves any number of threads.

    Example:
        ```python
        with PhosphoClient(base_url="http://127.0.0.1:8000") as client:
            prediction = client.describe(Path("receipt.png"), "What is the total?")
            print(prediction.description, prediction.metadata["cost_usd"])
        ```
    """

    def __init__(
        self,
        *,
        spending: Spending | None = None,
        http_client: httpx.Client | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Check the settings; connections are made when the first request needs one.

        Args:
            spending: The ledger and its cap; without one, spending is counted and not limited.
            http_client: A client of your own to send with; it is not closed with this one. Its
                connections are not cut at `deadline=`, which bounds each wait then: a server that
                drips the headers of its answer can pass it.
            **options: See `Settings.resolve`.

        Raises:
            MissingKeyError: There is no key, and the base URL is not on the loopback.
            ConfigurationError: A setting is out of range or contradicts another one.
        """
        self._set_up(ClientState.of(Settings.resolve(**options), spending), http_client)

    @classmethod
    def sharing(cls, shared: ClientState, http_client: httpx.Client | None = None) -> Self:
        """Make a client that shares settings, ledger and limits with others.

        Args:
            shared: What they share.
            http_client: A client of your own to send with.

        Returns:
            The client.

        Raises:
            ConfigurationError: It is not the right kind of client, or contradicts a setting.
        """
        client = cls.__new__(cls)
        client._set_up(shared, http_client)  # noqa: SLF001 - of the same class
        return client

    def _set_up(self, shared: ClientState, http_client: httpx.Client | None) -> None:
        check_borrowed(shared.settings, http_client, httpx.Client)
        self._shared = shared
        self._settings = shared.settings
        self._http_client = http_client
        self._pool: ConnectionPool | None = None
        self._closed = False
        self._renew_lock()
        after_fork(self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    @property
    def spending(self) -> Spending:
        """The ledger: what was billed, what is in doubt."""
        return self._shared.spending

    def describe(
        self,
        image: ImageInput,
        prompt: str = DEFAULT_PROMPT,
        *,
        model: str | None = None,
        stop: Sequence[str] | None = None,
        **parameters: Unpack[ParameterOptions],
    ) -> Prediction:
        """Ask one question about one image.

        Args:
            image: A `pathlib.Path`, bytes, a binary file object, a PIL image, or a string that is
                an http(s) URL, a `data:` URL or base64; never a path.
            prompt: The question.
            model: Another model than the client's.
            stop: Strings at which the answer is cut.
            **parameters: `max_new_tokens` (1 to 250), `temperature` (0.1 to 1.0; 0 becomes 0.1),
                `repetition_penalty`, `top_p` (0 to 1). Only what is set is sent.

        Returns:
            The answer and what it cost.

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
        """Ask what a conversation asks; see `plan_conversation` for how it becomes one question.

        Args:
            turns: Oldest first.
            policy: What to do with several images, and with none.
            model: Another model than the client's.
            stop: Strings at which the answer is cut.
            parameters: Generation parameters; `None` means not set.

        Returns:
            The answer and what it cost.

        Raises:
            PhosphoError: See the tree in `phospho_multimodal.errors`.
        """
        asking = GenerationOptions(
            checked_model(model or self._settings.model),
            checked_parameters(parameters or {}),
            checked_stop(stop),
        )
        prediction = answer_turns(self._shared, turns, policy or ImagePolicy(), asking)
        return self._run(prediction)

    def check(self) -> EndpointStatus:
        """Look whether the endpoint is there and takes the key; nothing is billed."""
        return self._run(check_endpoint(self._settings))

    def close(self) -> None:
        """Close the connections; a borrowed `http_client` stays open."""
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

    def __repr__(self) -> str:
        return f"<PhosphoClient {self._settings.base_url} {self._settings.model}>"

    def _run(
        self, conversation: Generator[Step, Any, T], given_up: threading.Event | None = None
    ) -> T:
        """Do the steps of a conversation until it returns, or is given up between two steps."""
        outcome: Any = None
        failure: BaseException | None = None
        with closing(conversation):
            while True:
                # Thrown in outside any handler: an error of ours must not drag httpx's along as
                # its context, since that one holds the request, and so the key.
                try:
                    step = (
                        conversation.send(outcome)
                        if failure is None
                        else conversation.throw(failure)
                    )
                except StopIteration as done:
                    return cast("T", done.value)
                outcome = failure = None
                try:
                    outcome = self._perform(step, given_up)
                except BaseException as error:  # noqa: BLE001 - the conversation judges it
                    failure = error

    def _perform(self, step: Step, given_up: threading.Event | None) -> Any:
        if given_up is not None and given_up.is_set():
            raise _GivenUpError
        if isinstance(step, SendRequest):
            return self._send(step)
        if isinstance(step, AcquireSlot):
            return self._await_turn(step.deadline)
        if isinstance(step, RunInThread):
            return self._work(step)
        if isinstance(step, Gather):
            return self._run_together(step.conversations)
        return time.sleep(step.seconds) if given_up is None else given_up.wait(step.seconds)

    def _run_together(self, conversations: Sequence[Generator[Step, Any, T]]) -> list[Any]:
        workers = min(len(conversations), self._settings.max_concurrency)
        given_up = threading.Event()
        with ThreadPoolExecutor(workers, thread_name_prefix="phospho") as pool:
            try:
                futures = [
                    pool.submit(self._run_to_outcome, one, given_up) for one in conversations
                ]
                return [future.result() for future in futures]
            except BaseException:
                # Nothing more is sent; what is in flight is waited for and settles its money.
                given_up.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _run_to_outcome(
        self, conversation: Generator[Step, Any, T], given_up: threading.Event
    ) -> T | PhosphoError:
        try:
            return self._run(conversation, given_up)
        except PhosphoError as error:
            return error

    def _work(self, step: RunInThread) -> Any:
        if not step.computes:
            return step.run()
        cores = self._shared.cores
        cores.take()
        try:
            return step.run()
        finally:
            cores.give_back()

    def _await_turn(self, deadline: float | None) -> Callable[[], None] | None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        slots = self._shared.slots
        if not slots.take(left):
            return None
        try:
            wait = self._shared.rate.reserve(time.monotonic(), latest=deadline)
            if wait:
                time.sleep(wait)
        except BaseException:
            slots.give_back()
            raise
        if wait is None:
            slots.give_back()
            return None
        return slots.give_back

    def _send(self, step: SendRequest) -> HttpResponse:
        request = build_request(step, self._settings.timeouts, self._http_client)
        try:
            if self._http_client is None:
                response = self._connections().handle_request(request)
                return read_reply(response, step.deadline)
            with foreign_errors_as_httpx():
                response = self._http_client.send(request, stream=True, follow_redirects=False)
                return read_reply(response, step.deadline)
        except httpx.TransportError:
            if step.deadline is not None and time.monotonic() >= step.deadline:
                raise DeadlineError from None
            raise

    def _connections(self) -> ConnectionPool:
        with self._lock:
            if self._closed:
                message = "This client is closed. Make a new one."
                raise ConfigurationError(message)
            if self._pool is None:
                self._pool = ConnectionPool(self._settings)
                weakref.finalize(self, self._pool.close)
            return self._pool
