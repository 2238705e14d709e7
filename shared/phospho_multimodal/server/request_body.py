"""From a body to the one question in it, in the order in which the vendor checks."""

from email.message import Message
from typing import Annotated

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phospho_multimodal.contract import MODEL_PREFIX, PredictInput, PredictRequest
from phospho_multimodal.server import errors as failures

__all__ = ["check_media_type", "read_request"]

_MOST_VALUES = 1_000_000
_MOST_INPUTS = 32  # beyond, nobody needs to know what is wrong with each


class _FewInputs(PredictRequest):
    """A request that is not looked at whole if it is absurd."""

    inputs: Annotated[list[PredictInput], Field(max_length=_MOST_INPUTS)]


class _OnlyModel(BaseModel):
    """What is left of a request whose inputs are too many."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str


def check_media_type(request: Request) -> None:
    """Refuse a body that is not announced as JSON, as the vendor's framework does.

    It is also what keeps other people's web pages out: a browser sends JSON to another site only
    after asking whether it may, but text, forms, and what has no type at all, without asking.

    Args:
        request: The request.

    Raises:
        Refusal: A 422.
    """
    header = Message()
    header["content-type"] = request.headers.get("content-type", "text/plain")
    kind, _, subtype = header.get_content_type().partition("/")
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise failures.not_json()


def read_request(body: bytes) -> tuple[PredictInput, str]:
    """Check a body in the vendor's order: form, model, number of inputs.

    Args:
        body: The whole body.

    Returns:
        The one input, and the model's name.

    Raises:
        Refusal: A 422, 400 or 500, for each of them.
    """
    # Every value takes a hundred times its size in the body: 80 MB of `{},` would be 40 GB.
    if len(body) > _MOST_VALUES and sum(map(body.count, b"{[,")) > _MOST_VALUES:
        raise failures.too_many_values(_MOST_VALUES)
    try:
        request = _FewInputs.model_validate_json(body)
        model, inputs = request.model, request.inputs
    except ValidationError as invalid:
        if not _has_too_many_inputs(invalid):
            raise failures.invalid_form(invalid) from None
        model, inputs = _read_model(body), []
    if not model.startswith(MODEL_PREFIX):
        raise failures.unsupported_model()
    if len(inputs) != 1:
        raise failures.prediction_failed()
    return inputs[0], model


def _has_too_many_inputs(invalid: ValidationError) -> bool:
    items = invalid.errors(include_url=False, include_context=False, include_input=False)
    return any((item["loc"], item["type"]) == (("inputs",), "too_long") for item in items)


def _read_model(body: bytes) -> str:
    try:
        return _OnlyModel.model_validate_json(body).model
    except ValidationError as invalid:
        raise failures.invalid_form(invalid) from None
