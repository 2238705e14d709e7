"""Key, base URL, timeouts and limits: argument before environment before default."""

from __future__ import annotations

import importlib.util
import ipaddress
import math
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict
from urllib.parse import urlsplit

from pydantic import ValidationError

from phospho_multimodal.contract import (
    DEFAULT_IMAGE_SIDE,
    DEFAULT_MAX_TILES,
    DEFAULT_MODEL,
    MODEL_PREFIX,
)
from phospho_multimodal.errors import ConfigurationError, MissingKeyError
from phospho_multimodal.on_demand import ModuleOnDemand

if TYPE_CHECKING:
    from phospho_multimodal import contract as wire
else:
    wire = ModuleOnDemand("phospho_multimodal.contract")

__all__ = [
    "API_KEY_VARIABLE",
    "BASE_URL_VARIABLE",
    "DEFAULT_BASE_URL",
    "DEFAULT_IMAGE_SIDE",
    "DEFAULT_MAX_TILES",
    "ClientOptions",
    "Detail",
    "ParameterOptions",
    "Settings",
    "TimeoutLike",
    "Timeouts",
    "UrlMode",
    "checked_model",
    "checked_parameters",
    "checked_proxy",
    "checked_stop",
    "is_loopback",
]

API_KEY_VARIABLE = "PHOSPHO_API_KEY"
BASE_URL_VARIABLE = "PHOSPHO_BASE_URL"
DEFAULT_BASE_URL = "https://api.phospho.ai"

LOWEST_TEMPERATURE = 0.1
"""The endpoint's floor; frameworks write 0 for "as deterministic as can be"."""

UrlMode = Literal["pass", "fetch"]
Detail = Literal["auto", "tiles"]

_SECRET_LENGTH = 8


class TimeoutLike(Protocol):
    """What an `httpx.Timeout` looks like; settings know no HTTP library."""

    connect: float | None
    read: float | None
    write: float | None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step of one request may take, in seconds; `None` is for ever."""

    connect: float | None = 5.0
    read: float | None = 75.0
    """The service itself waits up to 60 s for its model: giving up earlier pays for nothing."""
    write: float | None = 30.0

    @classmethod
    def of(cls, timeout: float | TimeoutLike | None) -> Timeouts:
        """Read the `timeout=` argument of a client.

        Args:
            timeout: `None` for the defaults, seconds for reading, or an `httpx.Timeout`.

        Returns:
            The timeouts.

        Raises:
            ConfigurationError: A number is not above zero.
        """
        if timeout is None:
            return cls()
        if isinstance(timeout, (int, float)):
            return cls(read=_above_zero("timeout", timeout, unit="seconds"))
        if not all(hasattr(timeout, phase) for phase in ("connect", "read", "write")):
            message = "timeout= is a number of seconds for an answer, or an httpx.Timeout."
            raise ConfigurationError(message)
        return cls(connect=timeout.connect, read=timeout.read, write=timeout.write)


class ClientOptions(TypedDict, total=False):
    """The keywords of both clients that become settings; `Settings.resolve` explains each."""

    api_key: str | None
    base_url: str | None
    model: str
    timeout: float | TimeoutLike | None
    max_retries: int
    retry_lost_replies: bool
    deadline: float | None
    max_concurrency: int
    requests_per_second: float | None
    prepare: bool
    max_image_side: int
    detail: Detail
    max_tiles: int
    url_mode: UrlMode
    allow_insecure_http: bool
    proxy: str | None
    verify: bool | str | ssl.SSLContext
    default_headers: Mapping[str, str] | None


class ParameterOptions(TypedDict, total=False):
    """The keywords of one question; `GenerationParameters` explains each."""

    max_new_tokens: int | None
    temperature: float | None
    repetition_penalty: float | None
    top_p: float | None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a client needs to know; made by `resolve`, then never changed."""

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

    @classmethod
    def resolve(
        cls,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        model: str = DEFAULT_MODEL,
        timeout: float | TimeoutLike | None = None,
        max_retries: int = 2,
        retry_lost_replies: bool = False,
        deadline: float | None = None,
        max_concurrency: int = 16,
        requests_per_second: float | None = None,
        prepare: bool = True,
        max_image_side: int = DEFAULT_IMAGE_SIDE,
        detail: Detail = "auto",
        max_tiles: int = DEFAULT_MAX_TILES,
        url_mode: UrlMode = "pass",
        allow_insecure_http: bool = False,
        proxy: str | None = None,
        verify: bool | str | ssl.SSLContext = True,
        default_headers: Mapping[str, str] | None = None,
    ) -> Settings:
        """Read and check the arguments of a client.

        Args:
            api_key: The key; else `PHOSPHO_API_KEY`. Needed unless the base URL is on the loopback.
            base_url: Where the endpoint is; else `PHOSPHO_BASE_URL`, else the vendor's.
            model: Any name that begins with `phospho-multimodal`.
            timeout: Seconds to wait for an answer (75), or an `httpx.Timeout`.
            max_retries: Attempts after the first one.
            retry_lost_replies: Retry a lost reply, a 502 and a 504, which may have been billed.
            deadline: Seconds for the whole call, all attempts and waiting included. A borrowed
                `httpx.Client` keeps it but for a server that drips; see `PhosphoClient`.
            max_concurrency: Requests of this client in flight at once.
            requests_per_second: Rate of this client, at most one second's worth at once.
            prepare: Turn, clean and shrink images; `False` checks type and limits alone.
            max_image_side: Longest side of what is sent, in pixels.
            detail: `"auto"` sends one image; `"tiles"` sends an image that would have to be shrunk
                as several overlapping tiles, each of which is billed as one image.
            max_tiles: The most tiles of one image, or the most montages of several images.
            url_mode: `"pass"` hands URLs on unopened; `"fetch"` opens public ones here.
            allow_insecure_http: Send the key over plain http beyond the loopback.
            proxy: URL of a proxy; else the environment's, as httpx reads it.
            verify: `False`, a CA file or folder, or an `ssl.SSLContext`.
            default_headers: Further headers of every request.

        Returns:
            The settings.

        Raises:
            MissingKeyError: There is no key, and the base URL is not on the loopback.
            ConfigurationError: An argument is out of range.
        """
        place = _place(base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL)
        key = _checked_key(api_key or os.environ.get(API_KEY_VARIABLE) or None)
        if key is None and not place.local:
            message = (
                f"There is no API key for {place.origin}. Set the environment variable"
                f" {API_KEY_VARIABLE} or pass api_key=…. A server on this machine needs none:"
                f" point {BASE_URL_VARIABLE} or base_url= at it."
            )
            raise MissingKeyError(message)
        if not (place.secure or place.local or allow_insecure_http):
            message = (
                f"{place.origin} would get the key, the prompt and the image over plain http."
                " Use https, or pass allow_insecure_http=True if the network is trusted."
            )
            raise ConfigurationError(message)
        if url_mode not in {"pass", "fetch"}:
            message = f"url_mode is {url_mode!r}; it is 'pass' or 'fetch'."
            raise ConfigurationError(message)
        if detail not in {"auto", "tiles"}:
            message = f"detail must be 'auto' or 'tiles', got {detail!r}."
            raise ConfigurationError(message)
        if detail == "tiles" and not prepare:
            message = "detail='tiles' cuts images, so it cannot be used with prepare=False."
            raise ConfigurationError(message)
        return cls(
            base_url=place.url,
            api_key=key,
            model=checked_model(model),
            timeouts=Timeouts.of(timeout),
            max_retries=_whole_number("max_retries", max_retries, least=0),
            retry_lost_replies=retry_lost_replies,
            deadline=_above_zero("deadline", deadline, unit="seconds"),
            max_concurrency=_whole_number("max_concurrency", max_concurrency, least=1),
            requests_per_second=_above_zero(
                "requests_per_second", requests_per_second, unit="requests a second"
            ),
            prepare=prepare,
            max_image_side=_whole_number("max_image_side", max_image_side, least=1),
            detail=detail,
            max_tiles=_whole_number("max_tiles", max_tiles, least=1),
            url_mode=url_mode,
            proxy=checked_proxy(proxy),
            verify=verify,
            default_headers=_checked_headers(default_headers or {}),
        )

    @property
    def host(self) -> str:
        """The host of the base URL, without port."""
        return urlsplit(self.base_url).hostname or ""

    def url(self, path: str) -> str:
        """Join a path of the contract to the base URL."""
        return self.base_url + path

    def headers(self) -> dict[str, str]:
        """The headers of every request but those of the body."""
        headers = {
            "accept": "application/json",
            # A compressed reply could be a bomb, and an answer is a few hundred bytes.
            "accept-encoding": "identity",
            **self.default_headers,
        }
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        return headers

    def secrets(self) -> tuple[str, ...]:
        """What no error may repeat: the key, and headers that could be one by their length."""
        headers = (value for value in self.default_headers.values() if len(value) >= _SECRET_LENGTH)
        return (self.api_key or "", *headers)


def checked_model(model: str) -> str:
    """Check the name of a model.

    Args:
        model: The name.

    Returns:
        The same name.

    Raises:
        ConfigurationError: The endpoint would refuse it.
    """
    if not model.startswith(MODEL_PREFIX):
        message = f"The model is {model!r}; its name has to begin with {MODEL_PREFIX!r}."
        raise ConfigurationError(message)
    return model


def checked_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Check generation parameters against the documented ranges, before anything is paid.

    Args:
        parameters: Names and values; `None` means not set.

    Returns:
        Those that were set. A temperature of 0 has become 0.1, the endpoint's floor.

    Raises:
        ConfigurationError: A value is out of its range, or a name is unknown.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    if not given:
        return given
    if given.get("temperature") == 0:
        given["temperature"] = LOWEST_TEMPERATURE
    try:
        checked = wire.GenerationParameters.model_validate(given)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(step) for step in first["loc"])
        # The value of an unknown name could be anything: a key, say.
        known = name in wire.GenerationParameters.model_fields
        what = f"{name}={given[name]!r}" if known else name
        message = f"{what} cannot be sent: {first['msg']}. Nothing was sent."
        raise ConfigurationError(message) from None
    # As the model reads them: another library's numbers are not JSON's.
    return checked.model_dump(include=set(given))


def checked_stop(stop: object) -> tuple[str, ...] | None:
    """Check the strings at which an answer is cut: after it came, it is paid for.

    Args:
        stop: The strings; a single one may stand alone.

    Returns:
        All of them, or `None` if there are none.

    Raises:
        ConfigurationError: They are not strings.
    """
    if not stop:
        return None
    marks = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else ()
    if not marks or not all(isinstance(mark, str) for mark in marks):
        message = "stop is a string or a list of strings at which the answer is cut; it is neither."
        raise ConfigurationError(message)
    return marks


def checked_proxy(proxy: str | None) -> str | None:
    """Check that a proxy is one that httpx can go through.

    Args:
        proxy: Its URL, which may hold a password; `None` is none.

    Returns:
        The same.

    Raises:
        ConfigurationError: Its scheme is another one, or a package for SOCKS is missing.
    """
    if proxy is None:
        return None
    scheme = proxy.partition("://")[0].lower()
    if scheme not in {"http", "https", "socks5", "socks5h"}:
        message = (
            "The proxy (proxy= or the environment's) cannot be used: its URL begins with http://,"
            " https://, socks5:// or socks5h://."
        )
        raise ConfigurationError(message)
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        message = "A SOCKS proxy needs a package more: pip install 'httpx[socks]'."
        raise ConfigurationError(message)
    return proxy


def is_loopback(host: str | None) -> bool:
    """Tell whether a host name or address is this machine itself."""
    name = (host or "").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Place(NamedTuple):
    """Where a base URL leads."""

    url: str
    origin: str
    secure: bool
    local: bool


@lru_cache(maxsize=64)  # half of what a model's settings take, and most models share one
def _place(base_url: str) -> _Place:
    """Take a base URL apart, and refuse what cannot be one."""
    problem = ""
    url = urlsplit("")
    try:
        url = urlsplit(base_url.strip().rstrip("/"))
        port = url.port
    except ValueError as invalid:
        problem = str(invalid)
    else:
        if url.scheme not in {"http", "https"} or not url.hostname or port == 0:
            problem = "it begins with https:// or http:// and a host"
        elif url.username or url.password:
            problem = "it carries no credentials; the key goes into api_key="
        elif url.query or url.fragment:
            problem = "it has neither a query nor a fragment"
    if problem:
        # The URL itself may hold a password, so only its source is named.
        message = f"The base URL (base_url= or {BASE_URL_VARIABLE}) cannot be used: {problem}."
        raise ConfigurationError(message)
    origin = f"{url.scheme}://{url.netloc}"
    return _Place(url.geturl(), origin, url.scheme == "https", is_loopback(url.hostname))


def _checked_key(api_key: str | None) -> str | None:
    if api_key is not None and not (
        api_key.isascii() and api_key.isprintable() and api_key.strip()
    ):
        message = (
            f"The API key ({API_KEY_VARIABLE} or api_key=) holds characters that no HTTP header can"
            " carry, a line break perhaps. Copy it again."
        )
        raise ConfigurationError(message)
    return api_key.strip() if api_key else None


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    checked = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in {
            "authorization",
            "content-length",
            "content-type",
            "host",
            "transfer-encoding",
        }:
            message = (
                f"default_headers= may not set {name!r}: the client does (api_key=, base_url=)."
            )
            raise ConfigurationError(message)
        if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
            message = f"The header {name!r} in default_headers= holds characters HTTP cannot carry."
            raise ConfigurationError(message)
        checked[lower] = value
    return checked


def _above_zero(name: str, value: Any, *, unit: str) -> float | None:
    if value is None:
        return None
    if not (isinstance(value, (int, float)) and value > 0 and math.isfinite(value)):
        message = f"{name} is {value}; it is a number of {unit} above 0, or None."
        raise ConfigurationError(message)
    return value


def _whole_number(name: str, value: Any, *, least: int) -> int:
    if not isinstance(value, int) or value < least:
        message = f"{name} is {value!r}; it is a whole number, {least} or more."
        raise ConfigurationError(message)
    return value
