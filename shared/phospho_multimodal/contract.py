"""The phospho API (`POST /v2/predict`) as models that client and server share.

Ranges and defaults are those of the vendor's documentation. The four generation parameters are in
the input item, because the vendor's backend silently ignores them anywhere else.
"""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any, TypedDict

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phospho_multimodal.errors import (
    ConfigurationError,
    UnexpectedReplyError,
    UnsupportedContentError,
    quote,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CONTEXT_WINDOW",
    "DEFAULT_IMAGE_SIDE",
    "DEFAULT_MAX_NEW_TOKENS",
    "DEFAULT_MAX_TILES",
    "DEFAULT_MODEL",
    "DEFAULT_REPETITION_PENALTY",
    "DEFAULT_TOP_P",
    "HEALTH_PATH",
    "MAX_NEW_TOKENS",
    "MODELS_PATH",
    "MODEL_PREFIX",
    "PREDICT_PATH",
    "GenerationParameters",
    "ParameterOptions",
    "PredictInput",
    "PredictOutput",
    "PredictRequest",
    "PredictResponse",
    "checked_parameters",
    "read_description",
    "read_detail",
    "request_body",
    "request_pieces",
]

MODEL_PREFIX = "phospho-multimodal"
"""Every model name must begin with this."""

DEFAULT_MODEL = MODEL_PREFIX

MAX_NEW_TOKENS = 250
"""The longest answer that a request can ask for, in tokens."""

DEFAULT_IMAGE_SIDE = 1536
"""Longest side of what is sent, in pixels."""

DEFAULT_MAX_TILES = 8
"""Most tiles of one image. Each tile is one billed request."""

CONTEXT_WINDOW = 4096
"""Tokens of a request, as frameworks count them: a cautious value, because the vendor does not
document the model's limit."""

PREDICT_PATH = "/v2/predict"
MODELS_PATH = "/v2/models"
HEALTH_PATH = "/health"

DEFAULT_MAX_NEW_TOKENS = 200
DEFAULT_REPETITION_PENALTY = 1.15
DEFAULT_TOP_P = 1.0
"""Used by an endpoint if a request has no such parameter. The default temperature is unknown."""

_NOT_WORDS = re.compile(r"<(script|style|title)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")

_AFTER_IMAGE = b'"}]}'

REPLY_EXCERPT = 64
"""Characters of an unexpected response that an error repeats."""


LOWEST_TEMPERATURE = 0.1
"""The lowest temperature of the endpoint. Frameworks write 0 for the least random answer."""


class GenerationParameters(BaseModel):
    """The four generation parameters. With `None`, the server decides."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: int | None = Field(default=None, ge=1, le=MAX_NEW_TOKENS)
    """Longest answer, in tokens: 1 to 250. The server's default is 200."""
    temperature: float | None = Field(default=None, ge=0.1, le=1.0)
    """Sampling temperature: 0.1 to 1.0."""
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    """A value above 1 discourages repetition. The server's default is 1.15."""
    top_p: float | None = Field(default=None, ge=0.0, le=1.0)
    """Nucleus sampling: 0.0 to 1.0. The server's default is 1.0."""


class ParameterOptions(TypedDict, total=False):
    """Generation parameters of one call; `GenerationParameters` documents them."""

    max_new_tokens: int | None
    temperature: float | None
    repetition_penalty: float | None
    top_p: float | None


class PredictInput(GenerationParameters):
    """A prompt about one image."""

    model_config = ConfigDict(extra="ignore")

    text: str
    """The prompt."""
    image_url: str
    """A public http(s) URL, or the bare base64 of an image file."""


class PredictRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(strict=True, extra="ignore")

    inputs: list[PredictInput]
    """Exactly one input. For any other number, the vendor answers 500 instead of 422."""
    model: str
    """Any name with the prefix `phospho-multimodal`."""


class PredictOutput(BaseModel):
    """One answer."""

    model_config = ConfigDict(strict=True, extra="ignore")

    description: str
    """The answer's text, which can have several paragraphs."""


class PredictResponse(BaseModel):
    """The body of a 200."""

    model_config = ConfigDict(strict=True, extra="ignore")

    predictions: list[PredictOutput] = Field(min_length=1, max_length=1)
    """Exactly one answer."""


def checked_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation parameters that are not `None`, if all are in their ranges."""
    given = {name: value for name, value in parameters.items() if value is not None}
    if not given:
        return given
    if given.get("temperature") == 0:
        given["temperature"] = LOWEST_TEMPERATURE
    try:
        checked = GenerationParameters.model_validate(given)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(step) for step in first["loc"])
        # The value of an unknown name could be a key.
        known = name in GenerationParameters.model_fields
        what = f"{name}={given[name]!r}" if known else name
        message = f"{what} cannot be sent: {first['msg']}. Nothing was sent."
        raise ConfigurationError(message) from None
    # As pydantic read them, because numbers of other libraries are not JSON.
    return checked.model_dump(include=set(given))


def request_body(*, model: str, text: str, image_url: str, parameters: Mapping[str, Any]) -> bytes:
    """Write the body of a request as JSON, equal to a dumped `PredictRequest`.

    orjson writes it, because the standard library is 60 times slower on a megabyte of base64.
    """
    item = {"text": text, **parameters, "image_url": image_url}
    try:
        return orjson.dumps({"model": model, "inputs": [item]})
    except TypeError:
        position = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
        where = "The image URL" if position is None else f"The text, at character {position},"
        message = (
            f"{where} has half of a surrogate pair, which is not a character and cannot be sent."
            " Nothing was sent. Decode the text with errors='replace'."
        )
        raise UnsupportedContentError(message) from None


def request_pieces(
    *, model: str, text: str, base64: bytes, parameters: Mapping[str, Any]
) -> tuple[bytes, ...]:
    """Write a request in pieces that together are its `request_body`, without copying the image."""
    around = request_body(model=model, text=text, image_url="", parameters=parameters)
    return around.removesuffix(_AFTER_IMAGE), base64, _AFTER_IMAGE


def read_detail(body: bytes, *, hide: Iterable[str] = ()) -> str | None:
    """Read the message of an error response, with at most 300 characters; `None` if it is empty.

    `hide` has the secrets that must not be repeated: the request's key, text and image.
    """
    text = body[:65536].decode("utf-8", "replace")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        # The HTML page of a proxy: keep its words without markup and style sheets.
        text = html.unescape(_TAG.sub(" ", _NOT_WORDS.sub(" ", text)))
    else:
        detail = parsed.get("detail", parsed) if isinstance(parsed, dict) else parsed
        if isinstance(detail, str):
            text = detail
        elif isinstance(detail, list) and all(isinstance(item, dict) for item in detail):
            text = "; ".join(_read_problem(item) for item in detail)
    return quote(text, hide=hide) or None


def _read_problem(item: Mapping[str, Any]) -> str:
    """Read place, message and type of one entry of a 422, without the input that it may repeat."""
    loc = item.get("loc")
    place = ".".join(str(step) for step in loc) if isinstance(loc, list) else ""
    kind = item.get("type")
    return f"{place}: {item.get('msg', '')}" + (f" ({kind})" if kind else "")


def read_description(body: bytes, *, hide: Iterable[str] = ()) -> str:
    """Read the answer of a 200, or raise `UnexpectedReplyError` without the secrets of `hide`.

    The answer may be billed, so nearly valid JSON is read too. Invalid characters become U+FFFD.
    """
    try:
        reply = PredictResponse.model_validate(_read_json(body))
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the body"
        problem = f"does not follow the phospho API ({place}: {first['msg']})"
    except (ValueError, RecursionError):
        problem = "is not JSON"
    else:
        return reply.predictions[0].description
    excerpt = quote(body[:4096].decode("utf-8", "replace"), hide=hide, limit=REPLY_EXCERPT)
    message = (
        f"The server answered 200 with a body that {problem}. It begins: {excerpt!r}."
        " The image may have been billed. Check that the base URL is that of a phospho endpoint."
    )
    raise UnexpectedReplyError(message)


def _read_json(body: bytes) -> Any:
    """Read JSON, also with a byte order mark, raw line breaks, NaN or invalid UTF-8."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body.decode("utf-8-sig", "replace")
    return json.loads(text, strict=False, object_hook=_with_whole_characters)


def _with_whole_characters(entry: dict[str, Any]) -> dict[str, Any]:
    description = entry.get("description")
    if isinstance(description, str):
        entry["description"] = _HALF_CHARACTER.sub("\ufffd", description)
    return entry
