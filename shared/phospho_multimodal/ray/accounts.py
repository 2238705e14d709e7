"""The driver's side of a Ray job: open a job for any number of workers, and look at its state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
import ray.util.client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import states_to_ask_again
from phospho_multimodal.batch.pipeline.circuit_breaker import MAX_OUTAGE, check_max_outage
from phospho_multimodal.contract import ParameterOptions
from phospho_multimodal.errors import ConfigurationError, PhosphoError
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT
from phospho_multimodal.ray.coordinator import Coordinator, Orders, Snapshot
from phospho_multimodal.settings import ClientOptions, Settings
from phospho_multimodal.spending.budget import USD_PER_IMAGE, Spending

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = [
    "Accounts",
    "call_coordinator",
    "call_from_driver",
    "end",
    "open_accounts",
    "start",
    "to_phospho_error",
]

_MAX_CALLS = 100_000  # that may wait in the coordinator; each is a few objects
_PATIENCE = 30.0  # seconds that closing may take


class Accounts:
    """One job on a Ray cluster: the driver looks at it, and workers get it as an argument.

    Workers receive the coordinator's handle and the job.
    """

    def __init__(self, actor: Any, orders: Orders, journal: Journal | None = None) -> None:
        """Take what `open_accounts` has made.

        Args:
            actor: The handle of the coordinator.
            orders: What workers have to know.
            journal: The driver's own journal, which is lent to the coordinator.
        """
        self.actor = actor
        self.orders = orders
        self._journal = journal

    @property
    def folder(self) -> Path:
        """The folder in which the job keeps its journal."""
        if self._journal is None:
            message = "Only the driver that opened a job knows its folder."
            raise ConfigurationError(message)
        return self._journal.path.parent

    def snapshot(self) -> Snapshot:
        """Return the state of the job.

        Returns:
            The images billed and in doubt, the rows, and the error that stopped the job.

        Raises:
            ConfigurationError: The job is closed.
        """
        snapshot: Snapshot = call_from_driver(self.actor.snapshot)
        return snapshot

    def close(self) -> None:
        """End the job as soon as no request is in progress. The journal stays for the next run."""
        journal, self._journal = self._journal, None
        if journal is None:
            return
        try:
            end(self.actor)
        finally:
            journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Accounts, (self.actor, self.orders)

    def __repr__(self) -> str:
        return f"<Accounts of job {self.orders.job.prompt_id}>"


class AccountsOptions(ClientOptions, ParameterOptions, total=False):
    """The keywords of a client and of a prompt; `concurrency` belongs to the workers."""


def open_accounts(
    folder: str | os.PathLike[str],
    prompt: str = DEFAULT_PROMPT,
    *,
    max_usd: float | Decimal | str | None = None,
    max_images: int | None = None,
    usd_per_image: float | Decimal | str = USD_PER_IMAGE,
    max_outage: float = MAX_OUTAGE,
    stop: Sequence[str] | None = None,
    retry_failed: bool = False,
    retry_in_doubt: bool = False,
    **options: Unpack[AccountsOptions],
) -> Accounts:
    """Open a job on this node, for any number of workers.

    The journal in `folder` keeps every answer, so each image is paid once, in this Ray job and in
    all later ones. Another prompt, model, parameter or image size is another job, with its own
    folder inside.

    Args:
        folder: The folder of the journal, on this machine. Workers need not see it.
        prompt: The prompt.
        max_usd: The spending limit of all runs of this job, in dollars, in-doubt images included.
        max_images: The same limit in images.
        usd_per_image: The price of one image in dollars.
        max_outage: Seconds without an answer after which the job stops, while the endpoint limits
            the rate (429), is not ready (503) or cannot be reached. Until then workers wait, and
            no row fails.
        stop: Strings at which an answer is cut.
        retry_failed: Retry images that failed in an earlier run.
        retry_in_doubt: Retry images that may have been billed without an answer.
        **options: See `Settings.resolve` and `GenerationParameters`. `requests_per_second` applies
            to all workers combined.

    Returns:
        The job. Close it, or use it in a `with` block.

    Raises:
        ConfigurationError: A setting is wrong, the folder cannot be written, or another process
            works on this job.
        MissingKeyError: The key is missing.
    """
    given: dict[str, Any] = dict(options)
    if "max_concurrency" in given:
        message = "open_accounts has no max_concurrency=. Set concurrency= of DescribeImages."
        raise ConfigurationError(message)
    if given.get("detail") == "tiles":
        message = "Over Ray, an image is sent as one. Leave detail='tiles' out. Nothing was sent."
        raise ConfigurationError(message)
    parameters = {name: given.pop(name) for name in ParameterOptions.__annotations__ & given.keys()}
    settings = Settings.resolve(**given)
    spending = Spending(max_usd, max_images=max_images, usd_per_image=usd_per_image)
    max_outage = check_max_outage(max_outage)
    job = Job.of(prompt, settings, parameters, stop)
    journal = Journal(job.folder(Path(folder)), job)
    try:
        states = states_to_ask_again(failed=retry_failed, in_doubt=retry_in_doubt)
        if states:
            journal.ask_again(*states)
        root = Path.cwd() if journal.last_position() else None
        return start(journal, job, settings, spending, max_outage=max_outage, root=root)
    except BaseException:
        journal.close()
        raise


def start(
    journal: Journal,
    job: Job,
    settings: Settings,
    spending: Spending,
    *,
    max_outage: float,
    root: Path | None = None,
) -> Accounts:
    """Start the coordinator on this node, and lend it a journal that is open here."""
    if not ray.is_initialized():
        ray.init()
    if ray.util.client.ray.is_connected():
        message = (
            "The journal is kept on a node of the cluster, so the driver has to run on one (for"
            " example as a Ray job), not over ray://. Nothing was sent."
        )
        raise ConfigurationError(message)
    limits = {name: getattr(spending, name) for name in ("max_usd", "max_images", "usd_per_image")}
    orders = Orders(job, settings, limits, max_outage, root)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor_class = ray.remote(Coordinator).options(
        num_cpus=0, scheduling_strategy=here, max_concurrency=_MAX_CALLS
    )
    try:
        actor = actor_class.remote(orders, journal.path.parent.absolute(), journal.owner)
    except TypeError:
        message = (
            "A setting cannot be sent to the workers. Nothing was sent. Over Ray, verify= may be a"
            " file or a folder, but not an ssl.SSLContext."
        )
        raise ConfigurationError(message) from None
    accounts = Accounts(actor, orders, journal)
    accounts.snapshot()  # raises what its start raised
    return accounts


def end(actor: Any) -> None:
    """End a coordinator, as soon as no request is in progress."""
    try:
        with contextlib.suppress(ray.exceptions.RayError):  # the journal has all results
            ray.get(actor.close.remote(), timeout=_PATIENCE)
    finally:
        ray.kill(actor)


def call_from_driver(method: Any, *arguments: Any) -> Any:
    """Call a method of the coordinator, and wait for its result."""
    try:
        return ray.get(method.remote(*arguments))
    except ray.exceptions.RayError as failure:
        raise to_phospho_error(failure) from None


async def call_coordinator(method: Any, *arguments: Any) -> Any:
    """Call a method of the coordinator from an event loop."""
    try:
        return await method.remote(*arguments)
    except ray.exceptions.RayError as failure:
        raise to_phospho_error(failure) from None


def to_phospho_error(failure: Exception) -> PhosphoError:
    """Return the `PhosphoError` that Ray's error wraps, or one that describes the failure."""
    cause = getattr(failure, "cause", None)
    if isinstance(cause, PhosphoError):
        return cause
    words = str(failure).strip().rpartition("\n")[2][:300]
    message = (
        f"The Ray job is closed or has failed ({type(failure).__name__}: {words}). Every answer is"
        " kept. The same job continues from there."
    )
    return ConfigurationError(message)
