"""The TLS context, which all clients with the same settings share."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache

import httpx

from phospho_multimodal.errors import ConfigurationError

__all__ = ["tls_context"]


def tls_context(verify: bool | str | ssl.SSLContext) -> ssl.SSLContext:
    """Return the context for a `verify=` setting, or raise `ConfigurationError`."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    return _shared_context(verify, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=8)
def _shared_context(
    verify: bool | str, cert_file: str | None, cert_dir: str | None
) -> ssl.SSLContext:
    """Load the CA certificates once, because that takes 30 ms."""
    del cert_file, cert_dir  # httpx reads both variables; here they are only part of the cache key
    if isinstance(verify, bool):
        return httpx.create_ssl_context(verify=verify)
    try:
        if os.path.isdir(verify):  # noqa: PTH112 - a CA path is a string in every TLS library
            return ssl.create_default_context(capath=verify)
        return ssl.create_default_context(cafile=verify)
    except OSError as failure:
        message = f"verify={verify!r} is not a readable CA file or folder: {failure}."
        raise ConfigurationError(message) from None
