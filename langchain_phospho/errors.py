"""Errors that are both errors of the core and LangChain's `ModelError`.

`except phospho_multimodal.RateLimitedError` and `except ModelRateLimitError` both catch a 429.
No error is retryable, because the client has already retried and another retry could be billed.
LangChain's middleware reads `is_retryable`. LangGraph's default `RetryPolicy` does not, but it
never retries a `RuntimeError`, so each class is a `RuntimeError` too.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)

from phospho_multimodal import (
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    ConnectionFailedError,
    EndpointGoneError,
    ImageError,
    InvalidRequestError,
    MissingImageError,
    MissingKeyError,
    NoToolCallError,
    PaymentRequiredError,
    PermissionDeniedError,
    PhosphoError,
    RateLimitedError,
    ReplyLostError,
    ServiceError,
    SpendingLimitError,
    UnexpectedReplyError,
    UnsupportedContentError,
)

__all__ = ["PhosphoModelError", "langchain_errors"]


class PhosphoModelError(PhosphoError, ModelError, RuntimeError):
    """Base of every error that `ChatPhospho` raises."""

    is_retryable = False


class PhosphoConfigurationError(PhosphoModelError, ConfigurationError, ModelInvalidRequestError):
    """A setting is missing, out of range, or contradicts another one."""


class PhosphoMissingKeyError(PhosphoModelError, MissingKeyError, ModelAuthenticationError):
    """There is no API key, and the endpoint is not on localhost."""


class PhosphoUnsupportedContentError(
    PhosphoModelError, UnsupportedContentError, ModelInvalidRequestError
):
    """A message has content that cannot be sent to this endpoint."""


class PhosphoMissingImageError(PhosphoModelError, MissingImageError, ModelInvalidRequestError):
    """There is no image in the conversation, and no `default_image`."""


class PhosphoImageError(PhosphoModelError, ImageError, ModelInvalidRequestError):
    """An image cannot be read, is of an unsupported type, or exceeds a limit."""


class PhosphoSpendingLimitError(PhosphoModelError, SpendingLimitError, ModelInvalidRequestError):
    """The spending limit does not allow this request, so it was not sent."""


class PhosphoConnectionFailedError(PhosphoModelError, ConnectionFailedError, ModelConnectionError):
    """The request was not sent completely, so nothing was billed."""


class PhosphoReplyLostError(PhosphoModelError, ReplyLostError, ModelTimeoutError):
    """The request was sent and no response arrived, so it may have been billed."""


class PhosphoAPIStatusError(PhosphoModelError, APIStatusError, ModelAPIError):
    """The server answered with a status that has no class of its own."""


class PhosphoInvalidRequestError(PhosphoModelError, InvalidRequestError, ModelInvalidRequestError):
    """The server rejected the request (400, 413, 422). Nothing was billed."""


class PhosphoContextOverflowError(PhosphoInvalidRequestError, ContextOverflowError):
    """The prompt is too long for the server or its model (400, 413, 422). Nothing was billed."""


class PhosphoAuthenticationError(PhosphoModelError, AuthenticationError, ModelAuthenticationError):
    """The server does not accept the key (401). Nothing was billed."""


class PhosphoPermissionDeniedError(
    PhosphoModelError, PermissionDeniedError, ModelPermissionDeniedError
):
    """The key did not reach the server, or may not use this endpoint (403). Not billed."""


class PhosphoPaymentRequiredError(
    PhosphoModelError, PaymentRequiredError, ModelAuthenticationError
):
    """The account has no billing method (402). Nothing was billed."""


class PhosphoEndpointGoneError(PhosphoModelError, EndpointGoneError, ModelNotFoundError):
    """The base URL has no such endpoint (404, 405, 410)."""


class PhosphoRateLimitedError(PhosphoModelError, RateLimitedError, ModelRateLimitError):
    """The server got too many requests (429). Nothing was billed."""


class PhosphoServiceError(PhosphoModelError, ServiceError, ModelAPIError):
    """The service failed (5xx)."""


class PhosphoUnexpectedReplyError(PhosphoModelError, UnexpectedReplyError, ModelAPIError):
    """A 200 does not follow the phospho API. It may have been billed."""


class PhosphoNoToolCallError(PhosphoModelError, NoToolCallError, ModelAPIError):
    """A tool call was forced, and the answer has none."""


# Each class above that is derived directly has its error of the core as the second base.
_IN_LANGCHAIN: dict[type, type[PhosphoModelError]] = {
    PhosphoError: PhosphoModelError,
    **{kind.__bases__[1]: kind for kind in PhosphoModelError.__subclasses__()},
}

_TOO_LARGE = 413
# Messages of vLLM, SGLang, llama.cpp, OpenAI and others, and the type of a pydantic error.
_OVERFLOW = re.compile(
    r"context[ _-]?(length|window|size|limit)|context \w*overflow|overflow\w* the context"
    r"|(prompt|input|text|conversation)s? (is|are) too (long|large)"
    r"|\b(prompt|text): [^;]*string_too_long"
    r"|too many (input |prompt )?tokens|(token|input|prompt)s? limit|maximum number of tokens"
    r"|(prompt|input)\b.{0,80}\bexceed",
    re.IGNORECASE | re.DOTALL,
)


def _is_overflow(error: InvalidRequestError) -> bool:
    detail = error.detail or ""
    return error.status_code == _TOO_LARGE or _OVERFLOW.search(detail) is not None


def to_langchain_error(error: PhosphoError) -> PhosphoError:
    """Make the `PhosphoModelError` that has the message and the attributes of an error."""
    kind = _IN_LANGCHAIN.get(type(error))
    if kind is None:  # it is one already
        return error
    if isinstance(error, InvalidRequestError) and _is_overflow(error):
        kind = PhosphoContextOverflowError
    twin = kind.__new__(kind, *error.args)
    twin.__setstate__(vars(error))
    return twin


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raise errors of the core as `PhosphoModelError`; the original is the `__cause__`."""
    try:
        yield
    except PhosphoError as error:
        twin = to_langchain_error(error)
        if twin is error:
            raise
        raise twin from error
