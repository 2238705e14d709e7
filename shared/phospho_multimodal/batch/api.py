"""`describe_many` and `adescribe_many`: a job from its source to its manifest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, cast

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.commits import GroupCommit
from phospho_multimodal.batch.journal.endings import run_to_completion
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import State, states_to_ask_again
from phospho_multimodal.batch.pipeline.adaptive_concurrency import AUTO_CEILING, AdaptiveConcurrency
from phospho_multimodal.batch.pipeline.circuit_breaker import (
    MAX_OUTAGE,
    CircuitBreaker,
    check_max_outage,
)
from phospho_multimodal.batch.pipeline.engine import Engine, StopSignal
from phospho_multimodal.batch.pipeline.preparation import Preparation
from phospho_multimodal.batch.pipeline.progress import Progress, ProgressReporter
from phospho_multimodal.batch.pipeline.questions import RequestRunner
from phospho_multimodal.batch.pipeline.termination import as_interrupt
from phospho_multimodal.batch.preflight import (
    RATE,
    Preflight,
    check_status,
    count_inputs,
    look_ahead,
)
from phospho_multimodal.batch.report.build import check_report, report_on
from phospho_multimodal.batch.results.captions import Sidecar
from phospho_multimodal.batch.results.manifest import WORKED, Summary, write_manifest
from phospho_multimodal.batch.results.outputs import Outputs
from phospho_multimodal.batch.results.rows import Results, ResultsFormat, check_format
from phospho_multimodal.batch.results.upload import open_output
from phospho_multimodal.batch.sources.inputs import Inputs
from phospho_multimodal.batch.sources.remote import StorageOptions
from phospho_multimodal.batch.sources.select import Source
from phospho_multimodal.client.async_client import AsyncPhosphoClient
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT
from phospho_multimodal.settings import ClientOptions, ParameterOptions, Settings
from phospho_multimodal.spending.budget import USD_PER_IMAGE, Spending

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Unpack

_NOTE_EVERY = 1.0  # seconds

__all__ = ["BatchOptions", "adescribe_many", "describe_many"]


class BatchOptions(ClientOptions, ParameterOptions, total=False):
    """The keywords of a batch, beside those of a client and of a question.

    `max_concurrency` is not among them: it is `concurrency` here.

    Attributes:
        column: The table's column of pictures; without it, the one with a usual name.
        id_column: The table's column of ids; without it, they are the numbers of the rows.
        root: What a table's relative paths are relative to; without it, the table's folder.
        recursive: Whether to go into the folders of a folder; it does.
        exclude: Patterns of file and folder names that a folder or a pattern leaves out. Hidden
            files and the folders in which a NAS keeps thumbnails are always left out.
        follow_links: Whether to look into folders that are links; it does not.
        limit: How many inputs are described at most, to try a prompt. The same call without it
            describes the others.
        min_size: Pixels of the shorter side below which an image is left out.
        encoding: The encoding of a table of text. Without it, a byte order mark says it, or
            whether the text is valid UTF-8.
        prompt_column: The table's column that holds the prompt of each row.
        keep: Columns of the source that the rows of the results keep. Archives have the fields of
            the `.json` member of the same key, and `txt`.
        sidecar: Files with captions beside the images: `txt` for one each, `metadata` for the
            `metadata.jsonl` of an imagefolder.
        overwrite: Whether files with captions that exist are replaced; they are kept otherwise.
        storage_options: Options of fsspec's file systems, by protocol:
            `{"s3": {"endpoint_url": "…"}}`. Without them, each looks for credentials as usual.
        journal: The local folder for the journal, if the output is the URL of a store.
        stop: Strings at which an answer is cut.
        results: `parquet` (the default, extra `batch`) or `jsonl`.
        concurrency: Requests under way at once; `auto` finds out how many the endpoint answers
            well, up to 64. A number is what it begins with, and goes below only when told to.
        max_usd: Dollars that all runs of this job together may spend, in doubt included.
        max_images: The same, in images.
        usd_per_image: Dollars for one image.
        spending: A ledger of your own, in place of these three.
        retry_failed: Ask again about what failed in an earlier run.
        retry_in_doubt: Ask again about what may have been billed without an answer.
        max_outage: Seconds without an answer after which the job ends, while the endpoint limits
            the rate (429), is not ready (503) or cannot be reached; 600 by default. Until then
            the job waits, for as long as `Retry-After` says or up to a minute each time. The rows
            stay pending.
        take_over: Work on the job though a process on another machine did not end it properly.
        ray: The address of a Ray cluster to do it on, `auto` for the one that runs here (extra
            `ray`). Its nodes see the files under the same names, and `concurrency` is that of each.
        report: Write `_report.html` beside the results (extra `batch`).
        confirm: Asked before the first paid call; `False` ends it there.
        on_progress: Told how far it is, at most four times a second.
        interrupted: Set it to have the job end well: what is under way is finished, and kept.
        http_client: A client of your own to send with; it is not closed.
    """

    column: str | None
    id_column: str | None
    root: Path | None
    recursive: bool
    exclude: Sequence[str]
    follow_links: bool
    limit: int | None
    min_size: int | None
    encoding: str | None
    prompt_column: str | None
    keep: Sequence[str]
    sidecar: Sidecar | None
    overwrite: bool
    storage_options: StorageOptions | None
    journal: str | os.PathLike[str] | None
    stop: Sequence[str] | None
    results: ResultsFormat
    concurrency: int | Literal["auto"]
    max_usd: float | Decimal | str | None
    max_images: int | None
    usd_per_image: float | Decimal | str
    spending: Spending | None
    retry_failed: bool
    retry_in_doubt: bool
    max_outage: float
    take_over: bool
    ray: str | None
    report: bool
    confirm: Callable[[Preflight], bool] | None
    on_progress: Callable[[Progress], None] | None
    interrupted: threading.Event | None
    http_client: httpx.AsyncClient | None


def describe_many(
    source: str | os.PathLike[str] | Iterable[Any],
    out: str | os.PathLike[str],
    prompt: str | Sequence[str] = DEFAULT_PROMPT,
    **options: Unpack[BatchOptions],
) -> Summary:
    """Ask the same about many pictures, and write a row for each; see `adescribe_many`.

    Ctrl-C, SIGTERM and SIGHUP let the requests in progress finish and keep their answers. Then
    `KeyboardInterrupt` is raised. A second Ctrl-C does not wait. Python delivers signals only to
    the main thread, and a handler of your own stays in place.

    Args:
        source: The inputs.
        out: The folder for results.
        prompt: The prompt, or several.
        **options: See `BatchOptions`.

    Returns:
        What the job has come to.

    Raises:
        PhosphoError: As in `adescribe_many`.
    """
    interrupted = options.get("interrupted") or threading.Event()
    here = _HereAndThere()
    options["interrupted"] = interrupted
    confirm = options.get("confirm")
    if confirm is not None:
        options["confirm"] = lambda preflight: here.call(lambda: confirm(preflight))
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def run() -> Summary:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - `asyncio.run` makes one
        running.append((asyncio.get_running_loop(), task))
        return await adescribe_many(source, out, prompt, **options)

    # On a thread of its own: here may be an event loop already, in a notebook for one.
    with (
        as_interrupt(interrupted),
        ThreadPoolExecutor(1, thread_name_prefix="phospho-batch") as thread,
    ):
        job = thread.submit(lambda: asyncio.run(run()))
        job.add_done_callback(lambda _: here.end())
        try:
            here.serve()
        except BaseException:  # Ctrl-C, or a `confirm` that ends the program
            interrupted.set()
            here.refuse()
            try:
                job.exception()
            except KeyboardInterrupt:
                for loop, task in running:
                    loop.call_soon_threadsafe(task.cancel)
                raise
            raise
        return job.result()


class _HereAndThere:
    """Has a job on another thread call something here: a prompt takes Ctrl-C only on this one."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._open: list[Future[bool]] = []
        self._refused = False

    def call(self, question: Callable[[], bool]) -> bool:
        """There: have a question answered here."""
        answer: Future[bool] = Future()
        self._open.append(answer)

        def ask() -> None:
            try:
                answer.set_result(question())
            except Exception as error:  # noqa: BLE001 - it is raised there
                answer.set_exception(error)

        self._calls.put(ask)
        if self._refused:  # after this answer was opened, or `refuse` has found it
            return False
        return answer.result()

    def serve(self) -> None:
        """Here: answer until the job has ended."""
        while (call := self._calls.get()) is not None:
            call()

    def refuse(self) -> None:
        """Here: answer what is open with no, and what comes."""
        self._refused = True
        for answer in self._open:
            if not answer.done():
                answer.set_result(False)

    def end(self) -> None:
        """There: the job has ended."""
        self._calls.put(None)


async def adescribe_many(
    source: str | os.PathLike[str] | Iterable[Any],
    out: str | os.PathLike[str],
    prompt: str | Sequence[str] = DEFAULT_PROMPT,
    **options: Unpack[BatchOptions],
) -> Summary:
    """Ask the same about many pictures, and write a row for each.

    The same picture, by what is sent, is paid for once. The job can be stopped and killed at any
    moment: the same call goes on where it was. Another prompt, model, parameter or size of what is
    sent is another job, in a folder of its own inside `out`.

    Args:
        source: A folder, a pattern, a table (CSV, JSONL, Parquet), tar archives, the URL of any of
            these, `-`, or a list of images or of (id, image) pairs; see `open_source`.
        out: The folder for results, or its URL in a store: each job has its own inside.
        prompt: The prompt; `{name}` stands for a column of the source. With several prompts, each
            image gets a row for each.
        **options: See `BatchOptions`.

    Returns:
        What the job has come to.

    Raises:
        PhosphoError: What would end every further question in the same way (a key that is not
            taken, no billing method, no such endpoint, the cap), an outage that is longer than
            `max_outage`, or the last of 50 failures without one answer. What was done until then is
            kept, and `Summary.read` tells it.
        ImportError: An extra is missing.
    """
    run = _Run(source, out, prompt, options)
    return await run.run()


class _Run:
    """One run of a job."""

    def __init__(
        self,
        source: Any,
        out: str | os.PathLike[str],
        prompt: str | Sequence[str],
        options: BatchOptions,
    ) -> None:
        _check_names(options)
        self._options = options
        self._interrupted = options.get("interrupted") or threading.Event()
        self._concurrency = _checked_concurrency(options)
        self._max_outage = check_max_outage(options.get("max_outage", MAX_OUTAGE))
        self._spending()  # made again with what was spent; a wrong figure is told by now
        self._kind: ResultsFormat = options.get("results", "parquet")
        check_format(self._kind)
        if options.get("report"):
            check_report()
        self._over_ray = options.get("ray")
        if self._over_ray is not None:
            _check_over_ray(options)
        client_options: Any = {
            name: value for name, value in options.items() if name in ClientOptions.__annotations__
        }
        ceiling = AUTO_CEILING if self._concurrency == "auto" else self._concurrency
        self._ceiling: int = ceiling
        self._settings = Settings.resolve(**client_options, max_concurrency=ceiling)
        parameters = {
            name: value
            for name, value in options.items()
            if name in ParameterOptions.__annotations__
        }
        self._inputs = Inputs(source, prompt, options)
        self._job = Job.of(
            self._inputs.prompt,
            self._settings,
            parameters,
            options.get("stop"),
            self._inputs.own_prompts,
        )
        local, self._target = open_output(
            out, options.get("journal"), options.get("storage_options")
        )
        self._folder = self._job.folder(local)
        if self._target is not None:
            self._target /= self._folder.name

    async def run(self) -> Summary:
        """Do all of it."""
        if self._over_ray is None:
            return await self._run()
        from phospho_multimodal.ray.batch_job import connect  # noqa: PLC0415 - an extra

        leave = await asyncio.to_thread(connect, self._over_ray)
        try:
            return await self._run()
        finally:
            await asyncio.to_thread(leave)

    async def _run(self) -> Summary:
        opened, source = await asyncio.to_thread(self._inputs.open, self._settings)
        journal = await asyncio.to_thread(
            Journal, self._folder, self._job, take_over=self._options.get("take_over", False)
        )
        try:
            outputs = await asyncio.to_thread(
                Outputs, journal, self._inputs, opened, self._target, self._options
            )
            try:
                return await self._work(source, journal, outputs)
            finally:
                await run_to_completion(outputs.close)
        finally:
            await run_to_completion(journal.close)

    async def _work(self, source: Source, journal: Journal, outputs: Outputs) -> Summary:
        spent = await asyncio.to_thread(journal.tally)
        spending = self._spending(spent.images_billed, spent.images_in_doubt)
        shared = ClientState.of(self._settings, spending)
        client = AsyncPhosphoClient.sharing(shared, self._options.get("http_client"))
        async with client:
            status = await client.check()
            check_status(status)
            results = Results(
                self._folder,
                journal,
                self._job,
                self._kind,
                spending.usd_per_image,
                details=outputs.details,
                upload=outputs.upload,
            )
            source = await asyncio.to_thread(self._take_stock, source, journal, results, outputs)
            preflight = await asyncio.to_thread(
                look_ahead,
                source,
                journal,
                spending,
                status,
                requests_per_second=self._settings.requests_per_second,
                again=self._again,
            )
            goes_on = await self._goes_on(preflight)
            worked = _WorkingTime(journal)
            error = None
            if goes_on:
                if self._again:  # not before: who says no keeps the rows that there are
                    await asyncio.to_thread(journal.ask_again, *self._again)
                async with worked.noted():
                    error = await self._ask_all(source, journal, results, shared, client)
        summary = await asyncio.to_thread(
            write_manifest,
            self._folder,
            self._job,
            journal,
            results,
            spending,
            kind=self._kind,
            seconds=worked.seconds,
        )
        if self._options.get("report"):
            await asyncio.to_thread(report_on, summary, source, journal, results)
        if goes_on:
            try:
                await asyncio.to_thread(outputs.finish, results.rows())
            except ConfigurationError as failure:
                error = error or failure
        if error is not None:
            raise error
        return summary if outputs.upload is None else replace(summary, url=str(self._target))

    async def _goes_on(self, preflight: Preflight) -> bool:
        """Ask whoever wants to be asked; who has interrupted the job has said no."""
        confirm = self._options.get("confirm")
        if self._interrupted.is_set():
            return False
        return confirm is None or await asyncio.to_thread(confirm, preflight)

    def _spending(self, images_billed: int = 0, images_in_doubt: int = 0) -> Spending:
        options = self._options
        own = options.get("spending")
        caps = {"max_usd", "max_images", "usd_per_image"} & {
            name for name, value in options.items() if value is not None
        }
        if own is not None:
            if caps:
                message = f"Hand over spending=, or {', '.join(sorted(caps))}=, not both."
                raise ConfigurationError(message)
            return own
        price = options.get("usd_per_image")
        return Spending.resumed(
            images_billed,
            images_in_doubt,
            max_usd=options.get("max_usd"),
            max_images=options.get("max_images"),
            usd_per_image=USD_PER_IMAGE if price is None else price,
        )

    def _take_stock(
        self, source: Source, journal: Journal, results: Results, outputs: Outputs
    ) -> Source:
        """Check every output and count the inputs; return the source, which is recorded."""
        results.check()
        outputs.check()
        if outputs.details is not None:
            source = outputs.details.record(source, results.forget_parts)
        is_limited = self._options.get("limit") is not None
        count_inputs(source, journal, self._interrupted.is_set, is_limited=is_limited)
        return source

    @property
    def _again(self) -> list[State]:
        """The rows that are to be asked for again."""
        return states_to_ask_again(
            failed=self._options.get("retry_failed", False),
            in_doubt=self._options.get("retry_in_doubt", False),
        )

    async def _ask_all(
        self,
        source: Source,
        journal: Journal,
        results: Results,
        shared: ClientState,
        client: AsyncPhosphoClient,
    ) -> Exception | None:
        self._stop = StopSignal(self._interrupted.is_set)
        before = await asyncio.to_thread(journal.tally)
        self._watch = ProgressReporter(before, shared.spending, self._options.get("on_progress"))
        if self._over_ray is None:
            await self._ask_from_here(source, journal, results, shared, client)
        else:
            await self._ask_over_ray(source, journal, results, shared.spending)
        if self._watch.answers:
            await asyncio.to_thread(journal.note, RATE, str(self._watch.answers_per_second))
        return self._stop.error

    async def _ask_over_ray(
        self, source: Source, journal: Journal, results: Results, spending: Spending
    ) -> None:
        from phospho_multimodal.ray.batch_job import BatchJob  # noqa: PLC0415 - an extra

        job = BatchJob(
            source=source,
            journal=journal,
            results=results,
            job=self._job,
            settings=self._settings,
            limits={
                "max_usd": spending.max_usd,
                "max_images": spending.max_images,
                "usd_per_image": spending.usd_per_image,
            },
            concurrency=self._concurrency,
            watch=self._watch,
            stop=self._stop,
        )
        await job.run()

    async def _ask_from_here(
        self,
        source: Source,
        journal: Journal,
        results: Results,
        shared: ClientState,
        client: AsyncPhosphoClient,
    ) -> None:
        stop = self._stop
        level = AdaptiveConcurrency(self._ceiling, fixed=self._concurrency != "auto")
        commits = GroupCommit(journal)
        engine = Engine(
            preparation=Preparation(
                source, journal, self._job, self._settings, lambda: stop() is not None
            ),
            asker=RequestRunner(shared, client, self._job, commits, level, keeps_refused=True),
            level=level,
            journal=journal,
            results=results,
            spending=shared.spending,
            watch=self._watch,
            ceiling=self._ceiling,
            fetches=self._settings.url_mode == "fetch" or self._inputs.is_remote,
            stop=self._stop,
            breaker=CircuitBreaker(self._max_outage),
        )
        try:
            await engine.run()
        finally:
            await run_to_completion(commits.close)  # what it was told may be paid


class _WorkingTime:
    """How long all runs have worked, noted every second: a kill loses no more than that."""

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
            with contextlib.suppress(ConfigurationError):  # who asks next is told
                await asyncio.to_thread(self._journal.note, WORKED, str(self.seconds))


def _check_names(options: BatchOptions) -> None:
    """Refuse keywords that a batch does not have: a cap that is misspelt would be none."""
    if "max_concurrency" in options:
        message = "A batch has no max_concurrency=; set concurrency=."
        raise ConfigurationError(message)
    unknown = sorted(options.keys() - BatchOptions.__annotations__.keys())
    if unknown:
        message = f"A batch has no {', '.join(f'{name}=' for name in unknown)}."
        raise TypeError(message)


def _checked_concurrency(options: BatchOptions) -> int | Literal["auto"]:
    concurrency: Any = options.get("concurrency", "auto")
    if concurrency != "auto" and not (isinstance(concurrency, int) and concurrency >= 1):
        message = f"concurrency is {concurrency!r}; it is 'auto', or a number from 1."
        raise ConfigurationError(message)
    return cast("int | Literal['auto']", concurrency)


def _check_over_ray(options: BatchOptions) -> None:
    from phospho_multimodal.ray.missing import check_ray  # noqa: PLC0415 - only then

    check_ray()
    for name in ("spending", "http_client"):
        if options.get(name) is not None:
            message = f"Over Ray, {name}= stays behind on this machine. Leave it out."
            raise ConfigurationError(message)
    if "max_outage" in options:
        message = "Over Ray, a batch does not wait for its endpoint: leave max_outage= out."
        raise ConfigurationError(message)
