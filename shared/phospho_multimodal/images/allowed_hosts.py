"""Whose URLs an agent may name: one that a model writes can carry data out."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

__all__ = ["is_allowed"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_allowed(url: str, hosts: Collection[str]) -> bool:
    r"""Tell whether a URL is one of an allowed host.

    What two readers of URLs could take for different hosts is not: a user name, a backslash, odd
    characters, a dot at the end.
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
