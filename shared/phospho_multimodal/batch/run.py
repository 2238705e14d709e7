"""One run of a job, from its source to its manifest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from phospho_multimodal.batch.counting import count_inputs
from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.commits import GroupCommit, run_to_completion
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import State, states_to_ask_again
from phospho_multimodal.batch.options import (
    BatchOptions,
    check_names,
    check_over_ray,
    checked_concurrency,
    open_spending,
)
from phospho_multimodal.batch.pipeline.adaptive_concurrency import AUTO_CEILING, AdaptiveConcurrency
from phospho_multimodal.batch.pipeline.circuit_breaker import (
    MAX_OUTAGE,
    CircuitBreaker,
    check_max_outage,
)
from phospho_multimodal.batch.pipeline.engine import Engine
from phospho_multimodal.batch.pipeline.preparation import Preparation
from phospho_multimodal.batch.pipeline.progress import ProgressReporter
from phospho_multimodal.batch.pipeline.questions import RequestRunner
from phospho_multimodal.batch.pipeline.stop_signal import StopSignal
from phospho_multimodal.batch.preflight import Preflight, check_status, look_ahead
from phospho_multimodal.batch.report.build import check_report, report_on
from phospho_multimodal.batch.report.figures import need
from phospho_multimodal.batch.results.manifest import WORKED, Summary, write_manifest
from phospho_multimodal.batch.results.outputs import Outputs
from phospho_multimodal.batch.results.rows import Results, ResultsFormat, check_format
from phospho_multimodal.batch.results.upload import open_output
from phospho_multimodal.batch.sources.inputs import Inputs
from phospho_multimodal.batch.sources.shards import Shard
from phospho_multimodal.client.async_client import AsyncPhosphoClient
from phospho_multimodal.contract import ParameterOptions
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.settings import ClientOptions, Settings
from phospho_multimodal.spending.budget import Spending

__all__ = ["BatchRun"]

_NOTE_EVERY = 1.0  # seconds


class BatchRun:
    """Checks its options when it is made, before anything is opened."""

    def __init__(
        self,
        source: Any,
        out: str | os.PathLike[str],
        prompt: str | Sequence[str],
        options: BatchOptions,
    ) -> None:
        check_names(options)
        need("humanize")  # words a wait; without it, a job would stop at its first outage
        self._options = options
        self._interrupted = options.get("interrupted") or threading.Event()
        self._concurrency = checked_concurrency(options)
        self._max_outage = check_max_outage(options.get("max_outage", MAX_OUTAGE))
        open_spending(options)  # rejects wrong figures; `_work` opens it with what was spent
        self._kind: ResultsFormat = options.get("results", "parquet")
        check_format(self._kind)
        if options.get("report"):
            check_report()
        self._ray = options.get("ray")
        if self._ray is not None:
            check_over_ray(options)
        self._ceiling = AUTO_CEILING if self._concurrency == "auto" else self._concurrency
        client_options: Any = _of_class(options, ClientOptions)
        self._settings = Settings.resolve(**client_options, max_concurrency=self._ceiling)
        parameters = _of_class(options, ParameterOptions)
        self._inputs = inputs = Inputs(source, prompt, options)
        self._job = Job.of(
            inputs.prompt, self._settings, parameters, options.get("stop"), inputs.own_prompts
        )
        local, self._target = open_output(
            out, options.get("journal"), options.get("storage_options")
        )
        self._folder = self._job.folder(local)
        shard = options.get("shard")
        if shard is not None:
            self._folder = self._folder.with_name(self._folder.name + Shard(shard).suffix)
        if self._target is not None:
            self._target /= self._folder.name

    async def run(self) -> Summary:
        """Do all work of the job that is left."""
        if self._ray is None:
            return await self._run()
        from phospho_multimodal.ray.batch_driver import connect  # noqa: PLC0415 - an extra

        leave = await asyncio.to_thread(connect, self._ray)
        try:
            return await self._run()
        finally:
            await asyncio.to_thread(leave)

    async def _run(self) -> Summary:
        opened, self._source = await asyncio.to_thread(self._inputs.open)
        self._journal = journal = await asyncio.to_thread(
            Journal, self._folder, self._job, take_over=self._options.get("take_over", False)
        )
        try:
            self._outputs = await asyncio.to_thread(
                Outputs, journal, self._inputs, opened, self._target, self._options
            )
            try:
                return await self._work()
            finally:
                await run_to_completion(self._outputs.close)
        finally:
            await run_to_completion(journal.close)

    async def _work(self) -> Summary:
        journal = self._journal
        spent = await asyncio.to_thread(journal.tally)
        spending = open_spending(self._options, spent.images_billed, spent.images_in_doubt)
        self._results = Results(
            self._folder,
            journal,
            self._job,
            self._kind,
            spending.usd_per_image,
            details=self._outputs.details,
            upload=self._outputs.upload,
        )
        shared = ClientState.of(self._settings, spending)
        client = AsyncPhosphoClient.over_aiohttp(shared, self._options.get("http_client"))
        async with client:
            preflight = await self._look_ahead(client, spending)
            goes_on = await self._goes_on(preflight)
            worked = _WorkingTime(journal)
            error = None
            if goes_on:
                if self._again:  # not earlier: a `confirm` that returns False changes no row
                    await asyncio.to_thread(journal.ask_again, *self._again)
                async with worked.noted():
                    error = await self._ask_all(shared, client)
        summary = await asyncio.to_thread(
            write_manifest,
            self._folder,
            self._job,
            journal,
            self._results,
            spending,
            kind=self._kind,
            seconds=worked.seconds,
        )
        if self._options.get("report"):
            await asyncio.to_thread(report_on, summary, self._source, journal, self._results)
        if goes_on:
            try:
                await asyncio.to_thread(self._outputs.finish, self._results.rows())
            except ConfigurationError as failure:
                error = error or failure
        if error is not None:
            raise error
        return summary if self._target is None else replace(summary, url=str(self._target))

    async def _look_ahead(self, client: AsyncPhosphoClient, spending: Spending) -> Preflight:
        status = await client.check()
        check_status(status)
        counting = ProgressReporter(None, spending, self._options.get("on_progress"))
        await asyncio.to_thread(self._results.check)
        await asyncio.to_thread(self._outputs.check)
        details = self._outputs.details
        if details is not None:
            self._source = details.record(self._source, self._results.forget_parts)
        await asyncio.to_thread(
            count_inputs,
            self._source,
            self._journal,
            self._settings,
            self._interrupted.is_set,
            counting.show_counting,
            is_limited=self._options.get("limit") is not None,
        )
        return await asyncio.to_thread(
            look_ahead,
            self._source,
            self._journal,
            spending,
            status,
            requests_per_second=self._settings.requests_per_second,
            again=self._again,
        )

    async def _goes_on(self, preflight: Preflight) -> bool:
        confirm = self._options.get("confirm")
        if self._interrupted.is_set():
            return False
        return confirm is None or await asyncio.to_thread(confirm, preflight)

    @property
    def _again(self) -> list[State]:
        """The states of the rows that are sent again."""
        return states_to_ask_again(
            failed=self._options.get("retry_failed", False),
            in_doubt=self._options.get("retry_in_doubt", False),
        )

    async def _ask_all(self, shared: ClientState, client: AsyncPhosphoClient) -> Exception | None:
        """Send every pending image, and return the error that ended the run."""
        stop = StopSignal(self._interrupted.is_set)
        before = await asyncio.to_thread(self._journal.tally)
        reporter = ProgressReporter(before, shared.spending, self._options.get("on_progress"))
        if self._ray is not None:
            await self._ask_over_ray(shared.spending, reporter, stop)
            return stop.error
        concurrency = AdaptiveConcurrency(self._ceiling, fixed=self._concurrency != "auto")
        log = GroupCommit(self._journal)
        engine = Engine(
            preparation=Preparation(
                self._source, self._journal, self._job, self._settings, lambda: stop() is not None
            ),
            runner=RequestRunner(shared, client, self._job, log, concurrency, keeps_refused=True),
            concurrency=concurrency,
            journal=self._journal,
            log=log,
            results=self._results,
            spending=shared.spending,
            reporter=reporter,
            ceiling=self._ceiling,
            fetches=self._settings.url_mode == "fetch" or self._inputs.is_remote,
            stop=stop,
            breaker=CircuitBreaker(self._max_outage),
        )
        try:
            await engine.run()
        finally:
            await run_to_completion(log.close)  # a step that waits may be a paid answer
        return stop.error

    async def _ask_over_ray(
        self, spending: Spending, reporter: ProgressReporter, stop: StopSignal
    ) -> None:
        from phospho_multimodal.ray.batch_driver import BatchDriver  # noqa: PLC0415 - an extra

        driver = BatchDriver(
            source=self._source,
            journal=self._journal,
            results=self._results,
            job=self._job,
            settings=self._settings,
            spending=spending,
            max_outage=self._max_outage,
            concurrency=self._concurrency,
            reporter=reporter,
            stop=stop,
        )
        await driver.run()


class _WorkingTime:
    """The seconds that all runs have worked, noted every second: a kill loses at most one."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._before = float(journal.fact(WORKED) or 0)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    @contextlib.asynccontextmanager
    async def noted(self) -> AsyncIterator[None]:
        noting = asyncio.ensure_future(self._note())
        try:
            yield
        finally:
            noting.cancel()
            await asyncio.wait([noting])

    async def _note(self) -> None:
        while True:
            await asyncio.sleep(_NOTE_EVERY)
            with contextlib.suppress(ConfigurationError):  # the next step reports the same
                await asyncio.to_thread(self._journal.note, WORKED, str(self.seconds))


def _of_class(options: BatchOptions, keywords: type) -> dict[str, Any]:
    """Return the options that are keywords of a class."""
    return {name: value for name, value in options.items() if name in keywords.__annotations__}
