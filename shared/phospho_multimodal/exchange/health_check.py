"""Check whether an endpoint responds and accepts the key, without paying."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import orjson

from phospho_multimodal.contract import (
    HEALTH_PATH,
    MODELS_PATH,
    PREDICT_PATH,
    read_detail,
    request_body,
)
from phospho_multimodal.errors import quote, status_error
from phospho_multimodal.exchange.steps import (
    TRANSPORT_FAILURES,
    AcquireSlot,
    HttpResponse,
    RequestBody,
    SendRequest,
    Step,
)
from phospho_multimodal.settings import Settings

__all__ = ["EndpointStatus", "check_endpoint"]

_OK = 200
_NO_MODEL = "none"
_KEY_REFUSED = frozenset({401, 403})
_KEY_ACCEPTED = frozenset({400, 402, 422})


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """The result of a health check.

    Attributes:
        base_url: The base URL of the endpoint.
        healthy: Whether the endpoint responds.
        key_accepted: Whether it accepts the key. `None` if its responses do not show that.
        models: The names of the models that it lists.
        detail: A description of the problem, or an empty string.
    """

    base_url: str
    healthy: bool
    key_accepted: bool | None
    models: list[str]
    detail: str


def check_endpoint(settings: Settings) -> Generator[Step, Any, EndpointStatus]:
    """Check the health of an endpoint, its models, and whether it accepts the key.

    The key goes with a model name that does not exist. The API checks the key (401, 403) and the
    billing method (402) before the model name (400), so nothing is predicted and nothing billed.
    An endpoint that does not respond is a result, not an error.
    """
    probe = request_body(model=_NO_MODEL, text="", image_url="", parameters={})
    models: list[str] = []
    try:
        health = yield from _request(settings, "GET", HEALTH_PATH, b"")
        if health.status_code == _OK:
            listing = yield from _request(settings, "GET", MODELS_PATH, b"")
            models = _model_names(listing)
        refusal = yield from _request(settings, "POST", PREDICT_PATH, probe)
    except TRANSPORT_FAILURES as failure:
        words = quote(str(failure), hide=(settings.api_key or "",))
        detail = f"Nothing answers: {type(failure).__name__}: {words}"
        return EndpointStatus(settings.base_url, False, None, models, detail)  # noqa: FBT003
    status = refusal.status_code
    accepted = True if status in _KEY_ACCEPTED else False if status in _KEY_REFUSED else None
    detail = ""
    if status == _OK:
        detail = (
            "It answered for a model name that does not exist, so it is not a phospho endpoint."
            " This check may have cost one image."
        )
    elif status not in {400, 422}:
        said = read_detail(refusal.body, hide=(settings.api_key or "",))
        detail = str(status_error(status, base_url=settings.base_url, detail=said))
    healthy = health.status_code == _OK or accepted is not None
    return EndpointStatus(settings.base_url, healthy, accepted, models, detail)


def _request(
    settings: Settings, method: str, path: str, content: bytes
) -> Generator[Step, Any, HttpResponse]:
    headers = settings.headers()
    if content:
        headers |= {"content-type": "application/json", "content-length": str(len(content))}
    release = yield AcquireSlot(None)
    try:
        reply: HttpResponse = yield SendRequest(
            method, settings.url(path), headers, RequestBody(content), None
        )
    finally:
        release()
    return reply


def _model_names(listing: HttpResponse) -> list[str]:
    """Read the names from a list of objects with an `id`, or of strings."""
    if listing.status_code != _OK:
        return []
    try:
        parsed = orjson.loads(listing.body)
    except orjson.JSONDecodeError:
        return []
    entries = parsed.get("data", parsed.get("models")) if isinstance(parsed, dict) else parsed
    if not isinstance(entries, list):
        return []
    names = [entry.get("id") if isinstance(entry, dict) else entry for entry in entries]
    return [name for name in names if isinstance(name, str)]
