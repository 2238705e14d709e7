"""Who may ask: the Bearer key, and the billing method that the contract wants behind it."""

import hmac

from fastapi import Request

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import failures

__all__ = ["BillingCheck", "KeyCheck"]


class KeyCheck:
    """A FastAPI dependency that lets through whoever holds the key.

    FastAPI's own HTTPBearer answers 401 to a missing header; the contract says 403.
    """

    def __init__(self, api_key: str | None) -> None:
        if api_key is not None and not api_key.strip():
            message = "The server's API key is empty. Give it a key, or none at all."
            raise ConfigurationError(message)
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, request: Request) -> None:
        """Refuse a request without a key (403) or with another one (401)."""
        if self._key is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise failures.not_authenticated()
        # Headers were decoded as latin-1: this is what was on the wire, whatever its encoding.
        if not hmac.compare_digest(token.strip().encode("latin-1"), self._key):
            raise failures.invalid_token()


class BillingCheck:
    """A FastAPI dependency that plays an account without a billing method."""

    def __init__(self, *, billing: bool) -> None:
        self._billing = billing

    async def __call__(self) -> None:
        """Refuse everything (402) unless there is a billing method."""
        if not self._billing:
            raise failures.payment_required()
