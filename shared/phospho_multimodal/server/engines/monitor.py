"""Watches a model server: whether it is there, what it is, and what its model takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import orjson

from phospho_multimodal.server.engines import EngineBusy
from phospho_multimodal.server.engines.dialects import DIALECTS, Dialect
from phospho_multimodal.server.engines.inspection import (
    NO_ROUTE,
    get_models,
    has_chat,
    no_images,
    read_facts,
    recognize,
)
from phospho_multimodal.server.engines.model_facts import (
    ModelFacts,
    has_name,
    model_name,
    models,
)
from phospho_multimodal.server.engines.upstream import (
    KEY_VARIABLE,
    Upstream,
    UpstreamAway,
    no_answer,
    read_json,
)

__all__ = ["UpstreamMonitor"]

_LOOK_AGAIN = 2.0  # seconds between two looks
_LOOK_AGAIN_FAR = 5.0  # seconds between two looks at another machine that was there
_START_SECONDS = 2.0  # that the first look may delay the server's start
_LOAD_SECONDS = 1800.0  # for a model that has to be loaded first
_STAYS_LOADED = 60.0  # seconds after an answer in which no server unloads a model

_LOADING_RETRY_AFTER = 5  # seconds

_GREETING = [{"role": "user", "content": "Hi"}]

_MOST_NAMES = 10  # of an upstream's models, in a log
_TOO_MANY = 429
_REFUSED = frozenset({401, 403})

logger = logging.getLogger(__name__)


class UpstreamMonitor:
    """Looks at an upstream in the background, and knows the result of the last look.

    No finding is permanent. The upstream may restart with another model, and a proxy may have
    answered for it while it started.
    """

    def __init__(
        self, upstream: Upstream, model: str, dialect: str | None, *, in_use: Callable[[], bool]
    ) -> None:
        """Take what to look at.

        Args:
            upstream: The server.
            model: The model's name there.
            dialect: One of `DIALECTS`; `None` recognizes it.
            in_use: Tells whether requests are in progress there.
        """
        self.available = False
        self.dialect: Dialect = DIALECTS[dialect or "generic"]
        self.facts = ModelFacts()
        self._upstream = upstream
        self._model = model
        self._given = dialect
        self._in_use = in_use
        self._looking: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._used = -_STAYS_LOADED  # when the model answered last
        self._said: dict[str, str] = {}

    async def start(self) -> None:
        """Look once, and continue to look in the background."""
        looked = asyncio.Event()
        self._looking = asyncio.create_task(self._look_again_and_again(looked))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(looked.wait(), _START_SECONDS)

    async def close(self) -> None:
        """Stop looking."""
        for task in (self._looking, self._loading):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def answered(self) -> None:
        """Note that the model is loaded, since it answered."""
        self._used = time.monotonic()

    def unanswered(self, failure: EngineBusy) -> None:
        """Note that a request got no answer; without a connection, the upstream is not there."""
        self._used = -_STAYS_LOADED
        if not isinstance(failure, UpstreamAway):
            return
        if failure.no_connection:
            self._set_away(failure)
        elif failure.timed_out and self.dialect.loads_late:
            self._begin_to_load()

    async def wait_until_loaded(self, seconds: float) -> None:
        """Wait until the model is loaded, if its server loads it for a request only.

        The load continues when the wait ends. Such a server stops loading a model when the client
        that asked for it disconnects, and the next request would begin again.

        Raises:
            EngineBusy: It takes longer than these seconds.
        """
        if self.dialect.load is None or time.monotonic() - self._used < _STAYS_LOADED:
            return
        done, _ = await asyncio.wait({self._begin_to_load()}, timeout=seconds)
        if not done:
            raise EngineBusy(_LOADING_RETRY_AFTER)

    async def _look(self) -> None:
        listed = await self._list()
        if not self.available:
            self.facts = await read_facts(self._upstream, self.dialect, listed, self._model)
            self._say_what_it_is()
            await self.wait_until_loaded(_LOAD_SECONDS)
            if self.dialect.load is not None:  # a loaded model's context is reported
                self.facts = await read_facts(self._upstream, self.dialect, listed, self._model)

    async def _list(self) -> object:
        """Get the list of models, and recognize the server by it."""
        reply = await get_models(self._upstream)
        if no_answer(reply):
            failure = self._upstream.failure(reply)
            # llama.cpp answers 503 while it loads its model. A 429 is from a server that is there.
            if isinstance(failure, EngineBusy) and reply.status_code != _TOO_MANY:
                raise failure
            if reply.status_code in _REFUSED:
                self._say("key", "%s. Set its key in %s.", failure, KEY_VARIABLE)
            # A router answers 404 to everything until its application is deployed.
            if reply.status_code in NO_ROUTE and not (
                self.available or await has_chat(self._upstream)
            ):
                message = f"{self._upstream.root} has no /chat/completions (yet)"
                raise UpstreamAway(message)
        listed = None if no_answer(reply) else read_json(reply)
        if not (self.available and self.dialect.load):  # Ollama's list may not show what it is
            name = self._given or await recognize(self._upstream, listed)
            self.dialect = DIALECTS[name]
        self._check_model(listed)
        return listed

    async def _look_again_and_again(self, looked: asyncio.Event) -> None:
        while True:
            try:
                await self._look()
            except EngineBusy as failure:
                self._set_away(failure)
            else:
                if not self.available:
                    logger.info("The upstream %s is ready.", self._upstream.root)
                self._said.pop("away", None)
                self.available = True
            looked.set()
            far = self.available and not self._upstream.is_local
            await asyncio.sleep(_LOOK_AGAIN_FAR if far else _LOOK_AGAIN)

    def _set_away(self, failure: EngineBusy) -> None:
        # A server that works on a request may not answer anything else meanwhile.
        slow = isinstance(failure, UpstreamAway) and not failure.no_connection
        if slow and self.available and self._in_use():
            return
        self.available = False
        words = str(failure) if isinstance(failure, UpstreamAway) else "it is busy or loading"
        self._say("away", "The upstream did not answer: %s. It is tried again.", words)

    def _begin_to_load(self) -> asyncio.Task[None]:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(self._loaded)
        return self._loading

    async def _load(self) -> None:
        """Have the model loaded by a request that nobody breaks off."""
        name = {"model": self._model}
        one_token = {"stream": False, "max_tokens": 1, "messages": _GREETING}
        chat = (f"{self._upstream.base}/chat/completions", orjson.dumps(name | one_token))
        requests = [chat]
        if self.dialect.load is not None:
            requests.insert(0, (self._upstream.root + self.dialect.load, orjson.dumps(name)))
        for url, body in requests:
            reply = await self._upstream.send("POST", url, body, seconds=_LOAD_SECONDS)
            if reply.status_code not in NO_ROUTE:
                break
        if no_answer(reply):
            # The next requests will fail and log why; asking to load it again would not help.
            self._say("load", "The model was not loaded. %s", self._upstream.failure(reply))

    def _loaded(self, load: asyncio.Task[None]) -> None:
        self._loading = None
        if load.cancelled():
            return
        failure = load.exception()
        if isinstance(failure, EngineBusy):
            self._set_away(failure)
        else:
            self.answered()

    def _check_model(self, listed: object) -> None:
        entries = models(listed)
        if entries and not any(has_name(entry, self._model) for entry in entries):
            names = list(dict.fromkeys(filter(None, map(model_name, entries))))
            some = ", ".join(names[:_MOST_NAMES])
            text = "The upstream does not list the model %s, but: %s."
            self._say("model", text, self._model, some)

    def _say_what_it_is(self) -> None:
        title = self.dialect.title
        logger.info("The upstream %s is %s.", self._upstream.root, title)
        if self.facts.takes_images is False:
            self._say("images", "%s", no_images(self._model, self.dialect))
        if self.dialect.penalty is None:
            self._say(
                "penalty",
                "The upstream is %s, which takes no repetition_penalty: that parameter is checked"
                " and then has no effect. Another --dialect may know it.",
                title,
            )

    def _say(self, subject: str, text: str, *values: object) -> None:
        """Log a warning, once until it changes: a look every two seconds finds the same."""
        message = text % values
        if self._said.get(subject) != message:
            self._said[subject] = message
            logger.warning("%s", message)
