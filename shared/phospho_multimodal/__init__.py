"""The phospho multimodal endpoint: one image and one prompt in, one answer out.

A client of its own, and the core of the LangChain and LlamaIndex adapters.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phospho_multimodal._version import __version__
from phospho_multimodal.errors import (
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

if TYPE_CHECKING:
    from phospho_multimodal.client.async_client import AsyncPhosphoClient
    from phospho_multimodal.client.client import PhosphoClient
    from phospho_multimodal.exchange.health_check import EndpointStatus
    from phospho_multimodal.exchange.prediction import Prediction
    from phospho_multimodal.images.prepare import PreparedImage, prepare_image
    from phospho_multimodal.images.source import ImageInput
    from phospho_multimodal.images.tiles import prepare_tiles
    from phospho_multimodal.spending.budget import Spending, SpendingSnapshot

# These modules import httpx or Pillow, which `import phospho_multimodal` must not.
_MODULES = {
    "AsyncPhosphoClient": "client.async_client",
    "EndpointStatus": "exchange.health_check",
    "ImageInput": "images.source",
    "PhosphoClient": "client.client",
    "Prediction": "exchange.prediction",
    "PreparedImage": "images.prepare",
    "Spending": "spending.budget",
    "SpendingSnapshot": "spending.budget",
    "prepare_image": "images.prepare",
    "prepare_tiles": "images.tiles",
}

__all__ = [
    "APIStatusError",
    "AsyncPhosphoClient",
    "AuthenticationError",
    "ConfigurationError",
    "ConnectionFailedError",
    "EndpointGoneError",
    "EndpointStatus",
    "ImageError",
    "ImageInput",
    "InvalidRequestError",
    "MissingImageError",
    "MissingKeyError",
    "NoToolCallError",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "PhosphoClient",
    "PhosphoError",
    "Prediction",
    "PreparedImage",
    "RateLimitedError",
    "ReplyLostError",
    "ServiceError",
    "Spending",
    "SpendingLimitError",
    "SpendingSnapshot",
    "UnexpectedReplyError",
    "UnsupportedContentError",
    "__version__",
    "prepare_image",
    "prepare_tiles",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
