"""Figures as a reader wants them: dollars, counts, durations and dates."""

from __future__ import annotations

import importlib
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

__all__ = ["count", "date", "duration", "money", "need"]


def need(module: str) -> Any:
    """Import a module of the extra `batch`, or raise an `ImportError` that names the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        message = (
            f"This needs {missing.name!r}, which is not installed:"
            ' pip install "phospho-multimodal[batch]"'
        )
        raise ImportError(message) from missing


def count(number: float) -> str:
    """Write a number: "1,234", or "2.5" if it is not whole and small."""
    return f"{number:,.{1 if number < 100 else 0}f}".removesuffix(".0")  # noqa: PLR2004


def money(dollars: float | Decimal | str) -> str:
    """Write an amount: "$12.34", and "$0.0125" for one that cents would round to nothing."""
    amount = Decimal(str(dollars)).quantize(Decimal("0.0001"))
    cents = amount.quantize(Decimal("0.01"))
    exact = amount >= 1 or amount == cents
    return f"${cents:,}" if exact else f"${amount.normalize():f}"


def duration(seconds: float) -> str:
    """Write a time span: "2 hours and 5 minutes"."""
    units = ((3600, "seconds"), (86_400, "minutes"))
    smallest = next((unit for limit, unit in units if seconds < limit), "hours")
    decimals = 1 if seconds < 10 else 0  # noqa: PLR2004
    return str(
        need("humanize").precisedelta(
            timedelta(seconds=round(seconds, decimals)),
            minimum_unit=smallest,
            format=f"%0.{decimals}f",
        )
    )


def date(when: str | None) -> str:
    """Write a moment in ISO 8601: "25 November 2026, 10:10 UTC". Another text stays unchanged."""
    if when is None:
        return "not yet"
    try:
        read = datetime.fromisoformat(when.replace("Z", "+00:00"))
    except ValueError:
        return when
    read = read.astimezone(timezone.utc) if read.tzinfo else read
    return f"{read.day} {read:%B %Y, %H:%M} UTC"
