"""All errors of this project, and the table from an HTTP status to its error class.

    PhosphoError
    ├── ConfigurationError          a setting is wrong; nothing was sent
    │   └── MissingKeyError         no key, and the endpoint is not on localhost
    ├── UnsupportedContentError     a message has content that this endpoint cannot take
    ├── MissingImageError           there is no image in the conversation
    ├── ImageError                  an image cannot be read, or exceeds a limit
    ├── SpendingLimitError          the spending limit does not allow this request
    ├── ConnectionFailedError       the request was not sent completely: not billed
    ├── ReplyLostError              the request was sent and no response arrived: may be billed
    ├── APIStatusError              the server answered with an error (status_code, detail, …)
    │   ├── InvalidRequestError     400, 413, 422
    │   ├── AuthenticationError     401
    │   │   └── PermissionDeniedError   403
    │   ├── PaymentRequiredError    402
    │   ├── EndpointGoneError       404, 405, 410
    │   ├── RateLimitedError        429
    │   └── ServiceError            5xx
    ├── UnexpectedReplyError        a 200 that does not follow the phospho API: may be billed
    └── NoToolCallError             the answer has no tool call, although one was forced

No error is a ValueError or a TypeError, because LlamaIndex catches those and answers "Empty
Response". No error holds a key, a prompt, an image or a response object. All errors pickle.
"""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "APIStatusError",
    "AuthenticationError",
    "ConfigurationError",
    "ConnectionFailedError",
    "EndpointGoneError",
    "ImageError",
    "InvalidRequestError",
    "MissingImageError",
    "MissingKeyError",
    "NoToolCallError",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "PhosphoError",
    "RateLimitedError",
    "ReplyLostError",
    "ServiceError",
    "SpendingLimitError",
    "UnexpectedReplyError",
    "UnsupportedContentError",
]

DETAIL_LIMIT = 300
"""Characters of a server's message that an error repeats."""

_LONGEST_PROMPT = 100_000
_SHORTEST_FRAGMENT = 12  # a shorter fragment in common with a prompt is a coincidence
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}")
_CUT = "[cut]"


class PhosphoError(Exception):
    """Base of every error of this project.

    Attributes:
        attempts: How many requests were sent before this was raised.
        images_in_doubt: How many images may have been billed without an answer.
    """

    attempts: int = 0
    images_in_doubt: int = 0

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by class, message and attributes, whatever a subclass's signature is."""
        return type(self).__new__, (type(self), *self.args), vars(self)


class ConfigurationError(PhosphoError):
    """A setting is missing, out of range, or contradicts another one."""


class MissingKeyError(ConfigurationError):
    """There is no API key, and the endpoint is not on localhost."""


class UnsupportedContentError(PhosphoError):
    """A message has content that cannot be sent to this endpoint."""


class MissingImageError(PhosphoError):
    """There is no image in the conversation, and no `default_image`."""


class ImageError(PhosphoError):
    """An image cannot be read, is of an unsupported type, or exceeds a limit."""


class SpendingLimitError(PhosphoError):
    """The spending limit does not allow this request, so it was not sent."""


class ConnectionFailedError(PhosphoError):
    """The request was not sent completely, so nothing was billed."""


class ReplyLostError(PhosphoError):
    """The request was sent and no response arrived, so it may have been billed."""


class APIStatusError(PhosphoError):
    """The server answered with a status other than 200.

    Attributes:
        status_code: The HTTP status.
        detail: The server's message, with at most 300 characters, without prompt, key and image.
        retry_after: Seconds to wait, if the server sent `retry-after`.
        request_id: The `x-request-id` of the response, if it has one.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        detail: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.detail = detail
        self.retry_after = retry_after
        self.request_id = request_id


class InvalidRequestError(APIStatusError):
    """The server rejected the request (400, 413, 422). Nothing was billed."""


class AuthenticationError(APIStatusError):
    """The server does not accept the key (401). Nothing was billed."""


class PermissionDeniedError(AuthenticationError):
    """The key did not reach the server, or may not use this endpoint (403). Not billed."""


class PaymentRequiredError(APIStatusError):
    """The account has no billing method (402). Nothing was billed."""


class EndpointGoneError(APIStatusError):
    """The base URL has no such endpoint (404, 405, 410)."""


class RateLimitedError(APIStatusError):
    """The server got too many requests (429). Nothing was billed."""


class ServiceError(APIStatusError):
    """The service failed (5xx)."""


class UnexpectedReplyError(PhosphoError):
    """A 200 does not follow the phospho API. It may have been billed."""


class NoToolCallError(PhosphoError):
    """A tool call was forced, and the answer has none."""


FATAL_ERRORS = (
    ConfigurationError,
    SpendingLimitError,
    AuthenticationError,
    PaymentRequiredError,
    EndpointGoneError,
)
"""Errors that every further request would get, too."""

_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: PaymentRequiredError,
    403: PermissionDeniedError,
    404: EndpointGoneError,
    405: EndpointGoneError,
    410: EndpointGoneError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitedError,
}


def class_for_status(status_code: int) -> type[APIStatusError]:
    """Return the error class of a status other than 200; `APIStatusError` if it has no class."""
    if status_code >= 500:  # noqa: PLR2004 - the HTTP class of server errors
        return ServiceError
    return _BY_STATUS.get(status_code, APIStatusError)


_GATEWAY_FAILED = (
    "A gateway answered instead of the service, which may have billed the image. The request is"
    " retried only with retry_lost_replies=True."
)
_WHAT_TO_DO: dict[int, str] = {
    400: "Check the model name and the parameters. Nothing was billed.",
    401: "Check the key: PHOSPHO_API_KEY or api_key=. Nothing was billed.",
    402: "Add a billing method to the account. Nothing was billed.",
    403: "The key did not reach the server, or may not use this endpoint. Check PHOSPHO_API_KEY or"
    " api_key=, and any proxy. Nothing was billed.",
    413: "Send a smaller image: lower max_image_side=. Nothing was billed.",
    422: "The server does not accept the form of the request. Nothing was billed.",
    429: "Lower max_concurrency=, or set requests_per_second=. Nothing was billed.",
    500: "The service failed or rejected the image. Nothing was billed.",
    502: _GATEWAY_FAILED,
    503: "The service is busy or starting. Try again later. Nothing was billed.",
    504: _GATEWAY_FAILED,
}
_GONE = (
    "There is no phospho endpoint at this base URL; the vendor's hosted route left its public"
    " backend in 2024. Point base_url= or PHOSPHO_BASE_URL at your own endpoint, or start one on"
    " localhost: phospho-multimodal serve."
)


def status_error(
    status_code: int,
    *,
    base_url: str,
    detail: str | None,
    retry_after: float | None = None,
    request_id: str | None = None,
) -> APIStatusError:
    """Make the error of a response other than 200.

    The message says what happened, what the server said (`detail`, already without secrets), and
    what to do.
    """
    kind = class_for_status(status_code)
    if kind is EndpointGoneError:
        version = re.search(r"/v\d+$", base_url)
        advice = f"Set the base URL without {version[0]}. Nothing was billed." if version else _GONE
    elif 300 <= status_code < 400:  # noqa: PLR2004 - the HTTP class of redirects
        advice = "Paid requests do not follow redirects. Set base_url= to the target."
    elif status_code >= 500:  # noqa: PLR2004 - the HTTP class of server errors
        advice = _WHAT_TO_DO.get(status_code, "It may have been billed. Try again later.")
    else:
        advice = _WHAT_TO_DO.get(status_code, "The phospho API does not have this status.")
    said = f": {detail}" if detail else ""
    wait = f" The server asks to wait {retry_after:g} s." if retry_after is not None else ""
    closing = "" if said.endswith((".", "…")) else "."
    return kind(
        f"{base_url} answered {status_code}{said}{closing}{wait} {advice}",
        status_code=status_code,
        detail=detail,
        retry_after=retry_after,
        request_id=request_id,
    )


def quote(text: str, *, hide: Iterable[str], limit: int = DETAIL_LIMIT) -> str:
    """Quote a server's message on one line, without what was sent to the server.

    Neither the secrets of `hide` (key, prompt, image) nor fragments of them with 12 characters or
    more are repeated, nor any long run of base64.
    """
    # Four times the limit is enough to fill the line after cutting, and bounds the search.
    line = " ".join(text[: limit * 4].split())
    line = _BASE64_RUN.sub(_CUT, line)
    for secret in hide:
        for spelling in _spellings(secret):
            line = _cut(line, spelling)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _spellings(secret: str) -> Iterator[str]:
    """Spell a secret as a server may repeat it: plain, or as Python, JSON or HTML spell it."""
    # A longer secret is an image, and base64 has only one spelling.
    if len(secret) > _LONGEST_PROMPT:
        yield secret
        return
    plain = " ".join(secret.split())
    python, python_twice = repr(secret)[1:-1], repr(repr(secret)[1:-1])[1:-1]
    escaped = json.dumps(secret)[1:-1]
    yield from dict.fromkeys((python_twice, python, escaped, html.escape(plain), plain))


def _cut(line: str, secret: str) -> str:
    """Replace every fragment of `line` that is also in `secret`."""
    if not secret:
        return line
    if len(secret) < _SHORTEST_FRAGMENT:
        return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _CUT, line)
    kept: list[str] = []
    start = 0
    while start < len(line):
        end = start + _SHORTEST_FRAGMENT
        if end > len(line) or line[start:end] not in secret:
            kept.append(line[start])
            start += 1
            continue
        while end < len(line) and line[start : end + 1] in secret:
            end += 1
        kept.append(_CUT)
        start = end
    return "".join(kept)
