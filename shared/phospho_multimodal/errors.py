"""Every error this project raises, and the one table from a status to its class.

    PhosphoError
    ├── ConfigurationError          a setting is wrong; nothing was sent
    │   └── MissingKeyError         no key, and the endpoint is not on this machine
    ├── UnsupportedContentError     a message holds something this endpoint cannot take
    ├── MissingImageError           there is no image anywhere
    ├── ImageError                  an image cannot be read, or is over a limit
    ├── SpendingLimitError          the cap does not allow this request
    ├── ConnectionFailedError       the request never left: not billed
    ├── ReplyLostError              the request left and no answer came: may be billed
    ├── APIStatusError              the server answered with an error (status_code, detail, …)
    │   ├── InvalidRequestError     400, 413, 422
    │   ├── AuthenticationError     401
    │   │   └── PermissionDeniedError   403
    │   ├── PaymentRequiredError    402
    │   ├── EndpointGoneError       404, 405, 410
    │   ├── RateLimitedError        429
    │   └── ServiceError            5xx
    ├── UnexpectedReplyError        a 200 that is not the contract: may be billed
    └── NoToolCallError             a forced tool call did not come

None is a ValueError or a TypeError: LlamaIndex swallows those and answers "Empty Response".
None holds a key, a prompt, an image or a response object, and all of them pickle.
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
"""Characters of the server's own words that an error may repeat."""

_LONGEST_PROMPT = 100_000
_SHORTEST_FRAGMENT = 12  # a shorter run in common with a prompt is a coincidence
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
    """There is no API key, and the endpoint is not on the loopback."""


class UnsupportedContentError(PhosphoError):
    """A message holds a form of content that this endpoint cannot be sent."""


class MissingImageError(PhosphoError):
    """There is no image in the conversation, and no `default_image`."""


class ImageError(PhosphoError):
    """An image cannot be read, is of an unsupported type, or is over a limit."""


class SpendingLimitError(PhosphoError):
    """The spending cap does not allow this request, so it was not sent."""


class ConnectionFailedError(PhosphoError):
    """The request never left completely: nothing was billed."""


class ReplyLostError(PhosphoError):
    """The request was sent and no answer came back: it may have been billed."""


class APIStatusError(PhosphoError):
    """The server answered with a status other than 200.

    Attributes:
        status_code: The HTTP status.
        detail: What the server said, at most 300 characters, without prompt, key or image.
        retry_after: Seconds the server asked to wait, if it did.
        request_id: The `x-request-id` of the answer, if there was one.
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
    """The server refused the request itself (400, 413, 422): not billed."""


class AuthenticationError(APIStatusError):
    """The server does not accept the key (401): not billed."""


class PermissionDeniedError(AuthenticationError):
    """No key reached the server, or it may not use this endpoint (403): not billed."""


class PaymentRequiredError(APIStatusError):
    """The account has no billing method (402): not billed."""


class EndpointGoneError(APIStatusError):
    """There is no such endpoint at this base URL (404, 405, 410)."""


class RateLimitedError(APIStatusError):
    """Too many requests (429): not billed."""


class ServiceError(APIStatusError):
    """The service failed (5xx)."""


class UnexpectedReplyError(PhosphoError):
    """The server answered 200 with something that is not the contract: it may have been billed."""


class NoToolCallError(PhosphoError):
    """A tool call was forced, and the model answered without one."""


FATAL_ERRORS = (
    ConfigurationError,
    SpendingLimitError,
    AuthenticationError,
    PaymentRequiredError,
    EndpointGoneError,
)
"""What one question is refused for, every other would be: no use in asking on."""

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
    """Tell which error a status is.

    Args:
        status_code: Any status but 200.

    Returns:
        The class; `APIStatusError` itself for a status that has none of its own (3xx too).
    """
    if status_code >= 500:  # noqa: PLR2004 - the HTTP class of server errors
        return ServiceError
    return _BY_STATUS.get(status_code, APIStatusError)


_GATEWAY_FAILED = (
    "A gateway answered in place of the service, which may have billed the image, so the request"
    " is retried only with retry_lost_replies=True."
)
_WHAT_TO_DO: dict[int, str] = {
    400: "Check the model name and the parameters. Nothing was billed.",
    401: "Check the key: PHOSPHO_API_KEY or api_key=. Nothing was billed.",
    402: "Add a billing method to the account. Nothing was billed.",
    403: "No key reached the server, or it may not use this endpoint: check PHOSPHO_API_KEY or"
    " api_key=, and any proxy on the way. Nothing was billed.",
    413: "Send a smaller image: lower max_image_side=. Nothing was billed.",
    422: "The request does not have the form this server wants. Nothing was billed.",
    429: "Lower max_concurrency=, or set requests_per_second=. Nothing was billed.",
    500: "The service failed or refused the image; it does not tell which. Nothing was billed.",
    502: _GATEWAY_FAILED,
    503: "The service is busy or starting: try later. Nothing was billed.",
    504: _GATEWAY_FAILED,
}
_GONE = (
    "There is no phospho endpoint at this base URL; the vendor's hosted route left its public"
    " backend in 2024. Point base_url= or PHOSPHO_BASE_URL at your own endpoint, or start one on"
    " this machine: phospho-multimodal serve."
)


def status_error(
    status_code: int,
    *,
    base_url: str,
    detail: str | None,
    retry_after: float | None = None,
    request_id: str | None = None,
) -> APIStatusError:
    """Make the error of an answer that is not a 200.

    Args:
        status_code: Its status.
        base_url: Where it came from.
        detail: What the server said, already rid of key, prompt and image.
        retry_after: Seconds it asked to wait.
        request_id: Its `x-request-id`.

    Returns:
        The error: what happened, what the server said, what to do.
    """
    kind = class_for_status(status_code)
    if kind is EndpointGoneError:
        advice = _GONE
    elif 300 <= status_code < 400:  # noqa: PLR2004 - the HTTP class of redirects
        advice = "A paid request follows no redirect: set base_url= to where it leads."
    elif status_code >= 500:  # noqa: PLR2004 - the HTTP class of server errors
        advice = _WHAT_TO_DO.get(status_code, "It may have been billed. Try again later.")
    else:
        advice = _WHAT_TO_DO.get(status_code, "This is not an answer the contract knows.")
    said = f": {detail}" if detail else ""
    wait = f" It asks to wait {retry_after:g} s." if retry_after is not None else ""
    closing = "" if said.endswith((".", "…")) else "."
    return kind(
        f"{base_url} answered {status_code}{said}{closing}{wait} {advice}",
        status_code=status_code,
        detail=detail,
        retry_after=retry_after,
        request_id=request_id,
    )


def quote(text: str, *, hide: Iterable[str], limit: int = DETAIL_LIMIT) -> str:
    """Repeat what a server said, without what we had told it.

    Args:
        text: The server's words.
        hide: Key, prompt and image of the request: neither they nor fragments of 12 characters
            and more are repeated. Long runs of base64 never are.
        limit: Characters to keep.

    Returns:
        One line of at most `limit` characters.
    """
    # Four times the limit is enough to fill it after cutting, and bounds the search below.
    line = " ".join(text[: limit * 4].split())
    line = _BASE64_RUN.sub(_CUT, line)
    for secret in hide:
        for spelling in _spellings(secret):
            line = _cut(line, spelling)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _spellings(secret: str) -> Iterator[str]:
    """How a server may write what it was sent: as it is, or as Python, JSON or HTML spell it."""
    # What is longer is an image: the base64 that it consists of has one spelling.
    if len(secret) > _LONGEST_PROMPT:
        yield secret
        return
    plain = " ".join(secret.split())
    python, python_twice = repr(secret)[1:-1], repr(repr(secret)[1:-1])[1:-1]
    escaped = json.dumps(secret)[1:-1]
    yield from dict.fromkeys((python_twice, python, escaped, html.escape(plain), plain))


def _cut(line: str, secret: str) -> str:
    """Replace every run of `line` that is also a run of `secret`."""
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
