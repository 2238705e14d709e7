"""The books as a Ray actor, and what it is told when it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

import ray

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import AttemptFailed, ImageClaimed, ImageFinished
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.exchange.limits import RateLimit
from phospho_multimodal.ray.books import Books
from phospho_multimodal.ray.liveness import Liveness
from phospho_multimodal.ray.told import Answered, Snapshot, Word
from phospho_multimodal.settings import Settings
from phospho_multimodal.spending.budget import Spending

__all__ = ["PATIENCE", "AccountsActor", "Limits", "Orders"]

PATIENCE = 15.0
"""Seconds that closing waits for what is under way."""


class Limits(TypedDict):
    """What all runs of a job may spend together; see `Spending`."""

    max_usd: float | Decimal | str | None
    max_images: int | None
    usd_per_image: float | Decimal | str


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker has to know.

    Attributes:
        job: What is asked.
        settings: Of its client; the rate is that of all workers together.
        usd_per_image: Dollars for one image.
    """

    job: Job
    settings: Settings
    usd_per_image: Decimal


class AccountsActor:
    """The books, called from anywhere in the cluster."""

    def __init__(self, orders: Orders, folder: Path, lent_by: str, limits: Limits) -> None:
        journal = Journal(folder, orders.job, lent_by=lent_by)
        tally = journal.tally()
        spending = Spending.resumed(tally.images_billed, tally.images_in_doubt, **limits)
        rate = RateLimit(orders.settings.requests_per_second)
        self._books = Books(journal, spending, rate, Liveness(_living_nodes))

    async def hello(self, token: str, name: str, node: str) -> None:
        """See `Books.hello`."""
        await self._books.hello(token, name, node)

    async def beat(self, token: str) -> PhosphoError | None:
        """See `Books.beat`."""
        return self._books.beat(token)

    async def claim(self, token: str, question: str, claim: ImageClaimed) -> Word | Answered:
        """See `Books.claim`."""
        return await self._books.claim(token, question, claim)

    async def permit(self, token: str, question: str, picture: bytes, attempt: str) -> Word:
        """See `Books.permit`."""
        return await self._books.permit(token, question, picture, attempt)

    async def settle(
        self, question: str, attempt: str | None, step: AttemptFailed | ImageFinished
    ) -> Mapping[str, Any]:
        """See `Books.settle`."""
        return await self._books.settle(question, attempt, step)

    async def give_up(self, question: str, picture: bytes) -> None:
        """See `Books.give_up`."""
        await self._books.give_up(question, picture)

    async def note_broken(self, position: int, error: PhosphoError) -> None:
        """See `Books.note_broken`."""
        await self._books.note_broken(position, error)

    async def stop(self, error: PhosphoError) -> None:
        """See `Books.stop`."""
        self._books.stop(error)

    async def quiet(self) -> None:
        """See `Books.quiet`."""
        await self._books.quiet()

    async def snapshot(self) -> Snapshot:
        """See `Books.snapshot`."""
        return await self._books.snapshot()

    async def close(self) -> None:
        """See `Books.close`."""
        await self._books.close(PATIENCE)


async def _living_nodes() -> set[str]:
    nodes = await asyncio.to_thread(ray.nodes)
    return {node["NodeID"] for node in nodes if node["Alive"]}
