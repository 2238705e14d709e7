"""The files of the results: which are written, and the rows that they hold."""

from __future__ import annotations

from typing import Any

from phospho_multimodal.batch.journal.answers import Answers
from phospho_multimodal.batch.journal.schema import IS_DONE, ROWS

__all__ = ["Parts"]

_PRICE = "usd_per_image"
_COLUMNS = "columns"
_LAYOUT = "parts of 1000 to 50000 rows"  # where `part_of` puts a row


class Parts(Answers):
    """Reads rows, and notes the files that were written."""

    def is_finished(self, first: int, last: int) -> bool:
        """Return whether every input of a range of positions has its row."""
        with self._reading() as database:
            row = database.execute(
                f"SELECT 1 FROM inputs WHERE position BETWEEN ? AND ? AND NOT ({IS_DONE}) LIMIT 1",
                (first, last),
            ).fetchone()
        return row is None

    def rows(self, first: int, last: int) -> list[dict[str, Any]]:
        """Read the rows of a range of positions that are done, in their order."""
        with self._reading() as database:
            cursor = database.execute(ROWS, (first, last))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def parts(self) -> list[tuple[int, str, int, int, str]]:
        """List the files that were written: number, name, rows, bytes and sha256."""
        with self._reading() as database:
            return database.execute("SELECT * FROM parts ORDER BY number").fetchall()

    def add_part(self, number: int, name: str, rows: int, size: int, sha256: str) -> None:
        """Note a file that is on the disk."""
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)",
                (number, name, rows, size, sha256),
            )

    def check_parts(self, usd_per_image: str, columns: str) -> None:
        """Have all files written again if they hold another price, other columns or other rows."""
        facts = {_PRICE: usd_per_image, _COLUMNS: f"{columns} {_LAYOUT}"}
        with self._writing() as database:
            for name, value in facts.items():
                if self._fact(database, name) != value:
                    database.execute("DELETE FROM parts")
                    self._note(database, {name: value})

    def drop_part(self, number: int) -> None:
        """Have a file written again."""
        with self._writing() as database:
            database.execute("DELETE FROM parts WHERE number = ?", (number,))
