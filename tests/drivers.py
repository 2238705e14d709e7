"""Both clients behind one face, so that every test of one is a test of the other."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from phospho_multimodal import AsyncPhosphoClient, PhosphoClient, Prediction


class SyncDriver:
    """`PhosphoClient`, as it is."""

    name = "sync"

    def describe(self, image: Any, prompt: str = "What is this?", /, **options: Any) -> Prediction:
        """Make a client, ask one question, close the client."""
        call = {key: options.pop(key) for key in CALL_OPTIONS & options.keys()}
        with PhosphoClient(**options) as client:
            return client.describe(image, prompt, **call)

    def run(
        self, client_options: dict[str, Any], *calls: tuple[Any, str], pause: float = 0.0
    ) -> list[Any]:
        """Ask several questions one after the other with one client; errors are results."""
        results: list[Any] = []
        with PhosphoClient(**client_options) as client:
            for image, prompt in calls:
                try:
                    results.append(client.describe(image, prompt))
                except Exception as error:  # noqa: BLE001 - compared by the test
                    results.append(error)
                time.sleep(pause)
        return results

    def check(self, **options: Any) -> Any:
        with PhosphoClient(**options) as client:
            return client.check()


class AsyncDriver:
    """`AsyncPhosphoClient`, each call on a loop of its own."""

    name = "async"

    def describe(self, image: Any, prompt: str = "What is this?", /, **options: Any) -> Prediction:
        call = {key: options.pop(key) for key in CALL_OPTIONS & options.keys()}

        async def ask() -> Prediction:
            async with AsyncPhosphoClient(**options) as client:
                return await client.describe(image, prompt, **call)

        return asyncio.run(ask())

    def run(
        self, client_options: dict[str, Any], *calls: tuple[Any, str], pause: float = 0.0
    ) -> list[Any]:
        return asyncio.run(self.ask(client_options, *calls, pause=pause))

    async def ask(
        self, client_options: dict[str, Any], *calls: tuple[Any, str], pause: float = 0.0
    ) -> list[Any]:
        """The same as `run`, on a loop that is running already."""
        results: list[Any] = []
        async with AsyncPhosphoClient(**client_options) as client:
            for image, prompt in calls:
                try:
                    results.append(await client.describe(image, prompt))
                except Exception as error:  # noqa: BLE001 - compared by the test
                    results.append(error)
                await asyncio.sleep(pause)
        return results

    def check(self, **options: Any) -> Any:
        async def look() -> Any:
            async with AsyncPhosphoClient(**options) as client:
                return await client.check()

        return asyncio.run(look())


CALL_OPTIONS = {
    "model",
    "stop",
    "max_new_tokens",
    "temperature",
    "repetition_penalty",
    "top_p",
}

Driver = SyncDriver | AsyncDriver
DRIVERS = [pytest.param(SyncDriver(), id="sync"), pytest.param(AsyncDriver(), id="async")]
