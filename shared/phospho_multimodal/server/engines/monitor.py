"""Checks a model server in the background: its availability, its dialect, what its model takes."""

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

_INTERVAL = 2.0  # seconds between two checks
_INTERVAL_FAR = 5.0  # seconds between two checks of an available server on another machine
_START_SECONDS = 2.0  # that the first check may delay the start of our server
_LOAD_SECONDS = 1800.0  # for a model that has to be loaded first
_STAYS_LOADED = 60.0  # seconds after an answer; no server unloads a model earlier

_WORKS = 5.0  # seconds after an answer; a late check does not show that the server is away

_LOADING_RETRY_AFTER = 5  # seconds

_GREETING = [{"role": "user", "content": "Hi"}]

_MAX_NAMES = 10  # of models in a log line
_TOO_MANY = 429
_REFUSED = frozenset({401, 403})

logger = logging.getLogger(__name__)


class UpstreamMonitor:
    """Checks an upstream in the background, and keeps the result of the last check.

    No result is permanent. The upstream may restart with another model, and a proxy may answer
    while the upstream starts.
    """

    def __init__(
        self, upstream: Upstream, model: str, dialect: str | None, *, in_use: Callable[[], bool]
    ) -> None:
        self.available = False
        self.dialect: Dialect = DIALECTS[dialect or "generic"]
        self.facts = ModelFacts()
        self._upstream = upstream
        self._model = model
        self._fixed_dialect = dialect
        self._in_use = in_use
        self._checking: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._answered_at = -_STAYS_LOADED  # when the model answered last
        self._logged: dict[str, str] = {}

    async def start(self) -> None:
        """Check once, and continue in the background."""
        checked = asyncio.Event()
        self._checking = asyncio.create_task(self._check_repeatedly(checked))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(checked.wait(), _START_SECONDS)

    async def close(self) -> None:
        """Stop the checks."""
        for task in (self._checking, self._loading):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def answered(self) -> None:
        """Note that the model answered, so it is loaded."""
        self._answered_at = time.monotonic()

    def unanswered(self, failure: EngineBusy) -> None:
        """Note that a request got no answer."""
        self._answered_at = -_STAYS_LOADED
        if not isinstance(failure, UpstreamAway):
            return
        if failure.no_connection:
            self._set_unavailable(failure)
        elif failure.timed_out and self.dialect.loads_late:
            self._start_loading()

    async def wait_until_loaded(self, seconds: float) -> None:
        """Wait until the model is loaded, if the first request makes its server load it.

        The load continues after a timeout, which is an EngineBusy. Such a server stops loading
        when its client disconnects, and the next request would begin from the start.
        """
        if self.dialect.load is None or time.monotonic() - self._answered_at < _STAYS_LOADED:
            return
        done, _ = await asyncio.wait({self._start_loading()}, timeout=seconds)
        if not done:
            raise EngineBusy(_LOADING_RETRY_AFTER)

    async def _check(self) -> None:
        listed = await self._list()
        if not self.available:
            self.facts = await read_facts(self._upstream, self.dialect, listed, self._model)
            self._log_dialect()
            await self.wait_until_loaded(_LOAD_SECONDS)
            if self.dialect.load is not None:  # it reports the context of a loaded model
                self.facts = await read_facts(self._upstream, self.dialect, listed, self._model)

    async def _list(self) -> object:
        """Get the list of models, and recognize the dialect by it."""
        reply = await get_models(self._upstream)
        if no_answer(reply):
            failure = self._upstream.failure(reply)
            # llama.cpp answers 503 while it loads its model. A 429 is from an available server.
            if isinstance(failure, EngineBusy) and reply.status_code != _TOO_MANY:
                raise failure
            if reply.status_code in _REFUSED:
                self._warn("key", "%s. Set its key in %s.", failure, KEY_VARIABLE)
            # A router answers 404 to everything until its application is deployed.
            if reply.status_code in NO_ROUTE and not (
                self.available or await has_chat(self._upstream)
            ):
                message = f"{self._upstream.root} has no /chat/completions yet"
                raise UpstreamAway(message)
        listed = None if no_answer(reply) else read_json(reply)
        if not (
            self.available and self.dialect.load
        ):  # Ollama's list may not show that it is Ollama
            name = self._fixed_dialect or await recognize(self._upstream, listed)
            self.dialect = DIALECTS[name]
        self._check_model(listed)
        return listed

    async def _check_repeatedly(self, checked: asyncio.Event) -> None:
        while True:
            try:
                await self._check()
            except EngineBusy as failure:
                self._set_unavailable(failure)
            else:
                if not self.available:
                    logger.info("The upstream %s is ready.", self._upstream.root)
                self._logged.pop("unavailable", None)
                self.available = True
            checked.set()
            far = self.available and not self._upstream.is_local
            await asyncio.sleep(_INTERVAL_FAR if far else _INTERVAL)

    def _set_unavailable(self, failure: EngineBusy) -> None:
        # A server may answer nothing else while it works on a request.
        slow = isinstance(failure, UpstreamAway) and not failure.no_connection
        busy = self._in_use() or time.monotonic() - self._answered_at < _WORKS
        if slow and self.available and busy:
            return
        self.available = False
        words = str(failure) if isinstance(failure, UpstreamAway) else "it is busy or loading"
        self._warn(
            "unavailable",
            "The upstream did not answer: %s. It is checked again every few seconds.",
            words,
        )

    def _start_loading(self) -> asyncio.Task[None]:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(self._loaded)
        return self._loading

    async def _load(self) -> None:
        """Send a request that loads the model, and that no client can cancel."""
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
            # The next requests fail and log the reason. Another load would not help.
            self._warn("load", "The model was not loaded. %s", self._upstream.failure(reply))

    def _loaded(self, load: asyncio.Task[None]) -> None:
        self._loading = None
        if load.cancelled():
            return
        failure = load.exception()
        if isinstance(failure, EngineBusy):
            self._set_unavailable(failure)
        else:
            self.answered()

    def _check_model(self, listed: object) -> None:
        entries = models(listed)
        if entries and not any(has_name(entry, self._model) for entry in entries):
            names = list(dict.fromkeys(filter(None, map(model_name, entries))))
            some = ", ".join(names[:_MAX_NAMES])
            text = "The upstream does not list the model %s, but: %s."
            self._warn("model", text, self._model, some)

    def _log_dialect(self) -> None:
        title = self.dialect.title
        logger.info("The upstream %s is %s.", self._upstream.root, title)
        if self.facts.takes_images is False:
            self._warn("images", "%s", no_images(self._model, self.dialect))
        if self.dialect.penalty is None:
            self._warn(
                "penalty",
                "The upstream is %s, which takes no repetition_penalty. That parameter is checked"
                " and then has no effect. Another --dialect may support it.",
                title,
            )

    def _warn(self, subject: str, text: str, *values: object) -> None:
        """Log a warning once until it changes, because the checks find the same again."""
        message = text % values
        if self._logged.get(subject) != message:
            self._logged[subject] = message
            logger.warning("%s", message)
