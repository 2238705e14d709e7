"""The price of images, and the spending limit.

Money is reserved before a request is sent, and settled after it: *billed* (status 200), *released*
(it cannot have been billed) or *in doubt* (it may have been billed, and no answer was received).
Billed and in-doubt images together never exceed the spending limit.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from phospho_multimodal.errors import ConfigurationError, SpendingLimitError
from phospho_multimodal.spending.ledger import (
    Counts,
    Ledger,
    LedgerFile,
    LedgerInMemory,
    Outcome,
)

__all__ = ["USD_PER_IMAGE", "Reservation", "Spending", "SpendingSnapshot"]

logger = logging.getLogger("phospho_multimodal")

USD_PER_IMAGE = Decimal("0.01")
"""$10 per 1,000 images (the vendor's documentation page)."""

NEARLY_SPENT = Decimal("0.8")
"""The share of the spending limit at which `on_nearly_spent` is called."""


@dataclass(frozen=True, slots=True)
class SpendingSnapshot:
    """The state of a ledger at one moment, in images and in exact dollars."""

    images_billed: int
    images_in_doubt: int
    images_reserved: int
    usd_per_image: Decimal
    max_usd: Decimal | None = None
    max_images: int | None = None

    @property
    def usd_billed(self) -> Decimal:
        """The dollars of the billed images, before rounding."""
        return self.images_billed * self.usd_per_image

    @property
    def usd_in_doubt(self) -> Decimal:
        """The dollars of the images in doubt."""
        return self.images_in_doubt * self.usd_per_image

    @property
    def usd_invoiced(self) -> Decimal:
        """The dollars on the invoice, which are rounded up to whole dollars (150 images: $2)."""
        return self.usd_billed.to_integral_value(ROUND_CEILING)

    @property
    def images_left(self) -> int | None:
        """How many more images the limit allows, not counting images that are only reserved."""
        caps = [] if self.max_images is None else [self.max_images]
        if self.max_usd is not None and self.usd_per_image:
            caps.append(int(self.max_usd // self.usd_per_image))
        taken = self.images_billed + self.images_in_doubt
        return max(0, min(caps) - taken) if caps else None

    def __str__(self) -> str:
        noun = "image" if self.images_billed == 1 else "images"
        parts = [f"{self.images_billed} {noun} billed, ${self.usd_billed} metered"]
        parts.append(f"${self.usd_invoiced} on the invoice")
        if self.images_in_doubt:
            parts.append(f"{self.images_in_doubt} in doubt (${self.usd_in_doubt})")
        if self.images_reserved:
            parts.append(f"{self.images_reserved} under way")
        if self.max_usd is not None:
            parts.append(f"cap ${self.max_usd}")
        if self.max_images is not None:
            parts.append(f"cap {self.max_images} images")
        return "; ".join(parts)


class Reservation:
    """The money of one attempt. It is settled once: later calls have no effect."""

    __slots__ = ("_spending", "_ticket")

    def __init__(self, spending: Spending, ticket: int) -> None:
        self._spending = spending
        self._ticket = ticket

    def bill(self) -> None:
        """Count the image as billed."""
        self._spending._settle(self._ticket, Outcome.BILLED)  # noqa: SLF001 - two halves of one

    def release(self) -> None:
        """Release the money, because the image cannot have been billed."""
        self._spending._settle(self._ticket, Outcome.RELEASED)  # noqa: SLF001

    def mark_in_doubt(self) -> None:
        """Count the image as in doubt, because it may have been billed."""
        self._spending._settle(self._ticket, Outcome.IN_DOUBT)  # noqa: SLF001


class Spending:
    """A spending ledger with a limit, which models, threads and event loops can share.

    A ledger without a path belongs to one process. A forked child has a copy of it.
    """

    def __init__(
        self,
        max_usd: float | Decimal | str | None = None,
        *,
        max_images: int | None = None,
        usd_per_image: float | Decimal | str = USD_PER_IMAGE,
        path: str | os.PathLike[str] | None = None,
        on_nearly_spent: Callable[[SpendingSnapshot], None] | None = None,
    ) -> None:
        """Open a ledger.

        Args:
            max_usd: The most dollars that billed and in-doubt images together may cost. `None`
                means no limit.
            max_images: The same limit in images.
            usd_per_image: The price of one image in dollars.
            path: A file for the ledger, which the processes of one machine share and the next run
                reads. The reservations of a process that has ended are in doubt.
            on_nearly_spent: A function that is called once, when 80 % of the limit is billed or in
                doubt. If it raises, the error is logged.

        Raises:
            ConfigurationError: A number is negative or invalid, or the file cannot be used.
        """
        self.usd_per_image = _dollars("usd_per_image", usd_per_image)
        self.max_usd = None if max_usd is None else _dollars("max_usd", max_usd)
        if max_images is not None and max_images < 0:
            message = f"max_images is {max_images}; it is 0 or more."
            raise ConfigurationError(message)
        self.max_images = max_images
        self.path = None if path is None else Path(path)
        self._ledger: Ledger = LedgerInMemory() if self.path is None else LedgerFile(self.path)
        self._unsettled: deque[Callable[[], None]] = deque()
        self._settling = threading.RLock()  # on_nearly_spent may look at the ledger
        self._on_nearly_spent = on_nearly_spent
        self._has_warned = threading.Lock()  # acquired once, by the first thread that warns

    @classmethod
    def resumed(
        cls,
        images_billed: int,
        images_in_doubt: int,
        *,
        max_usd: float | Decimal | str | None = None,
        max_images: int | None = None,
        usd_per_image: float | Decimal | str = USD_PER_IMAGE,
    ) -> Spending:
        """Open a ledger in memory that continues from earlier counts.

        Args:
            images_billed: The images billed before.
            images_in_doubt: The images in doubt before.
            max_usd: The limit in dollars, which includes the earlier images.
            max_images: The limit in images, which includes the earlier images.
            usd_per_image: The price of one image in dollars.

        Returns:
            The ledger.

        Raises:
            ConfigurationError: A number is negative or invalid.
        """
        spending = cls(max_usd, max_images=max_images, usd_per_image=usd_per_image)
        spending._ledger = LedgerInMemory(Counts(images_billed, images_in_doubt))
        return spending

    def reserve(self, images: int = 1) -> tuple[Reservation, ...]:
        """Reserve money for some images, for all of them or for none.

        Args:
            images: How many images.

        Returns:
            One reservation for each image. Bill it, release it or mark it as in doubt.

        Raises:
            SpendingLimitError: The limit does not allow it. Nothing was reserved.
            ConfigurationError: `images` is negative, or the ledger file cannot be used.
        """
        if images < 0:
            message = f"reserve({images}): money cannot be set aside for fewer than 0 images."
            raise ConfigurationError(message)

        def check(counts: Counts) -> None:
            total = counts.taken + images
            if self.max_images is not None and total > self.max_images:
                raise self._refusal(images, f"{self.max_images} images", counts)
            if self.max_usd is not None and total * self.usd_per_image > self.max_usd:
                raise self._refusal(images, f"${self.max_usd}", counts)

        self._settle_waiting()
        return tuple(Reservation(self, ticket) for ticket in self._ledger.reserve(images, check))

    def settle(self, billed: int | None = None) -> SpendingSnapshot:
        """Settle the images in doubt, once the invoice shows whether they were billed.

        Args:
            billed: How many of the images in doubt were billed. `None` means all of them.

        Returns:
            The ledger after that, with no image in doubt.

        Raises:
            ConfigurationError: Fewer images are in doubt.
        """
        self._settle_waiting()
        self._ledger.resolve(billed)
        return self.snapshot()

    def snapshot(self) -> SpendingSnapshot:
        """Return the state of the ledger. It prints as one line of text."""
        self._settle_waiting()
        return self._snapshot(self._ledger.counts())

    def settle_later(self, end: Callable[[], None]) -> None:
        """Settle a reservation for a caller that cannot wait until a ledger file is free.

        Args:
            end: The `bill`, `release` or `mark_in_doubt` of the reservation. Everything that is
                asked of this ledger from now on takes it into account.
        """
        self._unsettled.append(end)
        if isinstance(sys.exc_info()[1], GeneratorExit):
            return  # Maybe inside the garbage collector, where any lock can be a deadlock.
        if self.path is None:
            self._settle_waiting()
            return
        try:
            # The interpreter waits for this thread before it exits.
            threading.Thread(target=self._settle_waiting, name="phospho-ledger").start()
        except RuntimeError:  # the interpreter is exiting and starts no threads
            self._settle_waiting()

    def _settle_waiting(self) -> None:
        with self._settling:
            while self._unsettled:
                self._unsettled[0]()  # has an effect only once, so a Ctrl-C may come in between
                self._unsettled.popleft()

    def __copy__(self) -> Spending:
        """Return the ledger itself, because a copy would be a second limit."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Spending:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, where another process finds the same ledger."""
        if self.path is None:
            message = (
                "A Spending without a path lives in one process: pickled, it would become a second"
                " cap. Give it a file: Spending(…, path='spending.db')."
            )
            raise ConfigurationError(message)
        options = {
            "max_usd": self.max_usd,
            "max_images": self.max_images,
            "usd_per_image": self.usd_per_image,
            "path": self.path.absolute(),
            "on_nearly_spent": self._on_nearly_spent,
        }
        return _reopen, (options,)

    def __repr__(self) -> str:
        return f"<Spending: {self.snapshot()}>"

    def _settle(self, ticket: int, outcome: Outcome) -> None:
        """Settle a reservation. Never raise, because an answer that was paid for must arrive."""
        try:
            settled = self._ledger.settle(ticket, outcome)
        except ConfigurationError as failure:
            # It stays reserved, so that the limit holds. When this process ends, it is in doubt.
            logger.error("An image that is %s stays reserved: %s", outcome.value, failure)  # noqa: TRY400 - it says all
            return
        if settled is None or self._on_nearly_spent is None:
            return
        before, after = settled
        crossed = self._nearly_spent(after) and not self._nearly_spent(before)
        if crossed and self._has_warned.acquire(blocking=False):
            try:
                self._on_nearly_spent(self._snapshot(after))
            except Exception:
                logger.exception("on_nearly_spent= failed. The request continues.")

    def _nearly_spent(self, counts: Counts) -> bool:
        committed = counts.billed + counts.in_doubt
        of_money = self.max_usd is not None and (
            committed * self.usd_per_image >= NEARLY_SPENT * self.max_usd
        )
        return of_money or (
            self.max_images is not None and committed >= NEARLY_SPENT * self.max_images
        )

    def _snapshot(self, counts: Counts) -> SpendingSnapshot:
        return SpendingSnapshot(
            images_billed=counts.billed,
            images_in_doubt=counts.in_doubt,
            images_reserved=counts.reserved,
            usd_per_image=self.usd_per_image,
            max_usd=self.max_usd,
            max_images=self.max_images,
        )

    def _refusal(self, images: int, cap: str, counts: Counts) -> SpendingLimitError:
        noun = "image" if images == 1 else "images"
        message = (
            f"{images} more {noun} would pass the cap of {cap}; so far: {self._snapshot(counts)}."
            " Nothing was sent. Raise the cap, or settle() what is in doubt."
        )
        return SpendingLimitError(message)


def _reopen(options: dict[str, Any]) -> Spending:
    return Spending(**options)


def _dollars(name: str, value: float | Decimal | str) -> Decimal:
    """Read dollars exactly. A float is read by its shortest form, so that 0.01 is one cent."""
    try:
        amount = Decimal(str(value))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        message = f"{name} is {value!r}; it is a number of dollars, 0 or more."
        raise ConfigurationError(message)
    return amount
