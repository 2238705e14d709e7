"""The application: the contract's three routes around an engine."""

import functools
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from phospho_multimodal._version import __version__
from phospho_multimodal.contract import (
    DEFAULT_MODEL,
    HEALTH_PATH,
    MODELS_PATH,
    PREDICT_PATH,
    GenerationParameters,
    PredictInput,
    PredictOutput,
    PredictRequest,
    PredictResponse,
)
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import errors as failures
from phospho_multimodal.server.access_log import AccessLog
from phospho_multimodal.server.admission import ClientGoneError, Intake, Places, WorkQueue
from phospho_multimodal.server.auth import BillingCheck, KeyCheck, LocalCheck
from phospho_multimodal.server.connections import OneLength
from phospho_multimodal.server.engines import (
    AT_ONCE,
    Engine,
    EngineBusy,
    EngineFailed,
    Picture,
    Question,
    running,
    state,
)
from phospho_multimodal.server.input_image import read_image
from phospho_multimodal.server.metrics import METRICS_PATH, Measured, Metrics
from phospho_multimodal.server.playground import add_playground
from phospho_multimodal.server.request_body import check_media_type, read_request

__all__ = ["MAX_BODY_BYTES", "MAX_RECEIVE_SECONDS", "create_app"]

MAX_BODY_BYTES = 80_000_000
"""The largest request: the base64 of the largest image that our clients send is 67 MB."""

MAX_RECEIVE_SECONDS = 60.0
"""How long a body may take to arrive: less than our clients wait for an answer."""

_CLIENT_GONE = 499  # never seen by anyone: there is nobody left to read it

_RED_SQUARE = (  # 8 × 8 pixels, a PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzIAAAAA1BMVEX/"
    "AAAZ4gk3AAAAC0lEQVR42mNgQAUAABAAAaoZ+IIAAAAASUVORK5CYII="
)
_EXAMPLE = {
    "model": DEFAULT_MODEL,
    "inputs": [{"text": "What is this?", "image_url": _RED_SQUARE, "max_new_tokens": 50}],
}
"""A request that works as it stands, for the documentation page."""

logger = logging.getLogger(__name__)


def create_app(
    engine: Engine,
    *,
    api_key: str | None = None,
    billing: bool = True,
    allow_urls: bool = False,
    workers: int | None = None,
    max_queue: int = 16,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_megapixels: int = 100,
    max_receive_seconds: float = MAX_RECEIVE_SECONDS,
    access_log: bool = False,
    notice: Sequence[str] = (),
) -> FastAPI:
    """Make a server that speaks the contract.

    Args:
        engine: What answers.
        api_key: The key to ask for; without one, no Authorization is asked for, and only what is
            addressed to an IP address or a local name is answered.
        billing: Whether to play an account with a billing method; without one, all is a 402.
        allow_urls: Whether to fetch images from public URLs; no other URL is opened.
        workers: How many requests are answered at once; without it, as many as the engine says.
        max_queue: How many more may wait for their turn; the next is a 503.
        max_body_bytes: The largest request; a larger one is a 413.
        max_megapixels: The largest image; a larger one is a 422.
        max_receive_seconds: How long a request's body may take to arrive; longer is a 408.
        access_log: Whether to write a line of JSON for each request to the standard output.
        notice: Lines about the choice of the engine, for the playground.

    Returns:
        The ASGI application.

    Raises:
        ConfigurationError: An option is out of range.
    """
    _check_options(workers=workers, max_queue=max_queue)
    app = FastAPI(
        title="phospho-multimodal", version=__version__, lifespan=lambda _: running(engine)
    )
    metrics = Metrics()
    app.add_middleware(OneLength)
    app.add_middleware(Measured, metrics=metrics)
    if access_log:
        app.add_middleware(AccessLog)
    failures.install(app)
    add_playground(app, about=lambda: _about(engine, notice))
    queue = WorkQueue(workers=lambda: _at_once(engine, workers), max_waiting=max_queue)
    intake = Intake(max_body_bytes=max_body_bytes, max_seconds=max_receive_seconds)
    read = functools.partial(read_image, max_megapixels=max_megapixels, allow_urls=allow_urls)
    predictions = _Predictions(engine, intake, queue, read, metrics)
    key = Depends(LocalCheck() if api_key is None else KeyCheck(api_key))
    paid = Depends(BillingCheck(billing=billing))

    @app.get(HEALTH_PATH)
    async def health(response: Response) -> dict[str, str]:
        """Say that the server is up; a 503 while its engine is still loading."""
        now = state(engine)
        response.status_code = 200 if now == "ok" else 503
        return {"status": now, "engine": engine.name}

    @app.get(MODELS_PATH, dependencies=[key], responses=failures.documented(401, 403))
    async def models() -> dict[str, Any]:
        """List the one model."""
        return _list_of_models()

    @app.get(METRICS_PATH, dependencies=[key], include_in_schema=False)
    def counts() -> Response:
        """Tell Prometheus what was counted."""
        return Response(metrics.page(), headers={"Content-Type": metrics.content_type})

    # The body is read by hand: FastAPI would read it whole before the key is looked at.
    @app.post(
        PREDICT_PATH,
        dependencies=[key, paid],
        response_model=PredictResponse,
        responses=failures.documented(400, 401, 402, 403, 408, 413, 422, 500, 503),
        openapi_extra=_request_schema(),
    )
    async def predict(request: Request) -> Response:
        """Answer one question about one image."""
        return await predictions.answer(request)

    return app


class _Predictions:
    """One engine behind its limits."""

    def __init__(
        self,
        engine: Engine,
        intake: Intake,
        queue: WorkQueue,
        read: Callable[[str], Picture],
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._engine = engine
        self._intake = intake
        self._queue = queue
        self._read = read

    async def answer(self, request: Request) -> Response:
        """Answer a request whose key was checked; what blocks is done on threads."""
        check_media_type(request)
        try:
            with self._intake.opened() as read:
                body = await read(request)
                wanted, model = await run_in_threadpool(read_request, body)
                del body  # as large as the image: not to be held twice while it waits
                with self._metrics.queued() as begin:
                    work = functools.partial(self._work, wanted, model, begin)
                    answer = await self._queue.run(request, work)
        except (ClientDisconnect, ClientGoneError):
            return Response(status_code=_CLIENT_GONE)
        self._metrics.images.inc()
        return Response(answer, media_type="application/json")

    async def _work(
        self, wanted: PredictInput, model: str, begin: Callable[[], None], places: Places
    ) -> bytes:
        engine = self._engine

        def read() -> Picture:
            begin()  # whoever reads the picture has got a place
            return self._read(wanted.image_url)

        parameters = GenerationParameters(**wanted.model_dump(exclude={"text", "image_url"}))
        question = Question(text=wanted.text, model=model, parameters=parameters)
        try:
            if state(engine) != "ok":
                raise EngineBusy  # noqa: TRY301 - as the engine itself would
            if inspect.iscoroutinefunction(engine.describe):
                describe = cast("Callable[..., Awaitable[str]]", engine.describe)
                description = await places.read_and_wait(read, lambda pic: describe(pic, question))
            else:
                ask = cast("Callable[..., str]", engine.describe)
                description = await places.on_thread(lambda: ask(read(), question))
            answer = PredictResponse(predictions=[PredictOutput(description=description)])
            return answer.model_dump_json().encode()
        except failures.Refusal:  # the picture's: its pixels are decoded when the engine wants them
            raise
        except EngineBusy as busy:
            raise failures.engine_busy(busy.retry_after) from None
        except Exception as failure:  # noqa: BLE001 - whatever an engine raises is the contract's 500
            said = str(failure) if isinstance(failure, EngineFailed) else _places(failure)
            logger.error("The engine %s failed.\n%s", engine.name, said)  # noqa: TRY400
            raise failures.prediction_failed() from None


def _at_once(engine: Engine, workers: int | None) -> int:
    return workers or cast("int", getattr(engine, "at_once", AT_ONCE))


def _about(engine: Engine, notice: Sequence[str]) -> list[str]:
    """Say what answers, for the playground; the notice of its choice goes before."""
    about = getattr(engine, "about", f"the engine {engine.name}")
    return [*notice, f"Answers come from {about}."]


def _check_options(*, workers: int | None, max_queue: int) -> None:
    if (workers is not None and workers < 1) or max_queue < 0:
        message = f"It takes one worker at least ({workers}) and no negative queue ({max_queue})."
        raise ConfigurationError(message)


def _places(failure: BaseException) -> str:
    """Tell where and by which class a failure came, without its message: that may quote."""
    lines: list[str] = []
    link: BaseException | None = failure
    while link is not None:
        lines += [*traceback.format_tb(link.__traceback__), f"{type(link).__qualname__}\n"]
        link = link.__cause__ or link.__context__
    return "".join(lines)


def _list_of_models() -> dict[str, Any]:
    # `data` is the form that OpenAI made common, `models` the one of the vendor's backend.
    common = {"id": DEFAULT_MODEL, "owned_by": "phospho"}
    return {
        "object": "list",
        "data": [{**common, "object": "model", "created": 0}],
        "models": [{**common, "status": "trained"}],
    }


def _request_schema() -> dict[str, Any]:
    schema = PredictRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    # FastAPI knows nothing of this body, so what the schema refers to has to stand inside it.
    definitions = schema.pop("$defs")
    schema["properties"]["inputs"]["items"] = definitions["PredictInput"]
    content = {"schema": schema, "example": _EXAMPLE}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
