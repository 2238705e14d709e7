"""Responses that are not a 200: their bodies, and what the OpenAPI document says about them.

The phospho API's own bodies are repeated word for word. No body repeats anything of the request.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

__all__ = [
    "documented",
    "install_handlers",
    "invalid_form",
    "invalid_value",
    "prediction_failed",
    "unavailable",
]

_CONDITIONS = {
    400: "The model's name lacks the prefix, or the request has two lengths.",
    401: "The key is wrong.",
    402: "The account has no billing method (--no-billing).",
    403: "The key is missing, or the request's Host is not a name of this machine.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    422: "The body does not match the schema, or this server does not take its image.",
    500: "The engine failed, or the request does not have exactly one input.",
    503: "Too many requests are waiting, or the engine is busy or still loading.",
}

_MAX_PROBLEMS = 20  # of one 422; a body can hold a million wrong inputs


class Failure(BaseModel):
    """The body of every error except a 422."""

    detail: str
    """What happened, and what to change."""


class Problem(BaseModel):
    """One mistake in a request."""

    loc: list[str | int]
    """The path from the body to the field."""
    msg: str
    """What is wrong, and what to change."""
    type: str
    """A stable word for the mistake, for programs."""


class InvalidForm(BaseModel):
    """The body of a 422."""

    detail: list[Problem]
    """The first mistakes."""


_RETRY_AFTER = {
    "description": "Seconds until a retry makes sense.",
    "required": True,
    "schema": {"type": "integer"},
}
_DETAILS: dict[int, dict[str, Any]] = {
    422: {"model": InvalidForm},
    503: {"headers": {"Retry-After": _RETRY_AFTER}},
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe a route's errors for the OpenAPI document."""
    return {
        status: {"model": Failure, "description": _CONDITIONS[status], **_DETAILS.get(status, {})}
        for status in statuses
    }


def prediction_failed() -> HTTPException:
    """Make the 500 of the phospho API, which has one text for all reasons."""
    return HTTPException(500, "An error occurred while generating predictions.")


def unavailable(reason: str, retry_after: int, *, close: bool = False) -> HTTPException:
    """Make a 503 that says when to retry."""
    headers = {"Retry-After": str(retry_after)} | ({"Connection": "close"} if close else {})
    return HTTPException(503, f"{reason}. Try again after {retry_after} s.", headers)


def invalid_value(message: str, *, kind: str, loc: Iterable[str | int] = ()) -> HTTPException:
    """Make a 422 about one place in the body."""
    return HTTPException(422, [{"loc": ["body", *loc], "msg": message, "type": kind}])


def invalid_form(error: ValidationError) -> HTTPException:
    """Make the 422 of a body that does not match the schema, or is not JSON."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return HTTPException(422, [_problem(p, "body") for p in problems[:_MAX_PROBLEMS]])


def install_handlers(app: FastAPI) -> None:
    """Give the app the phospho API's bodies instead of the framework's."""

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = [_problem(p) for p in error.errors()[:_MAX_PROBLEMS]]
        return JSONResponse({"detail": problems}, 422)

    @app.exception_handler(Exception)
    async def fail(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"detail": prediction_failed().detail}, 500)


def _problem(item: Mapping[str, Any], *place: str) -> dict[str, Any]:
    # Only these three: a validation error also has `input`, which would repeat prompt and image.
    return {"loc": [*place, *item["loc"]], "msg": item["msg"], "type": item["type"]}
