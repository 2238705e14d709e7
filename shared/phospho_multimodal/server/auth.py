"""Checks of the API key, of the Host, and of the billing method, as FastAPI dependencies."""

import hmac
import ipaddress
import re

from fastapi import HTTPException, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from phospho_multimodal.errors import ConfigurationError

__all__ = ["BillingCheck", "KeyCheck", "LocalCheck"]

# HTTP's own whitespace. str.strip() would also strip the last byte of an à in UTF-8.
_WHITESPACE = " \t"

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d*)?")

# Names that no public DNS server resolves; containers call their host host.docker.internal.
_LOCAL_NAMES = (".localhost", ".internal")


class KeyCheck(SecurityBase):
    """Accepts requests with the right key.

    FastAPI's HTTPBearer answers 401 to a missing header; the phospho API answers 403.
    """

    def __init__(self, api_key: str) -> None:
        if not api_key.strip():
            message = "The server's api_key is empty. Pass a key, or None for no key."
            raise ConfigurationError(message)
        # An environment variable that is not valid UTF-8 has its bytes as surrogates.
        self._key = api_key.strip().encode(errors="surrogateescape")
        self.model = HTTPBearer()
        self.scheme_name = "Bearer"

    async def __call__(self, request: Request) -> None:
        """Reject a request without a key (403) or with a wrong one (401)."""
        # Two headers are rejected: a proxy in front may have checked the other one.
        headers = request.headers.getlist("authorization")
        scheme, _, token = (headers[0] if len(headers) == 1 else "").partition(" ")
        token = token.strip(_WHITESPACE)
        if scheme.lower() != "bearer" or not token:
            raise HTTPException(403, "Not authenticated")
        # Starlette decodes headers as latin-1; encoding restores the bytes of the wire.
        if not hmac.compare_digest(token.encode("latin-1"), self._key):
            raise HTTPException(401, "Invalid token", {"WWW-Authenticate": "Bearer"})


class LocalCheck:
    """Accepts requests to an IP address or a local name, for a server without a key.

    A web page can point a name of its own at 127.0.0.1 and read the responses (DNS rebinding).
    Every browser sends that name as Host.
    """

    async def __call__(self, request: Request) -> None:
        """Reject (403) a Host that is neither an IP address nor a local name."""
        host = request.headers.get("host")
        if host and not _is_local(host):
            raise HTTPException(
                403,
                "Without a key this server answers only requests to localhost or to an IP address."
                " Start it with --api-key to have it answer to other names.",
            )


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
    return True


class BillingCheck:
    """Simulates an account with or without a billing method."""

    def __init__(self, *, billing: bool) -> None:
        self._billing = billing

    async def __call__(self) -> None:
        """Reject every request (402) unless there is a billing method."""
        if not self._billing:
            raise HTTPException(
                402,
                "You need to add a payment method to access this service."
                " This local server was started with --no-billing.",
            )
