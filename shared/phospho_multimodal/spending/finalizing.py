"""What the garbage collector ends: it does so at any allocation of any thread.

A call that was left behind on a closed event loop is ended when it is collected, maybe by a thread
that holds the very lock that its end needs. So nothing may wait there: what is to be done is left
to whoever holds the lock next.
"""

from __future__ import annotations

import sys

__all__ = ["is_finalizing"]


def is_finalizing() -> bool:
    """Tell whether a generator or coroutine is being closed; to be asked while it handles that.

    Returns:
        Whether this may be the garbage collector's doing.
    """
    return isinstance(sys.exc_info()[1], GeneratorExit)
