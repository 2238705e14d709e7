"""The optional transport over aiohttp, for many concurrent requests on one event loop."""

from __future__ import annotations

import httpx

from phospho_multimodal.settings import Settings
from phospho_multimodal.transport.pool import KEEPALIVE_SECONDS, find_proxy
from phospho_multimodal.transport.tls import tls_context

__all__ = ["aiohttp_client"]


def aiohttp_client(settings: Settings) -> httpx.AsyncClient | None:
    """Make a client over aiohttp, or return `None` without the extra or with a proxy."""
    try:
        from httpx_aiohttp import HttpxAiohttpClient  # noqa: PLC0415 - an optional extra
    except ImportError:
        return None
    if find_proxy(settings) is not None:
        return None
    limits = httpx.Limits(
        max_connections=settings.max_concurrency, keepalive_expiry=KEEPALIVE_SECONDS
    )
    verify = tls_context(settings.verify)
    return HttpxAiohttpClient(verify=verify, limits=limits, trust_env=False)
