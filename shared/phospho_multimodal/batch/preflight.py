"""What is known, and said, before the first picture is paid for."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path

from phospho_multimodal.batch.job import digest_prompt
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import InputRecord, State
from phospho_multimodal.batch.report.figures import duration
from phospho_multimodal.batch.results.digests import digest_file
from phospho_multimodal.batch.sources.archives import ARCHIVE_SUFFIXES
from phospho_multimodal.batch.sources.items import NoInputsError, describe_skipped
from phospho_multimodal.batch.sources.rows import TABLE_SUFFIXES
from phospho_multimodal.batch.sources.select import Item, Source
from phospho_multimodal.batch.sources.signed_urls import without_signature
from phospho_multimodal.errors import AuthenticationError, ConfigurationError, ImageError
from phospho_multimodal.exchange.health_check import EndpointStatus
from phospho_multimodal.exchange.retry import RetryBudget
from phospho_multimodal.images.source import ImageInput, check_file, image_source
from phospho_multimodal.spending.budget import Spending

__all__ = ["RATE", "Preflight", "check_status", "count_inputs", "look_ahead"]

RATE = "questions_per_second"
"""The name under which a run notes how fast it was."""

_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class Preflight:
    """A job before its first paid call.

    Attributes:
        folder: Where its results and its journal are.
        source: What the inputs are.
        inputs: All of them.
        described: Inputs that have their answer from an earlier run.
        failed: Inputs that have an error from an earlier run.
        in_doubt: Inputs that may have been billed without an answer.
        pictures: Distinct files among the inputs that are left. Fewer are paid for if different
            files turn out to be the same once they are made ready.
        usd_per_image: Dollars for one image.
        max_images: Images that may be paid for yet, if there is a cap.
        seconds: What it may take; `None` if nothing tells.
        seconds_from: What tells: `an earlier run` or `the rate`.
        base_url: Where it is asked.
        models: Those that the endpoint lists.
        skipped: What the source left out, and why.
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

    @property
    def pending(self) -> int:
        """Inputs that have no row yet."""
        return self.inputs - self.described - self.failed - self.in_doubt

    @property
    def usd_from(self) -> Decimal:
        """The lowest price: any image that was not sent yet may be broken, or known already."""
        return self._usd(0)

    @property
    def usd_expected(self) -> Decimal:
        """The list price if every distinct file is an image and is answered at once."""
        return self._usd(self.pictures)

    @property
    def usd_to(self) -> Decimal:
        """The same if every retry that is allowed is needed, and billed without an answer."""
        retries = max(RetryBudget.minimum, math.floor(self.pictures * RetryBudget.share))
        return self._usd(self.pictures + (retries if self.pictures else 0))

    def __str__(self) -> str:
        before = f"{self.described:,} described, {self.failed:,} failed, {self.in_doubt:,} in doubt"
        price = (
            f"${self.usd_expected:,.2f} to ${self.usd_to:,.2f}, at ${self.usd_per_image} an image;"
            " less where files are broken or known already"
        )
        time = "not known before the first answers"
        if self.seconds is not None:
            time = f"about {duration(self.seconds)}, by {self.seconds_from}"
        facts = {
            "Results": self.folder,
            "Endpoint": f"{self.base_url}: answers, and does not refuse the key",
            "Inputs": f"{self.inputs:,}, {self.source}",
            **({"Left out": self.skipped} if self.skipped else {}),
            "Done before": before,
            "Left": f"{self.pending:,} inputs, {self.pictures:,} distinct files",
            "Price": price,
            "Cap": "none" if self.max_images is None else f"{self.max_images:,} images more",
            "Time": time,
        }
        return "\n".join(f"{name:<13}{fact}" for name, fact in facts.items())

    def _usd(self, images: int) -> Decimal:
        if self.max_images is not None:
            images = min(images, self.max_images)
        return images * self.usd_per_image


def check_status(status: EndpointStatus) -> None:
    """Look whether an endpoint can be asked.

    Args:
        status: What a look at it found.

    Raises:
        ConfigurationError: Nothing is there, or it is no phospho endpoint.
        AuthenticationError: It does not take the key.
    """
    if status.key_accepted is False:
        message = f"{status.detail} Nothing was asked."
        raise AuthenticationError(message, status_code=401)
    if not status.healthy:
        message = f"{status.base_url} cannot be asked: {status.detail} Nothing was asked."
        raise ConfigurationError(message)


def count_inputs(
    source: Source,
    journal: Journal,
    stopped: Callable[[], bool] = lambda: False,
    *,
    is_limited: bool = False,
) -> None:
    """Note every input of a source, and tell which files are the same.

    A file is read here only if another one has its size.

    Args:
        source: The inputs.
        journal: Where they are noted.
        stopped: Whether somebody wants that to end; the next run notes the rest.
        is_limited: Whether the source holds more inputs than these.

    Raises:
        NoInputsError: There is none.
        ConfigurationError: Two inputs have the same id, or the journal cannot be written.
    """
    # What is held is what is noted: an item may be a picture of fifty megabytes.
    entries = map(_entry, source)
    found = 0
    while chunk := list(islice(entries, _TOGETHER)):
        found += len(chunk)
        journal.add(chunk)
        if stopped():
            return
    if not found:  # all inputs of an earlier run would count as removed
        raise _nothing_found(source)
    if not is_limited:  # what follows the limit was not removed
        journal.end_counting()
    _digest_files(source, journal, stopped)


def _nothing_found(source: Source) -> NoInputsError:
    skipped = describe_skipped(source.skipped)
    message = f"There is no image in: {source.name}. Nothing was sent."
    if skipped:
        message += f" Left out: {skipped}."
    kinds = [
        suffix
        for suffix in (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)
        if f"{suffix} files" in source.skipped
    ]
    if kinds:
        message += f" Tables and archives of a folder are named by a pattern: 'folder/*{kinds[0]}'."
    return NoInputsError(message)


def look_ahead(
    source: Source,
    journal: Journal,
    spending: Spending,
    status: EndpointStatus,
    *,
    requests_per_second: float | None,
    again: Sequence[State] = (),
) -> Preflight:
    """Put together what is known before the first paid call.

    Args:
        source: The inputs, counted.
        journal: Of the job.
        spending: Its ledger.
        status: Of the endpoint.
        requests_per_second: The rate, if there is one.
        again: Rows that will be asked for again: those of `FAILED`, `IN_DOUBT` or both.

    Returns:
        All of it.
    """
    tally = journal.tally()
    pictures = journal.distinct_to_ask(again)
    seconds, by = _time(pictures, journal, requests_per_second)
    return Preflight(
        folder=journal.path.parent,
        source=source.name,
        inputs=tally.inputs,
        described=tally.described,
        failed=0 if State.FAILED in again else tally.failed,
        in_doubt=0 if State.IN_DOUBT in again else tally.in_doubt,
        pictures=pictures,
        usd_per_image=spending.usd_per_image,
        max_images=spending.snapshot().images_left,
        seconds=seconds,
        seconds_from=by,
        base_url=status.base_url,
        models=tuple(status.models),
        skipped=describe_skipped(source.skipped),
    )


def _entry(item: Item) -> InputRecord:
    digest = _digest_held(item.image)
    # What was read tells more than its stamp: archives without times are common.
    stamp = item.stamp if digest is None else digest.hex()
    if item.prompt is not None and (stamp or not isinstance(item.image, os.PathLike)):
        stamp = f"{stamp or ''}#{digest_prompt(item.prompt).hex()}"
    return InputRecord(
        item.id, item.source, stamp, item.file_size, digest and _with_prompt(digest, item.prompt)
    )


def _with_prompt(digest: bytes, prompt: str | None) -> bytes:
    """Digest what an image is asked: with two prompts, one file is paid for twice."""
    return digest if prompt is None else hashlib.sha256(digest + digest_prompt(prompt)).digest()


def _digest_held(image: ImageInput | None) -> bytes | None:
    """Digest a picture that is in memory, or open; without it, nothing tells that it changed."""
    if image is None or isinstance(image, os.PathLike):
        return None
    if isinstance(image, str):
        return hashlib.sha256(without_signature(image).encode("utf-8", "surrogatepass")).digest()
    try:
        picture = image_source(image)
        if picture.form == "file" and not image.seekable():  # type: ignore[union-attr]
            return None  # it can be read once, and has to be sent
        content = picture.read()
        if isinstance(content, bytes):
            return hashlib.sha256(content).digest()
        told = (content.mode, content.size, content.getpalette(), content.info.get("transparency"))
        digest = hashlib.sha256(repr(told).encode())
        digest.update(content.tobytes())
    except Exception:  # noqa: BLE001 - anybody's object; what is wrong is told when it is sent
        return None
    return digest.digest()


def _digest_files(source: Source, journal: Journal, stopped: Callable[[], bool]) -> None:
    if not journal.has_undigested():  # to go through an archive again takes as long as reading it
        return
    files = _files(source)
    while chunk := dict(islice(files, _TOGETHER)):
        alike = journal.undigested(list(chunk))
        found = []
        for name in alike:
            if stopped():
                return
            path, prompt = chunk[name]
            digest = _digest(path)
            if digest:
                found.append((_with_prompt(digest, prompt), name))
        journal.add_digests(found)


def _files(source: Source) -> Iterator[tuple[str, tuple[os.PathLike[str], str | None]]]:
    for item in source:
        if isinstance(item.image, os.PathLike):
            yield item.id, (item.image, item.prompt)


def _time(
    pictures: int, journal: Journal, requests_per_second: float | None
) -> tuple[float | None, str]:
    """Tell what the rest may take, in seconds, and by what that is known."""
    measured = journal.fact(RATE)
    ways = []
    if measured is not None and float(measured) > 0:
        ways.append((pictures / float(measured), "an earlier run"))
    if requests_per_second is not None:
        ways.append((pictures / requests_per_second, "the rate"))
    return max(ways, default=(None, ""), key=lambda way: way[0] or 0.0)


def _digest(path: os.PathLike[str]) -> bytes | None:
    """Digest a file, unless it cannot be read or can be no picture: its row will say so."""
    try:
        check_file(Path(path))  # a pipe has the size of every empty file
        with open(path, "rb") as file:  # noqa: PTH123 - any path
            return bytes.fromhex(digest_file(file)[1])
    except (ImageError, OSError):
        return None
