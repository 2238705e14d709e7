"""The phospho multimodal endpoint: one image and one text in, one answer out.

The core that the LangChain and LlamaIndex adapters stand on, and a client in its own right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from phospho_multimodal.on_demand import exports_on_demand

if TYPE_CHECKING:
    from phospho_multimodal.client.async_client import AsyncPhosphoClient
    from phospho_multimodal.client.client import PhosphoClient
    from phospho_multimodal.exchange.health_check import EndpointStatus
    from phospho_multimodal.exchange.prediction import Prediction
    from phospho_multimodal.images.prepare import PreparedImage, prepare_image
    from phospho_multimodal.images.source import ImageInput
    from phospho_multimodal.images.tiles import prepare_tiles
    from phospho_multimodal.spending.budget import Spending, SpendingSnapshot
else:
    __getattr__ = exports_on_demand(
        __name__,
        {
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
        },
    )

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


def __dir__() -> list[str]:
    return list(__all__)
