"""Reading a request's body, and checking it in the order of the phospho API."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from email.message import Message
from typing import Annotated

import anyio
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from phospho_multimodal.contract import MODEL_PREFIX, PredictInput, PredictRequest
from phospho_multimodal.server.errors import (
    invalid_form,
    invalid_value,
    prediction_failed,
    unavailable,
)

__all__ = ["BodyReader", "RejectTwoLengths", "check_media_type", "read_request"]

_CLOSE = {"Connection": "close"}  # the rest of the body is not the next request
_RETRY_AFTER = 1  # seconds
_LARGEST_BODIES = 4  # this many bodies of the largest size may be in memory
_MAX_VALUES = 1_000_000
_MAX_INPUTS = 32  # more inputs are not validated one by one


class RejectTwoLengths:
    """ASGI middleware that rejects a request with two lengths, and closes its connection.

    A proxy in front may believe the other length, and take the rest for another request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            detail = "Content-Length and Transfer-Encoding contradict each other. Send one of them."
            response = JSONResponse({"detail": detail}, 400, _CLOSE)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class BodyReader:
    """Reads bodies with a limit for one body, for its time, and for all bodies in memory."""

    def __init__(self, *, max_body_bytes: int, max_seconds: float) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_seconds = max_seconds
        self._free = _LARGEST_BODIES * max_body_bytes

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Request], Awaitable[bytes]]]:
        """Yield a function that reads a body; its bytes count as held until the block ends."""
        held = 0
        too_large = HTTPException(
            413, f"The request is larger than {self._max_body_bytes} bytes. Send a smaller image."
        )

        async def read(request: Request) -> bytes:
            nonlocal held
            announced = request.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > self._max_body_bytes:
                raise too_large
            body = bytearray()
            with anyio.move_on_after(self._max_seconds):
                async for chunk in request.stream():
                    held += len(chunk)
                    self._free -= len(chunk)
                    body += chunk
                    if held > self._max_body_bytes:
                        raise too_large
                    if self._free < 0:
                        reason = "Too many large requests came at once"
                        raise unavailable(reason, _RETRY_AFTER, close=True)
                return bytes(body)
            detail = (
                f"The request did not arrive within {self._max_seconds:g} s. Send it again, or a"
                " smaller image."
            )
            raise HTTPException(408, detail, _CLOSE)

        try:
            yield read
        finally:
            self._free += held


def check_media_type(request: Request) -> None:
    """Reject (422) a body whose Content-Type is not JSON.

    A browser asks for permission before it sends JSON to another site. It sends text, forms, and
    bodies without a type without asking.
    """
    header = Message()
    header["content-type"] = request.headers.get("content-type", "text/plain")
    kind, _, subtype = header.get_content_type().partition("/")
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        message = "The body is not announced as JSON. Send it with Content-Type: application/json."
        raise invalid_value(message, kind="content_type")


class _FewInputs(PredictRequest):
    inputs: Annotated[list[PredictInput], Field(max_length=_MAX_INPUTS)]


class _OnlyModel(BaseModel):
    """The rest of a request that has too many inputs."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str


def read_request(body: bytes) -> tuple[PredictInput, str]:
    """Check the body's form, then its model, then its number of inputs (422, 400, 500).

    Returns:
        The one input, and the model's name.
    """
    # A parsed value takes a hundred times its size in the body: 80 MB of `{},` would be 40 GB.
    if len(body) > _MAX_VALUES and sum(map(body.count, b"{[,")) > _MAX_VALUES:
        message = f"The body holds more than {_MAX_VALUES:,} JSON values. Send one input."
        raise invalid_value(message, kind="too_many_values")
    try:
        request = _FewInputs.model_validate_json(body)
        model, inputs = request.model, request.inputs
    except ValidationError as invalid:
        if not _has_too_many_inputs(invalid):
            raise invalid_form(invalid) from None
        model, inputs = _read_model(body), []
    if not model.startswith(MODEL_PREFIX):
        raise HTTPException(400, "Model not supported or you don't have access to it.")
    if len(inputs) != 1:
        raise prediction_failed()
    return inputs[0], model


def _has_too_many_inputs(invalid: ValidationError) -> bool:
    items = invalid.errors(include_url=False, include_context=False, include_input=False)
    return any((item["loc"], item["type"]) == (("inputs",), "too_long") for item in items)


def _read_model(body: bytes) -> str:
    try:
        return _OnlyModel.model_validate_json(body).model
    except ValidationError as invalid:
        raise invalid_form(invalid) from None
