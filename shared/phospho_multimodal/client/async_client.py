"""`AsyncPhosphoClient`: the same as `PhosphoClient`, with await."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
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
from phospho_multimodal.spending.left_behind import Held, UnderWay
from phospho_multimodal.transport.pool import (
    AsyncConnectionPool,
    build_request,
    check_borrowed,
    foreign_errors_as_httpx,
    read_async_reply,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["AsyncPhosphoClient"]

T = TypeVar("T")


class _LoopState:
    """What belongs to one event loop: its connections."""

    def __init__(self, settings: Settings) -> None:
        self.pool = AsyncConnectionPool(settings)
        self._guard: AsyncGenerator[None, None] | None = None

    async def begin(self) -> None:
        """Have the loop close the connections before it ends, or when this is forgotten.

        A loop finalizes the asynchronous generators that were begun on it: `asyncio.run` before it
        closes the loop, and the garbage collector by a task on it. nest_asyncio's loops do not:
        there Python itself would close the generator, and complain that it has to wait.
        """
        if sys.get_asyncgen_hooks().finalizer is None:
            return
        self._guard = _hold(self.pool)
        await anext(self._guard)

    async def end(self) -> None:
        """Close the connections now."""
        if self._guard is None:
            await self.pool.aclose()
        else:
            await self._guard.aclose()


async def _hold(pool: AsyncConnectionPool) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await pool.aclose()


class AsyncPhosphoClient:
    """Asks the endpoint about images; one client serves one event loop after another.

    Example:
        ```python
        async with AsyncPhosphoClient(base_url="http://127.0.0.1:8000") as client:
            prediction = await client.describe(Path("receipt.png"), "What is the total?")
        ```
    """

    def __init__(
        self,
        *,
        spending: Spending | None = None,
        http_client: httpx.AsyncClient | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Check the settings; connections are made when the first request needs one.

        Args:
            spending: The ledger and its cap; without one, spending is counted and not limited.
            http_client: A client of your own to send with; it is not closed with this one.
            **options: See `Settings.resolve`.

        Raises:
            MissingKeyError: There is no key, and the base URL is not on the loopback.
            ConfigurationError: A setting is out of range or contradicts another one.
        """
        self._set_up(ClientState.of(Settings.resolve(**options), spending), http_client)

    @classmethod
    def sharing(cls, shared: ClientState, http_client: httpx.AsyncClient | None = None) -> Self:
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

    def _set_up(self, shared: ClientState, http_client: httpx.AsyncClient | None) -> None:
        check_borrowed(shared.settings, http_client, httpx.AsyncClient)
        self._shared = shared
        self._settings = shared.settings
        self._http_client = http_client
        self._states: dict[asyncio.AbstractEventLoop, _LoopState] = {}
        self._closed = False

    @property
    def spending(self) -> Spending:
        """The ledger: what was billed, what is in doubt."""
        return self._shared.spending

    async def describe(
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
        return await self.run(prediction)

    async def check(self) -> EndpointStatus:
        """Look whether the endpoint is there and takes the key; nothing is billed."""
        return await self.run(check_endpoint(self._settings))

    async def aclose(self) -> None:
        """Close this loop's connections; a borrowed `http_client` stays open."""
        self._closed = True
        state = self._states.pop(asyncio.get_running_loop(), None)
        if state is not None:
            await state.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncPhosphoClient {self._settings.base_url} {self._settings.model}>"

    async def run(
        self,
        conversation: Generator[Step, Any, T],
        perform: Callable[[Step], Awaitable[Any]] | None = None,
    ) -> T:
        """Do the steps of a conversation of the exchange until it returns.

        Args:
            conversation: What is to be done, `send_with_retries` for one.
            perform: Does each step in place of this client's own `perform`, which it may call.

        Returns:
            What the conversation returns.

        Raises:
            PhosphoError: See the tree in `phospho_multimodal.errors`.
        """
        do = perform or self.perform
        outcome: Any = None
        failure: BaseException | None = None
        task = asyncio.current_task()
        with UnderWay(conversation), closing(conversation):
            while True:
                # Thrown in outside any handler: see the twin in `client`.
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
                    outcome = await do(step)
                except BaseException as error:  # noqa: BLE001 - the conversation judges it
                    # Left behind and collected, it may come out as something else than that.
                    failure = error if _is_current(task) else GeneratorExit()

    async def perform(self, step: Step) -> Any:
        """Do one step of a conversation of the exchange.

        Args:
            step: What is to be done.

        Returns:
            What the conversation wants to be sent back.
        """
        if isinstance(step, SendRequest):
            return await self._send(step)
        if isinstance(step, AcquireSlot):
            return await self._await_turn(step.deadline)
        if isinstance(step, RunInThread):
            return await self._work(step)
        if isinstance(step, Gather):
            return await self._run_together(step.conversations)
        return await asyncio.sleep(step.seconds)

    async def _run_together(self, conversations: Sequence[Generator[Step, Any, T]]) -> list[Any]:
        tasks = [asyncio.ensure_future(self._run_to_outcome(one)) for one in conversations]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _run_to_outcome(self, conversation: Generator[Step, Any, T]) -> T | PhosphoError:
        try:
            return await self.run(conversation)
        except PhosphoError as error:
            return error

    async def _work(self, step: RunInThread) -> Any:
        if not step.computes:
            return await _on_a_thread(step.run)
        cores = self._shared.cores
        await cores.take_async()
        core = Held(cores.give_back)

        def run() -> Any:
            give_back = core.take_over()  # there is none if it was cancelled before it began
            try:
                return step.run()
            finally:
                give_back()

        # A cancelled task does not wait for its thread: that one has the core until it is done.
        with UnderWay(core), closing(core):
            return await _on_a_thread(run)

    async def _await_turn(self, deadline: float | None) -> Callable[[], None] | None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        slots = self._shared.slots
        if not await slots.take_async(left):
            return None
        slot = Held(slots.give_back)
        with closing(slot):
            wait = self._shared.rate.reserve(time.monotonic(), latest=deadline)
            if wait is None:
                return None
            if wait:
                with UnderWay(slot):
                    await asyncio.sleep(wait)
            return slot.take_over()

    async def _send(self, step: SendRequest) -> HttpResponse:
        request = build_request(step, self._settings.timeouts, self._http_client)
        if step.deadline is None:
            return await self._reply(request)
        from anyio import move_on_after  # noqa: PLC0415

        with move_on_after(max(0.0, step.deadline - time.monotonic())):
            return await self._reply(request)
        raise DeadlineError

    async def _reply(self, request: httpx.Request) -> HttpResponse:
        if self._http_client is None:
            pool = (await self._state()).pool
            response = await pool.handle_async_request(request)
            return await read_async_reply(response)
        with foreign_errors_as_httpx():
            response = await self._http_client.send(request, stream=True, follow_redirects=False)
            return await read_async_reply(response)

    async def _state(self) -> _LoopState:
        if self._closed:
            message = "This client is closed. Make a new one."
            raise ConfigurationError(message)
        loop = asyncio.get_running_loop()
        state = self._states.get(loop)
        if state is None:
            # Weak keys would drop none: the guard of a loop's connections holds the loop.
            for over in [known for known in list(self._states) if known.is_closed()]:
                self._states.pop(over, None)
            self._states[loop] = state = _LoopState(self._settings)
            await state.begin()
        return state


def _is_current(task: asyncio.Task[Any] | None) -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop runs here
        return False


# anyio is loaded by whoever needs it first: an import of this package has no use for it.


async def _on_a_thread(work: Callable[[], Any]) -> Any:
    from anyio import to_thread  # noqa: PLC0415

    return await to_thread.run_sync(work)
