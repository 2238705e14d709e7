"""The consoles that commands print to, and a function that makes foreign text safe for them."""

from __future__ import annotations

import re

from rich.console import Console
from rich.text import Text

__all__ = ["errors", "output", "plain"]

output = Console()
errors = Console(stderr=True)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # except tab and newline


def plain(text: str) -> Text:
    """Make text printable as it is, without markup and without control sequences."""
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))
