"""The application: the routes of the phospho API around an engine."""

import functools
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Depends, FastAPI, HTTPException, Request, Response
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
from phospho_multimodal.server.admission import ClientDisconnectedError, Workers, WorkQueue
from phospho_multimodal.server.auth import BillingCheck, KeyCheck, LocalCheck
from phospho_multimodal.server.engines import (
    AT_ONCE,
    Engine,
    EngineBusy,
    EngineFailed,
    InputImage,
    Question,
    running,
    state,
)
from phospho_multimodal.server.errors import (
    documented,
    install_handlers,
    prediction_failed,
    unavailable,
)
from phospho_multimodal.server.input_image import read_image
from phospho_multimodal.server.metrics import METRICS_PATH, Metrics, MetricsMiddleware
from phospho_multimodal.server.playground import add_playground
from phospho_multimodal.server.request_body import (
    BodyReader,
    RejectTwoLengths,
    check_media_type,
    read_request,
)

__all__ = ["MAX_BODY_BYTES", "MAX_RECEIVE_SECONDS", "create_app"]

MAX_BODY_BYTES = 80_000_000
"""The largest request. The base64 of the largest image that our clients send has 67 MB."""

MAX_RECEIVE_SECONDS = 60.0
"""How long a body may take to arrive; our clients wait longer for a response."""

_CLIENT_DISCONNECTED = 499  # only the log shows it

_RED_SQUARE = (  # 8 × 8 pixels, a PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzIAAAAA1BMVEX/"
    "AAAZ4gk3AAAAC0lEQVR42mNgQAUAABAAAaoZ+IIAAAAASUVORK5CYII="
)
_EXAMPLE = {
    "model": DEFAULT_MODEL,
    "inputs": [{"text": "What is this?", "image_url": _RED_SQUARE, "max_new_tokens": 50}],
}

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
    """Create a server that speaks the phospho API.

    Args:
        engine: The engine that answers.
        api_key: The key that clients must send. Without a key, only requests to an IP address or
            a local name are answered.
        billing: Whether the simulated account has a billing method. If it does not, every request
            is a 402.
        allow_urls: Whether to fetch images from public URLs. Other URLs are never opened.
        workers: How many requests are answered at the same time. Default: the engine's number.
        max_queue: How many more requests may wait. The next one is a 503.
        max_body_bytes: The largest request. A larger one is a 413.
        max_megapixels: The largest image. A larger one is a 422.
        max_receive_seconds: How long a body may take to arrive. A slower one is a 408.
        access_log: Whether to write a line of JSON for each request to the standard output.
        notice: Lines about the choice of the engine, for the playground.

    Returns:
        The ASGI application.

    Raises:
        ConfigurationError: An option is out of range.
    """
    for name, value, least in (("workers", workers, 1), ("max_queue", max_queue, 0)):
        if value is not None and value < least:
            message = f"{name} must be {least} or greater, got {value}."
            raise ConfigurationError(message)
    app = FastAPI(
        title="phospho-multimodal", version=__version__, lifespan=lambda _: running(engine)
    )
    metrics = Metrics()
    app.add_middleware(RejectTwoLengths)
    app.add_middleware(MetricsMiddleware, metrics=metrics, log=access_log)
    install_handlers(app)
    add_playground(app, about=lambda: _about(engine, notice))

    def count_workers() -> int:
        return workers or cast("int", getattr(engine, "at_once", AT_ONCE))

    queue = WorkQueue(workers=count_workers, max_waiting=max_queue)
    reader = BodyReader(max_body_bytes=max_body_bytes, max_seconds=max_receive_seconds)
    read = functools.partial(read_image, max_megapixels=max_megapixels, allow_urls=allow_urls)
    predictions = _Predictions(engine, reader, queue, read, metrics)
    key = Depends(LocalCheck() if api_key is None else KeyCheck(api_key))
    paid = Depends(BillingCheck(billing=billing))

    _add_status_routes(app, engine, metrics, key)

    # The route reads the body itself: FastAPI would read all of it before it checks the key.
    @app.post(
        PREDICT_PATH,
        dependencies=[key, paid],
        response_model=PredictResponse,
        responses=documented(400, 401, 402, 403, 408, 413, 422, 500, 503),
        openapi_extra=_request_schema(),
    )
    async def predict(request: Request) -> Response:
        """Answer one prompt about one image."""
        return await predictions.answer(request)

    return app


def _add_status_routes(app: FastAPI, engine: Engine, metrics: Metrics, key: Any) -> None:
    @app.get(HEALTH_PATH)
    async def health(response: Response) -> dict[str, str]:
        """Report whether the server can answer: 503 while its engine is loading."""
        now = state(engine)
        response.status_code = 200 if now == "ok" else 503
        return {"status": now, "engine": engine.name}

    @app.get(MODELS_PATH, dependencies=[key], responses=documented(401, 403))
    async def models() -> dict[str, Any]:
        """List the one model."""
        return _list_of_models()

    @app.get(METRICS_PATH, dependencies=[key], include_in_schema=False)
    def prometheus() -> Response:
        return Response(metrics.page(), headers={"Content-Type": metrics.content_type})


@dataclass(frozen=True)
class _Predictions:
    """Answers requests with one engine, within the limits."""

    engine: Engine
    reader: BodyReader
    queue: WorkQueue
    read_image: Callable[[str], InputImage]
    metrics: Metrics

    async def answer(self, request: Request) -> Response:
        """Answer a request whose key was checked."""
        check_media_type(request)
        try:
            with self.reader.open() as read:
                body = await read(request)
                wanted, model = await run_in_threadpool(read_request, body)
                del body  # as large as the image, which `wanted` holds too
                with self.metrics.queued() as begin:
                    work = functools.partial(self._work, wanted, model, begin)
                    answer = await self.queue.run(request, work)
        except (ClientDisconnect, ClientDisconnectedError):
            return Response(status_code=_CLIENT_DISCONNECTED)
        self.metrics.images.inc()
        return Response(answer, media_type="application/json")

    async def _work(
        self, wanted: PredictInput, model: str, begin: Callable[[], None], workers: Workers
    ) -> bytes:
        engine = self.engine

        def read() -> InputImage:
            begin()  # this request has got a worker
            return self.read_image(wanted.image_url)

        parameters = GenerationParameters(**wanted.model_dump(exclude={"text", "image_url"}))
        question = Question(text=wanted.text, model=model, parameters=parameters)
        try:
            if state(engine) != "ok":
                raise EngineBusy  # noqa: TRY301 - as the engine itself would
            if inspect.iscoroutinefunction(engine.describe):
                describe = cast("Callable[..., Awaitable[str]]", engine.describe)
                description = await workers.decode_and_await(
                    read, lambda image: describe(image, question)
                )
            else:
                ask = cast("Callable[..., str]", engine.describe)
                description = await workers.run_in_thread(lambda: ask(read(), question))
            answer = PredictResponse(predictions=[PredictOutput(description=description)])
            return answer.model_dump_json().encode()
        except HTTPException:  # about the image, which some engines decode late
            raise
        except EngineBusy as busy:
            reason = "The engine cannot answer now"
            raise unavailable(reason, busy.retry_after) from None
        except Exception as failure:  # noqa: BLE001 - an engine may raise anything
            reason = str(failure) if isinstance(failure, EngineFailed) else _stack(failure)
            logger.error("The engine %s failed.\n%s", engine.name, reason)  # noqa: TRY400
            raise prediction_failed() from None


def _about(engine: Engine, notice: Sequence[str]) -> list[str]:
    about = getattr(engine, "about", f"the engine {engine.name}")
    return [*notice, f"Answers come from {about}."]


def _stack(failure: BaseException) -> str:
    """Format a traceback without the exception's message, which may quote the prompt."""
    lines: list[str] = []
    link: BaseException | None = failure
    while link is not None:
        lines += [*traceback.format_tb(link.__traceback__), f"{type(link).__qualname__}\n"]
        link = link.__cause__ or link.__context__
    return "".join(lines)


def _list_of_models() -> dict[str, Any]:
    # `data` is the form of OpenAI's API, `models` the form of the phospho API.
    common = {"id": DEFAULT_MODEL, "owned_by": "phospho"}
    return {
        "object": "list",
        "data": [{**common, "object": "model", "created": 0}],
        "models": [{**common, "status": "trained"}],
    }


def _request_schema() -> dict[str, Any]:
    schema = PredictRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    # FastAPI does not know this body, so the schema must contain what it refers to.
    definitions = schema.pop("$defs")
    schema["properties"]["inputs"]["items"] = definitions["PredictInput"]
    content = {"schema": schema, "example": _EXAMPLE}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
