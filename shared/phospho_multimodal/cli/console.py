"""What commands print with: the two consoles, and text that is shown as it is."""

from __future__ import annotations

import re

from rich.console import Console
from rich.text import Text

__all__ = ["errors", "output", "plain"]

output = Console()
errors = Console(stderr=True)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def plain(text: str) -> Text:
    """Show text as it is: no markup, and no control sequence that a server or a name could hold.

    Args:
        text: Anybody's.

    Returns:
        The same, for a console.
    """
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))
