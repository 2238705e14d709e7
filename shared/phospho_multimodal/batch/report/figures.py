"""Figures as a reader wants them: dollars, counts, durations and dates in plain English."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal

__all__ = ["count", "date", "duration", "money"]

_CENTS = Decimal("0.01")
_SMALLEST = Decimal("0.0001")
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def count(number: float) -> str:
    """Write a number: "1,234", or "2.5" for one that is not whole.

    Args:
        number: Any.

    Returns:
        It, with commas.
    """
    digits = 1 if number < 100 else 0  # noqa: PLR2004 - a third digit of a rate says nothing
    text = f"{number:,.{digits}f}"
    return text.removesuffix(".0")


def money(dollars: float | Decimal | str) -> str:
    """Write an amount: "$12.34", and with up to four digits where it is below a dollar.

    Args:
        dollars: The amount.

    Returns:
        It, with the sign of the dollar.
    """
    amount = Decimal(str(dollars))
    if 0 < amount < _SMALLEST:
        return f"under ${_SMALLEST}"
    if 0 < amount < 1:
        amount = amount.quantize(_SMALLEST).normalize()
    return f"${amount:,.2f}" if amount == amount.quantize(_CENTS) or amount > 1 else f"${amount:f}"


def duration(seconds: float) -> str:
    """Write a time span by its two largest units: "2 h 5 min".

    Args:
        seconds: How long.

    Returns:
        It, with its units.
    """
    if seconds < 10:  # noqa: PLR2004 - where a tenth of a second is still of interest
        return f"{count(seconds)} s"
    left = round(seconds)
    parts: list[str] = []
    for name, length in _UNITS:
        if left >= length or parts:
            number, left = divmod(left, length)
            parts.append(f"{number} {name}" if number else "")
    return " ".join(part for part in parts[:2] if part)


def date(when: str | float | None) -> str:
    """Write a moment: "25 November 2026, 10:10 UTC".

    Args:
        when: As ISO 8601 or in seconds since the epoch; `None` for one that has not come.

    Returns:
        It; a text that is no date as it is.
    """
    if when is None:
        return "not yet"
    try:
        if isinstance(when, str):
            read = datetime.fromisoformat(when.replace("Z", "+00:00"))
        else:
            read = datetime.fromtimestamp(when, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return str(when)
    if read.tzinfo is not None:
        read = read.astimezone(timezone.utc)
    return f"{read.day} {read:%B %Y, %H:%M} UTC"
