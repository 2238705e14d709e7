"""Every answer that is not a 200, in the contract's words.

The contract's own bodies are repeated to the letter. What only this server refuses is a 422 in
the contract's form, and says what to change. No body repeats anything of the request.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

__all__ = [
    "Failure",
    "InvalidForm",
    "Problem",
    "Refusal",
    "ambiguous_length",
    "body_too_large",
    "body_too_slow",
    "documented",
    "engine_busy",
    "foreign_host",
    "install",
    "invalid_form",
    "invalid_token",
    "not_authenticated",
    "not_json",
    "payment_required",
    "prediction_failed",
    "queue_full",
    "refused_image",
    "server_full",
    "too_many_values",
    "unsupported_model",
]

_CLOSE = {"Connection": "close"}  # what is left of such a request is not the next one

_WHEN = {
    400: "The model's name lacks the prefix, or the request tells its length twice.",
    401: "The key is not the server's.",
    402: "The account has no billing method (--no-billing).",
    403: "There is no key, or the request is addressed to another machine's name.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    422: "The body is not of the request's form, or its image is not one this server takes.",
    500: "The engine failed, or there is not exactly one input.",
    503: "Too many requests are waiting, or the engine is busy or still loading.",
}

_MOST_ITEMS = 20  # a body of a million wrong inputs does not deserve a million explanations


class Failure(BaseModel):
    """The body of every answer but a 200 and a 422."""

    detail: str
    """What happened, and what to change."""


class Problem(BaseModel):
    """One mistake in a request."""

    loc: list[str | int]
    """Where: the way from the body to the field."""
    msg: str
    """What is wrong, and what to change."""
    type: str
    """A word for the mistake, for programs."""


class InvalidForm(BaseModel):
    """The body of a 422."""

    detail: list[Problem]
    """The mistakes; of many, the first."""


class Refusal(Exception):  # noqa: N818 - an answer, not a mistake of ours
    """An answer other than 200.

    Attributes:
        status_code: The HTTP status.
        detail: The `detail` of the body.
        headers: Headers to send with it.
    """

    def __init__(
        self, status_code: int, detail: object, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status_code)
        self.status_code = status_code
        self.detail = detail
        self.headers = headers

    def response(self) -> JSONResponse:
        """Write it as a response."""
        return JSONResponse({"detail": self.detail}, self.status_code, self.headers)


_MORE: dict[int, dict[str, Any]] = {
    422: {"model": InvalidForm},
    503: {
        "headers": {
            "Retry-After": {
                "description": "Seconds until another try makes sense.",
                "required": True,
                "schema": {"type": "integer"},
            }
        }
    },
}


def unsupported_model() -> Refusal:
    """The model's name lacks the prefix."""
    return Refusal(400, "Model not supported or you don't have access to it.")


def invalid_token() -> Refusal:
    """The key is not the server's."""
    return Refusal(401, "Invalid token", headers={"WWW-Authenticate": "Bearer"})


def payment_required() -> Refusal:
    """The server plays an account without a billing method."""
    detail = (
        "You need to add a payment method to access this service."
        " This local server was started with --no-billing."
    )
    return Refusal(402, detail)


def not_authenticated() -> Refusal:
    """There is no Authorization header, or it is not a Bearer one."""
    return Refusal(403, "Not authenticated")


def foreign_host() -> Refusal:
    """The request is addressed to a name that is none of this machine's."""
    detail = (
        "Without a key this server answers only requests to localhost or to an IP address."
        " Start it with --api-key to have it answer to other names."
    )
    return Refusal(403, detail)


def ambiguous_length() -> Refusal:
    """The request tells its length twice, and a proxy may have believed the other one."""
    detail = "Content-Length and Transfer-Encoding contradict each other. Send one of them."
    return Refusal(400, detail, headers=_CLOSE)


def body_too_slow(seconds: float) -> Refusal:
    """The body did not arrive in time."""
    detail = f"The request did not arrive within {seconds:g} s. Send it again, or a smaller image."
    return Refusal(408, detail, headers=_CLOSE)


def body_too_large(limit: int) -> Refusal:
    """The body passes the limit."""
    return Refusal(413, f"The request is larger than {limit} bytes. Send a smaller image.")


def prediction_failed() -> Refusal:
    """The engine failed, or there is not exactly one input: the contract tells them not apart."""
    return Refusal(500, "An error occurred while generating predictions.")


def queue_full(retry_after: int) -> Refusal:
    """As many requests wait as may."""
    detail = f"Too many requests are waiting. Try again after {retry_after} s."
    return Refusal(503, detail, headers={"Retry-After": str(retry_after)})


def engine_busy(retry_after: int) -> Refusal:
    """The engine is still loading, or what it asks in turn is overloaded or away."""
    detail = f"The engine cannot answer now. Try again after {retry_after} s."
    return Refusal(503, detail, headers={"Retry-After": str(retry_after)})


def server_full(retry_after: int) -> Refusal:
    """The requests that are being received hold as many bytes as they may."""
    detail = f"Too many large requests came at once. Try again after {retry_after} s."
    return Refusal(503, detail, headers={"Retry-After": str(retry_after), **_CLOSE})


def refused_image(message: str, *, kind: str) -> Refusal:
    """The image is one that this server does not take.

    Args:
        message: What is wrong, and what to change.
        kind: A word for the reason, stable across versions.
    """
    place = ["body", "inputs", 0, "image_url"]
    return Refusal(422, [{"loc": place, "msg": message, "type": kind}])


def not_json() -> Refusal:
    """The body is not announced as JSON."""
    message = "The body is not announced as JSON. Send it with Content-Type: application/json."
    return Refusal(422, [{"loc": ["body"], "msg": message, "type": "content_type"}])


def too_many_values(most: int) -> Refusal:
    """The body holds more than any request has use for."""
    message = f"The body holds more than {most:,} JSON values. Send one input."
    return Refusal(422, [{"loc": ["body"], "msg": message, "type": "too_many_values"}])


def invalid_form(error: ValidationError) -> Refusal:
    """The body is not of the request model's form, or no JSON at all."""
    items = error.errors(include_url=False, include_context=False, include_input=False)
    return _unprocessable([{**item, "loc": ("body", *item["loc"])} for item in items[:_MOST_ITEMS]])


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe answers for the OpenAPI document.

    Args:
        statuses: What a route can answer besides its 200.

    Returns:
        Status → when it comes, and the model of its body.
    """
    return {
        status: {"model": Failure, "description": _WHEN[status], **_MORE.get(status, {})}
        for status in statuses
    }


def _unprocessable(items: Sequence[Mapping[str, Any]]) -> Refusal:
    # Named one by one: a validation item also has `input`, which would echo prompt and image.
    return Refusal(
        422,
        [{"loc": list(item["loc"]), "msg": item["msg"], "type": item["type"]} for item in items],
    )


def install(app: FastAPI) -> None:
    """Let an app answer with the contract's bodies instead of its framework's."""

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        return _unprocessable(error.errors()[:_MOST_ITEMS]).response()

    @app.exception_handler(Exception)
    async def fail(_: Request, __: Exception) -> JSONResponse:
        return prediction_failed().response()
