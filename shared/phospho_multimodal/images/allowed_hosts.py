"""The hosts whose URLs an agent may name: a URL that a model writes can leak data."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

__all__ = ["is_allowed"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_allowed(url: str, hosts: Collection[str]) -> bool:
    r"""Tell whether the host of a URL is allowed.

    A host is `"example.com"` for the usual ports, or `"example.com:8443"` for that port. A URL that
    two parsers could read differently is never allowed: one with a user name, a backslash, odd
    characters, or a dot at the end.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(parts.scheme)
    if "@" in parts.netloc or default is None:
        return False
    allowed = {entry.lower() for entry in hosts}
    return f"{host}:{port or default}" in allowed or (port in {None, default} and host in allowed)
