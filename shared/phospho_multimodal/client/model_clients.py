"""The two clients of a framework's model, which share a ledger and a rate limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phospho_multimodal.client.async_client import AsyncPhosphoClient
from phospho_multimodal.client.client import PhosphoClient
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.settings import Settings
from phospho_multimodal.spending.budget import Spending

__all__ = ["ModelClients"]


@dataclass(frozen=True, slots=True)
class ModelClients:
    """A client for threads and a client for event loops. They connect with the first request."""

    sync: PhosphoClient
    asynchronous: AsyncPhosphoClient

    @classmethod
    def make(
        cls,
        settings: Settings,
        *,
        spending: Spending | None,
        http_client: Any,
        http_async_client: Any,
    ) -> ModelClients:
        """Make both clients, or raise `ConfigurationError` if one contradicts a setting.

        Args:
            settings: The settings of both.
            spending: The ledger of both. Without one, spending is counted and not limited.
            http_client: An `httpx.Client` of the user, to send with.
            http_async_client: An `httpx.AsyncClient` of the user, to send with.
        """
        shared = ClientState.of(settings, spending)
        return cls(
            PhosphoClient.sharing(shared, http_client),
            AsyncPhosphoClient.sharing(shared, http_async_client),
        )

    async def aclose(self) -> None:
        """Close the connections of both."""
        self.sync.close()
        await self.asynchronous.aclose()
