"""A worker's line to the accounts: under its token, with a sign of life each second."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import ray
import ray.exceptions

from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.ray.accounts import Accounts, as_ours, ask_actor
from phospho_multimodal.ray.liveness import BEAT
from phospho_multimodal.ray.told import Word

__all__ = ["Link"]


class Link:
    """Calls the accounts from one event loop.

    Attributes:
        stopped_by: Why nothing more is asked, as far as is known here.
    """

    def __init__(self, accounts: Accounts) -> None:
        """Say hello.

        Args:
            accounts: Of the job.

        Raises:
            ConfigurationError: They are gone.
        """
        context = ray.get_runtime_context()
        self.stopped_by: PhosphoError | None = None
        self._actor = accounts.actor
        # Outside an actor (a class tried by hand) there is no name: then it is nobody's successor.
        self._name = context.get_actor_id() or uuid.uuid4().hex
        self._node = context.get_node_id()
        self._token = uuid.uuid4().hex
        self._renewing = asyncio.Lock()
        ask_actor(self._actor.hello, self._token, self._name, self._node)

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call the accounts.

        Args:
            method: Of theirs.
            *arguments: For it.

        Returns:
            What it returns.

        Raises:
            PhosphoError: What it raises, or that the accounts are gone.
        """
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except ray.exceptions.RayError as failure:
            raise as_ours(failure) from None

    async def ask_as_worker(self, method: str, *arguments: Any) -> Any:
        """Call what only a living worker may; one that was taken for dead says hello anew.

        Args:
            method: Of the accounts.
            *arguments: After the token.

        Returns:
            What it returns; never `FENCED`. After `STOP`, `stopped_by` tells why.

        Raises:
            PhosphoError: As in `ask`.
        """
        while True:
            token = self._token
            told = await self.ask(method, token, *arguments)
            if told is Word.STOP:
                self.stopped_by = self.stopped_by or await self.ask("beat", token)
            if told is not Word.FENCED:
                return told
            await self._renew(token)

    async def stop(self, error: PhosphoError) -> None:
        """Have nobody ask anything more."""
        self.stopped_by = self.stopped_by or error
        await self.ask("stop", error)

    async def keep_beating(self) -> None:
        """Give signs of life, until the accounts are gone."""
        while True:
            try:
                told = await self.ask("beat", self._token)
            except PhosphoError as gone:
                self.stopped_by = self.stopped_by or gone
                return
            self.stopped_by = self.stopped_by or told
            await asyncio.sleep(BEAT)

    async def _renew(self, old: str) -> None:
        async with self._renewing:
            if self._token == old:
                new = uuid.uuid4().hex
                await self.ask("hello", new, self._name, self._node)
                self._token = new
