"""Who may ask: the Bearer key, and the billing method that the contract wants behind it."""

import hmac
import ipaddress
import re

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import errors as failures

__all__ = ["BillingCheck", "KeyCheck", "LocalCheck"]

_BLANKS = " \t"  # the blanks of HTTP: to str.strip() the last byte of an à in UTF-8 is one too

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d*)?")

# Names that no public DNS gives away: the last is how containers call the machine they run on.
_LOCAL_NAMES = (".localhost", ".internal")


class KeyCheck(SecurityBase):
    """A FastAPI dependency that lets through whoever holds the key.

    FastAPI's own HTTPBearer answers 401 to a missing header; the contract says 403.
    """

    def __init__(self, api_key: str) -> None:
        if not api_key.strip():
            message = "The server's API key is empty. Give it a key, or none at all."
            raise ConfigurationError(message)
        # An environment variable that is no UTF-8 comes with its bytes as surrogates.
        self._key = api_key.strip().encode(errors="surrogateescape")
        self.model = HTTPBearer()
        self.scheme_name = "Bearer"

    async def __call__(self, request: Request) -> None:
        """Refuse a request without a key (403) or with another one (401)."""
        # With several headers, a proxy in front may have looked at another one than we would.
        headers = request.headers.getlist("authorization")
        scheme, _, token = (headers[0] if len(headers) == 1 else "").partition(" ")
        token = token.strip(_BLANKS)
        if scheme.lower() != "bearer" or not token:
            raise failures.not_authenticated()
        # Headers were decoded as latin-1: this is what was on the wire, whatever its encoding.
        if not hmac.compare_digest(token.encode("latin-1"), self._key):
            raise failures.invalid_token()


class LocalCheck:
    """A FastAPI dependency that lets through what is addressed to this machine itself.

    It stands where no key is asked for. A web page can point a name of its own at 127.0.0.1 and
    then read our answers as if they were its own (DNS rebinding); its name betrays it.
    """

    async def __call__(self, request: Request) -> None:
        """Refuse (403) a Host that is neither an IP address nor a local name."""
        host = request.headers.get("host")
        # Every browser sends it. Without it, no web page is behind the request.
        if host and not _is_local(host):
            raise failures.foreign_host()


def _is_local(host: str) -> bool:
    parts = _HOST.fullmatch(host.lower())
    if parts is None:
        return False
    name = parts["name"].strip("[]").removesuffix(".")
    if name == "localhost" or name.endswith(_LOCAL_NAMES):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True  # only a name can be pointed elsewhere


class BillingCheck:
    """A FastAPI dependency that plays an account without a billing method."""

    def __init__(self, *, billing: bool) -> None:
        self._billing = billing

    async def __call__(self) -> None:
        """Refuse everything (402) unless there is a billing method."""
        if not self._billing:
            raise failures.payment_required()
