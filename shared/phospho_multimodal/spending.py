"""What images cost: the price, the ledger, the cap.

Money is reserved before a request is sent and settled after: *billed* (a 200), *released* (the
service cannot have charged it) or *in doubt* (it may have). Billed and in doubt together never
pass the cap, whatever the order of sends, replies, failures and cancellations.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any

from phospho_multimodal.errors import ConfigurationError, SpendingLimitError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["USD_PER_IMAGE", "Reservation", "Spending", "SpendingSnapshot"]

USD_PER_IMAGE = Decimal("0.01")
"""$10 per 1,000 images (the vendor's documentation page)."""

NEARLY_SPENT = Decimal("0.8")
"""The share of the cap at which `on_nearly_spent` is called."""


class _State(Enum):
    RESERVED = "reserved"
    BILLED = "billed"
    IN_DOUBT = "in doubt"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class SpendingSnapshot:
    """The ledger at one moment: images, and exact dollars."""

    images_billed: int
    images_in_doubt: int
    images_reserved: int
    usd_per_image: Decimal
    max_usd: Decimal | None = None
    max_images: int | None = None

    @property
    def usd_billed(self) -> Decimal:
        """Metered dollars: images billed times the price."""
        return self.images_billed * self.usd_per_image

    @property
    def usd_in_doubt(self) -> Decimal:
        """Dollars that may have been charged without an answer."""
        return self.images_in_doubt * self.usd_per_image

    @property
    def usd_invoiced(self) -> Decimal:
        """What the invoice says: metered dollars rounded up to whole ones (150 images: $2)."""
        return self.usd_billed.to_integral_value(ROUND_CEILING)

    def __str__(self) -> str:
        parts = [f"{self.images_billed} images billed, ${self.usd_billed} metered"]
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
    """The money of one attempt; the first of its three ends counts, later ones change nothing."""

    __slots__ = ("_ledger", "_state")

    def __init__(self, ledger: Spending) -> None:
        self._ledger = ledger
        self._state = _State.RESERVED

    def bill(self) -> None:
        """The answer came: the image is billed."""
        self._ledger._settle(self, _State.BILLED)  # noqa: SLF001 - two halves of one ledger

    def release(self) -> None:
        """The image cannot have been billed."""
        self._ledger._settle(self, _State.RELEASED)  # noqa: SLF001

    def doubt(self) -> None:
        """The image may have been billed."""
        self._ledger._settle(self, _State.IN_DOUBT)  # noqa: SLF001


class Spending:
    """A ledger with a cap; any number of models, threads and event loops may share one."""

    def __init__(
        self,
        max_usd: float | Decimal | str | None = None,
        *,
        max_images: int | None = None,
        usd_per_image: float | Decimal | str = USD_PER_IMAGE,
        on_nearly_spent: Callable[[SpendingSnapshot], None] | None = None,
    ) -> None:
        """Open a ledger.

        Args:
            max_usd: Dollars that billed and in-doubt images together may reach; 0 lets nothing
                through, `None` everything.
            max_images: The same, in images.
            usd_per_image: Dollars for one image.
            on_nearly_spent: Called once, when 80 % of the cap is billed or in doubt.

        Raises:
            ConfigurationError: A figure is negative or not a number.
        """
        self.usd_per_image = _dollars("usd_per_image", usd_per_image)
        self.max_usd = None if max_usd is None else _dollars("max_usd", max_usd)
        if max_images is not None and max_images < 0:
            message = f"max_images is {max_images}; it is 0 or more."
            raise ConfigurationError(message)
        self.max_images = max_images
        self._on_nearly_spent = on_nearly_spent
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_State, 0)

    def reserve(self, images: int = 1) -> tuple[Reservation, ...]:
        """Set money aside for some images, for all or for none.

        Args:
            images: How many.

        Returns:
            A reservation for each; every one has to be billed, released or doubted.

        Raises:
            SpendingLimitError: The cap does not allow it. Nothing was reserved.
        """
        with self._lock:
            taken = self._committed() + self._counts[_State.RESERVED]
            if self.max_images is not None and taken + images > self.max_images:
                raise self._refusal(images, f"{self.max_images} images")
            if self.max_usd is not None and (taken + images) * self.usd_per_image > self.max_usd:
                raise self._refusal(images, f"${self.max_usd}")
            self._counts[_State.RESERVED] += images
        return tuple(Reservation(self) for _ in range(images))

    def snapshot(self) -> SpendingSnapshot:
        """Tell how the ledger stands; print it for a line of text."""
        with self._lock:
            return self._snapshot()

    def __copy__(self) -> Spending:
        """A copy of a cap would be a second cap, so it is the same one."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Spending:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        message = (
            "A Spending without a path lives in one process: pickled, it would become a second cap."
            " Give each process its own, with its share of the money."
        )
        raise ConfigurationError(message)

    def __repr__(self) -> str:
        return f"<Spending: {self.snapshot()}>"

    def _settle(self, reservation: Reservation, state: _State) -> None:
        snapshot = None
        with self._lock:
            if reservation._state is not _State.RESERVED:  # noqa: SLF001 - two halves of one ledger
                return
            before = self._nearly_spent()
            reservation._state = state  # noqa: SLF001
            self._counts[_State.RESERVED] -= 1
            self._counts[state] += 1
            if self._nearly_spent() and not before:
                snapshot = self._snapshot()
        # Outside the lock: the callback may well ask this ledger something.
        if snapshot is not None and self._on_nearly_spent is not None:
            self._on_nearly_spent(snapshot)

    def _committed(self) -> int:
        return self._counts[_State.BILLED] + self._counts[_State.IN_DOUBT]

    def _nearly_spent(self) -> bool:
        committed = self._committed()
        of_money = self.max_usd is not None and (
            committed * self.usd_per_image >= NEARLY_SPENT * self.max_usd
        )
        return of_money or (
            self.max_images is not None and committed >= NEARLY_SPENT * self.max_images
        )

    def _snapshot(self) -> SpendingSnapshot:
        return SpendingSnapshot(
            images_billed=self._counts[_State.BILLED],
            images_in_doubt=self._counts[_State.IN_DOUBT],
            images_reserved=self._counts[_State.RESERVED],
            usd_per_image=self.usd_per_image,
            max_usd=self.max_usd,
            max_images=self.max_images,
        )

    def _refusal(self, images: int, cap: str) -> SpendingLimitError:
        noun = "image" if images == 1 else "images"
        message = (
            f"{images} more {noun} would pass the cap of {cap}; so far: {self._snapshot()}."
            " Nothing was sent. Raise the cap, or settle what is in doubt."
        )
        return SpendingLimitError(message)


def _dollars(name: str, value: float | Decimal | str) -> Decimal:
    """Read dollars exactly: a float by its shortest spelling, so that 0.01 is one cent."""
    try:
        amount = Decimal(str(value))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        message = f"{name} is {value!r}; it is a number of dollars, 0 or more."
        raise ConfigurationError(message)
    return amount
