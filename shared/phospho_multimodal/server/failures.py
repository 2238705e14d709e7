"""Every answer that is not a 200, in the contract's words.

The contract's own bodies are repeated to the letter. What only this server refuses is a 422 in
the contract's form, and says what to change. No body repeats anything of the request.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

__all__ = [
    "Refusal",
    "body_too_large",
    "install",
    "invalid_form",
    "invalid_token",
    "not_authenticated",
    "payment_required",
    "prediction_failed",
    "queue_full",
    "refused_image",
    "unsupported_model",
]

_MOST_ITEMS = 20  # a body of a million wrong inputs does not deserve a million explanations


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


def refused_image(message: str, *, kind: str) -> Refusal:
    """The image is one that this server does not take.

    Args:
        message: What is wrong, and what to change.
        kind: A word for the reason, stable across versions.
    """
    place = ["body", "inputs", 0, "image_url"]
    return Refusal(422, [{"loc": place, "msg": message, "type": kind}])


def invalid_form(error: ValidationError) -> Refusal:
    """The body is not of the request model's form, or no JSON at all."""
    items = error.errors(include_url=False, include_context=False, include_input=False)
    return _unprocessable([{**item, "loc": ("body", *item["loc"])} for item in items[:_MOST_ITEMS]])


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
