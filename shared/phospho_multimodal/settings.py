"""Settings of the clients. Arguments win over the environment, which wins over defaults."""

from __future__ import annotations

import importlib.util
import ipaddress
import math
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, get_args
from urllib.parse import urlsplit

from typing_extensions import Unpack

from phospho_multimodal.contract import (
    DEFAULT_IMAGE_SIDE,
    DEFAULT_MAX_TILES,
    DEFAULT_MODEL,
    MODEL_PREFIX,
)
from phospho_multimodal.errors import ConfigurationError, MissingKeyError

__all__ = [
    "API_KEY_VARIABLE",
    "BASE_URL_VARIABLE",
    "DEFAULT_BASE_URL",
    "DEFAULT_IMAGE_SIDE",
    "DEFAULT_MAX_TILES",
    "ClientOptions",
    "Detail",
    "Settings",
    "TimeoutLike",
    "Timeouts",
    "UrlMode",
    "checked_model",
    "checked_proxy",
    "checked_stop",
    "is_loopback",
]

API_KEY_VARIABLE = "PHOSPHO_API_KEY"
BASE_URL_VARIABLE = "PHOSPHO_BASE_URL"
DEFAULT_BASE_URL = "https://api.phospho.ai"

UrlMode = Literal["pass", "fetch"]
Detail = Literal["auto", "tiles"]

_LEAST = {"max_retries": 0, "max_concurrency": 1, "max_image_side": 1, "max_tiles": 1}
_SHORTEST_SECRET = 8
_OWN_HEADERS = {"authorization", "content-length", "content-type", "host", "transfer-encoding"}


class TimeoutLike(Protocol):
    """The attributes of an `httpx.Timeout`. This module imports no HTTP library."""

    connect: float | None
    read: float | None
    write: float | None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each step of one request. `None` means no timeout."""

    connect: float | None = 5.0
    # The service waits up to 60 s for its model. A request that ends earlier is billed anyway.
    read: float | None = 75.0
    write: float | None = 30.0

    @classmethod
    def of(cls, timeout: float | TimeoutLike | None) -> Timeouts:
        """Read the `timeout=` argument of a client: seconds to read, or an `httpx.Timeout`."""
        if timeout is None:
            return cls()
        if isinstance(timeout, (int, float)):
            _require_above_zero("timeout", timeout, "seconds")
            return cls(read=timeout)
        if not all(hasattr(timeout, phase) for phase in ("connect", "read", "write")):
            message = (
                "timeout must be a number of seconds or an httpx.Timeout,"
                f" got {type(timeout).__name__}."
            )
            raise ConfigurationError(message)
        return cls(connect=timeout.connect, read=timeout.read, write=timeout.write)


class ClientOptions(TypedDict, total=False):
    """Keyword arguments of both clients; the models of both frameworks have them as fields."""

    api_key: str | None
    """The API key. Default: `PHOSPHO_API_KEY`. A server on localhost needs no key."""
    base_url: str | None
    """Base URL of the endpoint. Default: `PHOSPHO_BASE_URL`, and else the vendor's."""
    model: str
    """Any name that begins with `phospho-multimodal`."""
    timeout: float | TimeoutLike | None
    """Seconds to wait for an answer (75), or an `httpx.Timeout`."""
    max_retries: int
    """Number of attempts after the first one. Default: 2."""
    retry_lost_replies: bool
    """Retry also if no response arrived, or after a 502 or 504. The image may be billed twice."""
    deadline: float | None
    """Seconds for a whole call, with all attempts and waiting. Default: none. With an
    `http_client` of your own, a server that sends its response slowly can exceed the deadline."""
    max_concurrency: int
    """Most concurrent requests of this client. Default: 16."""
    requests_per_second: float | None
    """Most requests per second of this client. Default: no limit."""
    prepare: bool
    """Apply the EXIF orientation, remove metadata and shrink images. `False` only checks them."""
    max_image_side: int
    """Longest side of an image that is sent, in pixels."""
    detail: Detail
    """`"tiles"` cuts a large image into overlapping tiles, instead of shrinking it as `"auto"`
    does. Each tile is billed as one image."""
    max_tiles: int
    """Most tiles of one image, or most montages of several images."""
    url_mode: UrlMode
    """`"pass"` sends URLs to the endpoint. `"fetch"` downloads public ones and sends the image."""
    allow_insecure_http: bool
    """Send the key over plain http to a host other than localhost."""
    proxy: str | None
    """URL of a proxy. Default: the proxy of the environment, as httpx reads it."""
    verify: bool | str | ssl.SSLContext
    """`False`, the path of a CA file or folder, or an `ssl.SSLContext`."""
    default_headers: Mapping[str, str] | None
    """Headers added to every request."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked settings of a client, which never change. `resolve` makes them."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    model: str = DEFAULT_MODEL
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_retries: int = 2
    retry_lost_replies: bool = False
    deadline: float | None = None
    max_concurrency: int = 16
    requests_per_second: float | None = None
    prepare: bool = True
    max_image_side: int = DEFAULT_IMAGE_SIDE
    detail: Detail = "auto"
    max_tiles: int = DEFAULT_MAX_TILES
    url_mode: UrlMode = "pass"
    proxy: str | None = field(default=None, repr=False)
    verify: bool | str | ssl.SSLContext = True
    default_headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        checked_model(self.model)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            is_valid = isinstance(value, int) and value >= least
            _require(name, value, is_valid, f"a whole number, {least} or greater")
        _require_above_zero("deadline", self.deadline, "seconds")
        _require_above_zero("requests_per_second", self.requests_per_second, "requests")
        _require("url_mode", self.url_mode, self.url_mode in get_args(UrlMode), "'pass' or 'fetch'")
        _require("detail", self.detail, self.detail in get_args(Detail), "'auto' or 'tiles'")
        if self.detail == "tiles" and not self.prepare:
            message = "detail='tiles' cuts images, so it cannot be used with prepare=False."
            raise ConfigurationError(message)
        checked_proxy(self.proxy)

    @classmethod
    def resolve(cls, **options: Unpack[ClientOptions]) -> Settings:
        """Read and check the arguments of a client, which `ClientOptions` documents.

        Raises:
            MissingKeyError: There is no key, and the endpoint is not on localhost.
            ConfigurationError: An argument is out of range.
        """
        rest: dict[str, Any] = {**options}
        place = _read_base_url(
            rest.pop("base_url", None) or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
        )
        api_key = _read_api_key(rest.pop("api_key", None) or os.environ.get(API_KEY_VARIABLE))
        if api_key is None and not place.is_local:
            message = (
                f"There is no API key for {place.origin}. Set the environment variable"
                f" {API_KEY_VARIABLE} or pass api_key=. A server on localhost needs no key:"
                f" set {BASE_URL_VARIABLE} or base_url= to its URL."
            )
            raise MissingKeyError(message)
        is_allowed = rest.pop("allow_insecure_http", False)
        if not (place.is_secure or place.is_local or is_allowed):
            message = (
                f"The key, the prompt and the image would go to {place.origin} over plain http."
                " Use https, or pass allow_insecure_http=True if you trust the network."
            )
            raise ConfigurationError(message)
        timeouts = Timeouts.of(rest.pop("timeout", None))
        headers = _read_headers(rest.pop("default_headers", None) or {})
        return cls(place.url, api_key, timeouts=timeouts, default_headers=headers, **rest)

    @property
    def host(self) -> str:
        """The host of the base URL, without the port."""
        return urlsplit(self.base_url).hostname or ""

    def url(self, path: str) -> str:
        """Append a path of the API to the base URL."""
        return self.base_url + path

    def headers(self) -> dict[str, str]:
        """The headers of every request, except those of the body."""
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",  # a compressed response could be a decompression bomb
            **self.default_headers,
        }
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        return headers

    def secrets(self) -> tuple[str, ...]:
        """The key, and headers long enough to be a key. Errors must not repeat these."""
        headers = (v for v in self.default_headers.values() if len(v) >= _SHORTEST_SECRET)
        return (self.api_key or "", *headers)


def checked_model(model: str) -> str:
    """Return a model's name, or raise `ConfigurationError` if the endpoint would reject it."""
    if not model.startswith(MODEL_PREFIX):
        message = f"The model is {model!r}. Its name must begin with {MODEL_PREFIX!r}."
        raise ConfigurationError(message)
    return model


def checked_stop(stop: object) -> tuple[str, ...] | None:
    """Return the strings that end an answer; a single string may be passed alone."""
    if not stop:
        return None
    marks = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else ()
    if not marks or not all(isinstance(mark, str) for mark in marks):
        message = f"stop must be a string or a list of strings, got {type(stop).__name__}."
        raise ConfigurationError(message)
    return marks


def checked_proxy(proxy: str | None) -> str | None:
    """Return a proxy's URL, or raise `ConfigurationError` if httpx cannot use it."""
    if proxy is None:
        return None
    scheme = proxy.partition("://")[0].lower()
    if scheme not in {"http", "https", "socks5", "socks5h"}:
        message = (  # without the URL, which can hold a password
            "The proxy (proxy= or the environment's) cannot be used. Its URL must begin with"
            " http://, https://, socks5:// or socks5h://."
        )
        raise ConfigurationError(message)
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        message = "A SOCKS proxy needs another package: pip install 'httpx[socks]'."
        raise ConfigurationError(message)
    return proxy


def is_loopback(host: str | None) -> bool:
    """Return whether a host name or address is localhost."""
    name = (host or "").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _BaseUrl(NamedTuple):
    url: str
    origin: str
    is_secure: bool
    is_local: bool


@lru_cache(maxsize=64)  # most models share one URL, and parsing takes half of making settings
def _read_base_url(base_url: str) -> _BaseUrl:
    problem = ""
    url = urlsplit("")
    try:
        url = urlsplit(base_url.strip().rstrip("/"))
        port = url.port
    except ValueError as invalid:
        problem = str(invalid)
    else:
        if url.scheme not in {"http", "https"} or not url.hostname or port == 0:
            problem = "it must begin with https:// or http:// and a host"
        elif url.username or url.password:
            problem = "it must not contain credentials. Pass the key as api_key="
        elif url.query or url.fragment:
            problem = "it must have neither a query nor a fragment"
    if problem:
        # Without the URL, which can hold a password.
        message = f"The base URL (base_url= or {BASE_URL_VARIABLE}) cannot be used: {problem}."
        raise ConfigurationError(message)
    origin = f"{url.scheme}://{url.netloc}"
    return _BaseUrl(url.geturl(), origin, url.scheme == "https", is_loopback(url.hostname))


def _read_api_key(api_key: str | None) -> str | None:
    if not api_key:
        return None
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
        message = (
            f"The API key ({API_KEY_VARIABLE} or api_key=) has characters that no HTTP header can"
            " carry, such as a line break. Copy the key again."
        )
        raise ConfigurationError(message)
    return api_key.strip()


def _read_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if name.lower() in _OWN_HEADERS:
            message = f"default_headers= must not set {name!r}, because the client sets it."
            raise ConfigurationError(message)
        if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
            message = f"The header {name!r} in default_headers= has characters HTTP cannot carry."
            raise ConfigurationError(message)
    return {name.lower(): value for name, value in headers.items()}


def _require_above_zero(name: str, value: Any, unit: str) -> None:
    is_number = isinstance(value, (int, float)) and value > 0 and math.isfinite(value)
    _require(name, value, value is None or is_number, f"a number of {unit} above 0, or None")


def _require(name: str, value: Any, is_valid: bool, rule: str) -> None:
    if not is_valid:
        message = f"{name} must be {rule}, got {value!r}."
        raise ConfigurationError(message)
