"""What is known before the first paid request: counts, price and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import JobCounts, State
from phospho_multimodal.batch.report.figures import duration
from phospho_multimodal.batch.results.manifest import WORKED
from phospho_multimodal.batch.sources.items import describe_skipped
from phospho_multimodal.batch.sources.select import Source
from phospho_multimodal.errors import AuthenticationError, ConfigurationError
from phospho_multimodal.exchange.health_check import EndpointStatus
from phospho_multimodal.exchange.retry import RetryBudget
from phospho_multimodal.spending.budget import Spending

__all__ = ["Preflight", "check_status", "look_ahead"]


@dataclass(frozen=True, slots=True)
class Preflight:
    """A job before its first paid request.

    Attributes:
        folder: The folder of its results and its journal.
        source: The name of the source.
        inputs: All inputs.
        described: Inputs that have their answer from an earlier run.
        failed: Inputs that have an error from an earlier run.
        in_doubt: Inputs that may have been billed without an answer.
        pictures: Distinct files among the inputs that are left. Fewer are paid for if different
            files turn out to be the same image.
        usd_per_image: Dollars for one image.
        max_images: Images that the spending limit still allows; `None` without a limit.
        seconds: The expected time; `None` if nothing is known.
        seconds_from: What the time is computed from: `an earlier run` or `the rate`.
        base_url: The endpoint.
        models: The models that the endpoint lists.
        skipped: What the source left out, and why.
        requests: Requests for the distinct files: with `detail="tiles"`, one for each tile.
    """

    folder: Path
    source: str
    inputs: int
    described: int
    failed: int
    in_doubt: int
    pictures: int
    usd_per_image: Decimal
    max_images: int | None
    seconds: float | None
    seconds_from: str
    base_url: str
    models: tuple[str, ...] = ()
    skipped: str = ""
    requests: int | None = None

    @property
    def pending(self) -> int:
        """Inputs that have no row yet."""
        return self.inputs - self.described - self.failed - self.in_doubt

    @property
    def usd_from(self) -> Decimal:
        """The lowest price: any file that was not sent yet may be broken, or known already."""
        return self._usd(0)

    @property
    def usd_expected(self) -> Decimal:
        """The price if every distinct file is a readable image and needs no retry."""
        return self._usd(self._requests)

    @property
    def usd_to(self) -> Decimal:
        """The highest price: every retry that is allowed is needed, and every attempt is billed."""
        retries = max(RetryBudget.minimum, math.floor(self._requests * RetryBudget.share))
        return self._usd(self._requests + (retries if self._requests else 0))

    def __str__(self) -> str:
        before = f"{self.described:,} described, {self.failed:,} failed, {self.in_doubt:,} in doubt"
        price = (
            f"${self.usd_from:,.2f} to ${self.usd_to:,.2f}, ${self.usd_expected:,.2f} if every file"
            f" is an image, at ${self.usd_per_image} an image"
        )
        left = f"{self.pending:,} inputs, {self.pictures:,} distinct files"
        if self._requests != self.pictures:
            left += f", {self._requests:,} requests"
        time = "not known before the first answers"
        if self.seconds is not None:
            time = f"about {duration(self.seconds)}, by {self.seconds_from}"
        limit = "none" if self.max_images is None else f"{self.max_images:,} images more"
        facts = {
            "Results": self.folder,
            "Endpoint": f"{self.base_url}: answers, and does not reject the key",
            "Inputs": f"{self.inputs:,}, {self.source}",
            **({"Left out": self.skipped} if self.skipped else {}),
            "Done before": before,
            "Left": left,
            "Price": price,
            "Limit": limit,
            "Time": time,
        }
        return "\n".join(f"{name:<13}{fact}" for name, fact in facts.items())

    @property
    def _requests(self) -> int:
        return self.pictures if self.requests is None else self.requests

    def _usd(self, images: int) -> Decimal:
        if self.max_images is not None:
            images = min(images, self.max_images)
        return images * self.usd_per_image


def check_status(status: EndpointStatus) -> None:
    """Reject an endpoint that is not there, or that does not accept the key."""
    if status.key_accepted is False:
        message = f"{status.detail} Nothing was asked."
        raise AuthenticationError(message, status_code=401)
    if not status.healthy:
        message = f"{status.base_url} cannot be asked: {status.detail} Nothing was asked."
        raise ConfigurationError(message)


def look_ahead(
    source: Source,
    journal: Journal,
    spending: Spending,
    status: EndpointStatus,
    *,
    requests_per_second: float | None,
    again: Sequence[State] = (),
) -> Preflight:
    """Put together what is known when the inputs are counted.

    Args:
        source: The inputs.
        journal: The journal of the job.
        spending: The spending ledger of the job.
        status: What the health check returned.
        requests_per_second: The highest rate, if there is one.
        again: The states of the rows that are sent again.
    """
    counts = journal.tally()
    pictures, requests = journal.distinct_to_ask(again)
    seconds, by = _time(requests, counts, journal, requests_per_second)
    return Preflight(
        folder=journal.path.parent,
        source=source.name,
        inputs=counts.inputs,
        described=counts.described,
        failed=0 if State.FAILED in again else counts.failed,
        in_doubt=0 if State.IN_DOUBT in again else counts.in_doubt,
        pictures=pictures,
        usd_per_image=spending.usd_per_image,
        max_images=spending.snapshot().images_left,
        seconds=seconds,
        seconds_from=by,
        base_url=status.base_url,
        models=tuple(status.models),
        skipped=describe_skipped(source.skipped),
        requests=requests,
    )


def _time(
    requests: int, counts: JobCounts, journal: Journal, requests_per_second: float | None
) -> tuple[float | None, str]:
    """Return the expected seconds, and what they are computed from."""
    worked = float(journal.fact(WORKED) or 0)  # of all runs, and noted until a kill
    ways = []
    if worked > 0 and counts.answers:
        ways.append((requests * worked / counts.answers, "an earlier run"))
    if requests_per_second is not None:
        ways.append((requests / requests_per_second, "the rate"))
    return max(ways, default=(None, ""), key=lambda way: way[0] or 0.0)
