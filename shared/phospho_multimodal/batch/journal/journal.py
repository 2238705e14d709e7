"""The journal as a whole, and its counts. `resume.py` opens it after a kill."""

from __future__ import annotations

from collections.abc import Sequence

from phospho_multimodal.batch.journal.inputs import Inputs
from phospho_multimodal.batch.journal.parts import Parts
from phospho_multimodal.batch.journal.resume import JOURNAL_NAME, PART_ROWS
from phospho_multimodal.batch.journal.schema import IS_TILE, is_done
from phospho_multimodal.batch.journal.steps import JobCounts, State

__all__ = ["JOURNAL_NAME", "PART_ROWS", "Journal"]

_SPANS = 100  # of the working time, in the plots of the report


class Journal(Inputs, Parts):
    """The journal of one job; see `JournalFile` for its owner. It counts what it holds."""

    def tally(self) -> JobCounts:
        """Count everything."""
        with self._reading() as database:
            inputs, broken = database.execute(
                "SELECT COUNT(*), COUNT(error_class) FROM inputs"
            ).fetchone()
            by_state = dict(
                database.execute(
                    "SELECT state, COUNT(*) FROM inputs JOIN answers USING (picture)"
                    " WHERE inputs.error_class IS NULL GROUP BY state"
                ).fetchall()
            )
            pictures, billed, in_doubt, attempts, answers = database.execute(
                f"SELECT COUNT(*) - TOTAL({IS_TILE}), TOTAL(images_billed), TOTAL(images_in_doubt),"
                " TOTAL(attempts), TOTAL(MAX(images_billed, attempts > 0 AND"
                f" state >= {State.DESCRIBED:d}))"
                " FROM answers"
            ).fetchone()
        return JobCounts(
            inputs=inputs,
            described=by_state.get(State.DESCRIBED, 0),
            failed=broken + by_state.get(State.FAILED, 0),
            in_doubt=by_state.get(State.IN_DOUBT, 0),
            pictures=int(pictures),
            images_billed=int(billed),
            images_in_doubt=int(in_doubt),
            attempts=int(attempts),
            answers=int(answers),
        )

    def error_classes(self) -> dict[str, int]:
        """Count failed inputs by the class of their error."""
        with self._reading() as database:
            return dict(
                database.execute(
                    "SELECT COALESCE(inputs.error_class, answers.error_class) AS class, COUNT(*)"
                    " FROM inputs LEFT JOIN answers USING (picture) WHERE inputs.error_class IS NOT"
                    f" NULL OR state = {State.FAILED:d}"
                    " GROUP BY class ORDER BY COUNT(*) DESC, class"
                ).fetchall()
            )

    def in_doubt(self, limit: int) -> list[str]:
        """Return the ids of at most `limit` inputs that are in doubt."""
        with self._reading() as database:
            found = database.execute(
                "SELECT id FROM inputs JOIN answers USING (picture) WHERE inputs.error_class"
                f" IS NULL AND state = {State.IN_DOUBT:d} ORDER BY position LIMIT ?",
                (limit,),
            ).fetchall()
        return [name for (name,) in found]

    def duplicates(self) -> int:
        """Count inputs that were described by the answer to another one."""
        with self._reading() as database:
            return self._count(
                database,
                "SELECT COUNT(*) - COUNT(DISTINCT picture) FROM inputs JOIN answers USING (picture)"
                f" WHERE inputs.error_class IS NULL AND answers.state = {State.DESCRIBED:d}",
            )

    def distinct_to_ask(self, again: Sequence[State] = ()) -> tuple[int, int]:
        """Count distinct files whose inputs have no row, or one that is sent again.

        Returns:
            The files, and the requests that they need.
        """
        # Answered digests are listed once. Looking for each input among its duplicates would take
        # a day if half a million inputs show the same image.
        states = ", ".join(str(int(s)) for s in State if s >= State.DESCRIBED and s not in again)
        with self._reading() as database:
            files, requests = database.execute(
                "SELECT COUNT(*), TOTAL(requests) FROM (SELECT MAX(requests) AS requests"
                f" FROM inputs WHERE NOT ({is_done(again)}) AND (file_digest IS NULL OR"
                " file_digest NOT IN (SELECT done.file_digest FROM inputs AS done"
                " JOIN answers USING (picture) WHERE done.file_digest IS NOT NULL"
                f" AND answers.state IN ({states})))"
                " GROUP BY COALESCE(file_digest, 'size ' || size, 'input ' || position))",
            ).fetchone()
        return int(files), int(requests)

    def course(self, worked: float) -> list[tuple[float, int, int, int]]:
        """Return the course of the job: spans of the working time, without pauses.

        Args:
            worked: The working time of all runs, in seconds.

        Returns:
            For each span in which answers ended: its seconds, images billed and in doubt, and rows.
        """
        width = max(1.0, worked / _SPANS)
        with self._reading() as database:
            found = database.execute(
                "SELECT SUM(images_billed), SUM(images_in_doubt), SUM(shown) FROM answers LEFT JOIN"
                " (SELECT picture, COUNT(*) AS shown FROM inputs GROUP BY picture) USING (picture)"
                " WHERE ended IS NOT NULL"
                " GROUP BY CAST(ended / ? AS INTEGER) ORDER BY CAST(ended / ? AS INTEGER)",
                (width, width),
            ).fetchall()
        return [(width, billed, in_doubt, rows or 0) for billed, in_doubt, rows in found]
