"""The policy for URLs that are opened: a strict parser, and the list of public addresses.

This module only reads text. It rejects every URL that two parsers could read differently. The rest
is normalized to one spelling, which is checked and then requested.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin

import httpx

from phospho_multimodal.errors import ImageError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Place", "is_address", "is_public"]

# Other ports of a public host serve mail, databases and consoles, but hardly any images.
_PORTS = {"http": 80, "https": 443}

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; one cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # another cloud's metadata, on an address that looks public
        "169.254.0.0/16",  # link-local; the metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which can wrap any of the above
        "3fff::/20",  # documentation
    )
)
# All other IPv6 addresses are local, wrap an IPv4 address (mapped, NAT64), or are unassigned.
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[^\[\]:/?#@%]+)(:(?P<port>[0-9]{0,5}))?"
    r"(?P<target>[/?][^#]*)?(#.*)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST_NAME = 253
_LONGEST_URL = 8192
_KEPT_IN_TARGET = "!$%&'()*+,-./:;=?@[]_~"


@dataclass(frozen=True, slots=True)
class Place:
    """The parts of a URL.

    Attributes:
        scheme: `http` or `https`.
        host: A name in lower case and ASCII, or an IP address in its usual spelling.
        port: 80 or 443.
        target: Path and query, percent-encoded.
    """

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)

    @classmethod
    def of(cls, url: str) -> Self:
        """Parse a URL, or raise an `ImageError` if it must not be opened."""
        parts = _URL.fullmatch(url) if len(url) <= _LONGEST_URL and _is_plain(url) else None
        host = None if parts is None else _canonical_host(parts["host"])
        if parts is None or host is None:
            message = (
                "The image URL cannot be fetched: it has to be http:// or https://, a host name or"
                " an IP address in its usual spelling, and a path, without user name, white space"
                " or backslash. Pass the image itself instead of its URL."
            )
            raise ImageError(message)
        scheme = parts["scheme"].lower()
        target = parts["target"] or "/"
        place = cls(
            scheme,
            host,
            int(parts["port"] or _PORTS[scheme]),
            quote(target if target.startswith("/") else f"/{target}", safe=_KEPT_IN_TARGET),
        )
        if place.port not in _PORTS.values():
            reason = "only the ports 80 and 443 are allowed"
            raise place.refused(reason)
        return place

    @property
    def authority(self) -> str:
        """The value of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and host, the only parts that an error may name: the rest can hold a secret."""
        return f"{self.scheme}://{self.authority}"

    def redirected(self, location: bytes) -> Place:
        """Parse the target of a redirect by the same rules; it must not leave https."""
        try:
            written = location.decode()
            # `urljoin` only makes a string, which `Place.of` then checks.
            joined = urljoin(self.origin + self.target, written)
        except ValueError:
            written = joined = ""
        if not written or not _is_plain(written):
            reason = "it redirects to something that is not a URL"
            raise self.refused(reason)
        place = Place.of(joined)
        if self.scheme == "https" and place.scheme == "http":
            reason = "it redirects from https to plain http"
            raise self.refused(reason)
        return place

    def refused(self, reason: str) -> ImageError:
        """Make the error that gives the reason, and says what to do."""
        return ImageError(
            f"The image at {self.origin} cannot be fetched: {reason}. Pass the image itself"
            " instead of its URL."
        )


def is_address(host: str) -> bool:
    """Tell whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the public internet; with a zone it never does.

    The table is our own, since the table of Python's library changes with its version.
    """
    if "%" in address:
        return False
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed not in _PUBLIC_IPV6:
        return False
    return not any(parsed in network for network in _NOT_PUBLIC)


def _is_plain(url: str) -> bool:
    """Tell whether a URL has no characters that some parsers skip or read as a slash."""
    return url.isprintable() and " " not in url and "\\" not in url


def _canonical_host(host: str) -> str | None:
    """Normalize a host; return `None` if it is neither a name nor a usual address.

    The system's resolver also accepts octal, decimal, hexadecimal and short addresses. They are
    rejected here.
    """
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        if not host.isascii():
            host = httpx.URL(scheme="http", host=host).raw_host.decode()
        name = host.lower().removesuffix(".")
        labels = name.split(".")
        if _NUMBER.fullmatch(labels[-1]):
            return str(ipaddress.IPv4Address(name))
    except (ValueError, httpx.InvalidURL):
        return None
    fits = len(name) <= _LONGEST_NAME and all(_LABEL.fullmatch(label) for label in labels)
    return name if fits else None
