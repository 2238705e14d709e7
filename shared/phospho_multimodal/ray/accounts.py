"""The books as a Ray actor on the driver's node, and the handle that driver and workers have."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import states_to_ask_again
from phospho_multimodal.contract import ParameterOptions
from phospho_multimodal.errors import ConfigurationError, PhosphoError
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT
from phospho_multimodal.ray.actor import PATIENCE, AccountsActor, Limits, Orders
from phospho_multimodal.ray.told import Snapshot
from phospho_multimodal.settings import ClientOptions, Settings
from phospho_multimodal.spending.budget import USD_PER_IMAGE, Spending

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = [
    "Accounts",
    "as_ours",
    "ask_actor",
    "open_accounts",
    "start_accounts",
    "stop_accounts",
]

_AT_ONCE = 100_000  # calls that may wait there; each is a few objects


class Accounts:
    """The accounts of one job: for the driver to look at, and for workers to ask.

    Pickled, it is the workers' half: an address and what is asked.
    """

    def __init__(self, actor: Any, orders: Orders, journal: Journal | None = None) -> None:
        """Take what `open_accounts` has made.

        Args:
            actor: The actor's handle.
            orders: What workers have to know.
            journal: The driver's own, which is lent to the actor.
        """
        self.actor = actor
        self.orders = orders
        self._journal = journal

    @property
    def folder(self) -> Path:
        """Where the job keeps its journal."""
        if self._journal is None:
            message = "The accounts' folder is known on the driver, where they were opened."
            raise ConfigurationError(message)
        return self._journal.path.parent

    def snapshot(self) -> Snapshot:
        """Tell how the accounts stand; it is looked who is alive.

        Returns:
            What was paid, what is in doubt, what was done, and the error that ended it.

        Raises:
            ConfigurationError: They are closed.
        """
        snapshot: Snapshot = ask_actor(self.actor.snapshot)
        return snapshot

    def close(self) -> None:
        """End the accounts, once nothing is under way; the journal stays for the next time."""
        journal, self._journal = self._journal, None
        if journal is None:
            return
        try:
            stop_accounts(self.actor)
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
    """The keywords of a client and of a question; `concurrency` is the workers' own."""


def open_accounts(
    folder: str | os.PathLike[str],
    prompt: str = DEFAULT_PROMPT,
    *,
    max_usd: float | Decimal | str | None = None,
    max_images: int | None = None,
    usd_per_image: float | Decimal | str = USD_PER_IMAGE,
    stop: Sequence[str] | None = None,
    retry_failed: bool = False,
    retry_in_doubt: bool = False,
    **options: Unpack[AccountsOptions],
) -> Accounts:
    """Open the accounts of a job on this node, for any number of workers.

    Everything that was answered stays in `folder`: the same question about the same picture is paid
    once, in this Ray job and in all that follow. Another prompt, model, parameter or size of what
    is sent has a folder of its own inside.

    Args:
        folder: Where the journal is kept, on this machine; the workers need not see it.
        prompt: The question.
        max_usd: Dollars that all runs of this job together may spend, in doubt included.
        max_images: The same, in images.
        usd_per_image: Dollars for one image.
        stop: Strings at which an answer is cut.
        retry_failed: Ask again about what failed in an earlier run.
        retry_in_doubt: Ask again about what may have been billed without an answer.
        **options: See `Settings.resolve` and `GenerationParameters`; `requests_per_second` is that
            of all workers together.

    Returns:
        The accounts; close them, or use them in a `with` block.

    Raises:
        ConfigurationError: A setting is wrong, the folder cannot be written, or somebody else is
            at this job.
        MissingKeyError: There is no key.
    """
    given: dict[str, Any] = dict(options)
    if "max_concurrency" in given:
        message = "Accounts have no max_concurrency=; set concurrency= of DescribeImages."
        raise ConfigurationError(message)
    parameters = {name: given.pop(name) for name in ParameterOptions.__annotations__ & given.keys()}
    settings = Settings.resolve(**given)
    limits = Limits(max_usd=max_usd, max_images=max_images, usd_per_image=usd_per_image)
    Spending(**limits)  # a wrong figure is told here
    job = Job.of(prompt, settings, parameters, stop)
    journal = Journal(job.folder(Path(folder)), job)
    try:
        states = states_to_ask_again(failed=retry_failed, in_doubt=retry_in_doubt)
        if states:
            journal.ask_again(*states)
        return start_accounts(journal, job, settings, limits)
    except BaseException:
        journal.close()
        raise


def start_accounts(journal: Journal, job: Job, settings: Settings, limits: Limits) -> Accounts:
    """Start the actor, and lend it a journal.

    Args:
        journal: Open, on this machine.
        job: What is asked.
        settings: Of the workers' clients.
        limits: What may be spent.

    Returns:
        The accounts, which own the journal: it is closed with them.

    Raises:
        ConfigurationError: This is no node of the cluster, the settings cannot be sent to another
            process, or the actor does not start.
    """
    if not ray.is_initialized():
        ray.init()
    _check_node()
    orders = Orders(job, settings, Spending(**limits).usd_per_image)
    _check_pickles(orders)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = (
        ray.remote(AccountsActor)
        .options(
            num_cpus=0,
            scheduling_strategy=here,
            max_concurrency=_AT_ONCE,
            max_restarts=-1,  # all that it knows is in the journal
            max_task_retries=-1,
        )
        .remote(orders, journal.path.parent.absolute(), journal.owner, limits)
    )
    accounts = Accounts(actor, orders, journal)
    accounts.snapshot()  # it is there, and has the journal
    return accounts


def stop_accounts(actor: Any) -> None:
    """End an actor, once nothing is under way there."""
    try:
        ray.get(actor.close.remote(), timeout=2 * PATIENCE)
    except ray.exceptions.RayError:  # it is gone already: the journal has what it knew
        pass
    finally:
        ray.kill(actor)


def ask_actor(method: Any, *arguments: Any) -> Any:
    """Call the actor from the driver.

    Args:
        method: Of its handle.
        *arguments: For it.

    Returns:
        What it returns.

    Raises:
        PhosphoError: What it raises, or that it is gone.
    """
    try:
        return ray.get(method.remote(*arguments))
    except ray.exceptions.RayError as failure:
        raise as_ours(failure) from None


def as_ours(failure: Exception) -> PhosphoError:
    """Make of Ray's error the one of ours that it wraps, or that says what happened."""
    cause = getattr(failure, "cause", None)
    if isinstance(cause, PhosphoError):
        return cause
    message = (
        f"The accounts cannot be asked ({type(failure).__name__}): they are closed, or their node"
        " is gone. What was answered is kept in their folder; the same job goes on from there."
    )
    return ConfigurationError(message)


def _check_node() -> None:
    from ray.util.client import ray as client  # noqa: PLC0415

    if client.is_connected():
        message = (
            "The accounts are kept on a node of the cluster, by whoever drives the job: run this on"
            " one (a Ray job, for one), not over ray://."
        )
        raise ConfigurationError(message)


def _check_pickles(orders: Orders) -> None:
    try:
        pickle.dumps(orders)
    except Exception as failure:  # noqa: BLE001 - whatever an object of the user's raises
        message = (
            f"A setting cannot be sent to the workers ({type(failure).__name__}). verify= may be a"
            " file or a folder there, not an ssl.SSLContext."
        )
        raise ConfigurationError(message) from None
