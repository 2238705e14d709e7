"""When asking on only makes failed rows: nobody is there to answer."""

from __future__ import annotations

from phospho_multimodal.errors import (
    APIStatusError,
    ConnectionFailedError,
    PhosphoError,
    ReplyLostError,
    UnexpectedReplyError,
)

__all__ = ["Outage"]

_MOST = 50
"""Questions in a row without one answer."""

_NO_ANSWER = (APIStatusError, ConnectionFailedError, ReplyLostError, UnexpectedReplyError)


class Outage:
    """Counts questions that failed in a way in which every other one may."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def note(self, error: PhosphoError | None) -> PhosphoError | None:
        """Note how a question ended.

        Args:
            error: Why it has no answer; `None` if it has one.

        Returns:
            The error, if there were so many in a row that no more shall be asked.
        """
        if not isinstance(error, _NO_ANSWER):
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        return error if self._in_a_row >= _MOST else None
