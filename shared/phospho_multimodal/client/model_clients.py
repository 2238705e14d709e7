"""The two clients behind one model of a framework: one ledger, one set of limits."""

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
    """A client for threads and one for event loops; neither opens anything before it is asked."""

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
        """Make both.

        Args:
            settings: Of both.
            spending: The ledger of both; without one, spending is counted and not limited.
            http_client: An `httpx.Client` to borrow.
            http_async_client: An `httpx.AsyncClient` to borrow.

        Returns:
            The clients.

        Raises:
            ConfigurationError: A borrowed client contradicts a setting.
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
