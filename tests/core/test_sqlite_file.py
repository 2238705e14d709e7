"""A file of ours that many open at the same moment."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from phospho_multimodal.spending.sqlite import open_database, transaction

TABLES = ["CREATE TABLE IF NOT EXISTS notes (text TEXT)"]


def test_many_can_open_a_new_file_at_the_same_moment(tmp_path: Path):
    together = threading.Barrier(6)

    def open_and_write(path: Path) -> None:
        together.wait()
        database = open_database(path, TABLES)
        database.execute("INSERT INTO notes VALUES ('here')")
        database.close()

    # Opened without care, one round in ten failed with "database is locked".
    for round_number in range(40):
        path = tmp_path / f"{round_number}.db"
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(open_and_write, [path] * 6))

        database = open_database(path, TABLES)
        assert database.execute("SELECT COUNT(*) FROM notes").fetchone() == (6,)
        database.close()


def test_a_file_that_is_no_database_is_told_and_closed(tmp_path: Path):
    path = tmp_path / "notes.db"
    path.write_bytes(b"This is not a database. " * 50)

    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        open_database(path, TABLES)


def test_ctrl_c_while_the_file_is_held_leaves_it_free(tmp_path: Path, interrupt_after):
    path = tmp_path / "notes.db"
    database = open_database(path, TABLES)
    other = open_database(path, TABLES)
    other.execute("BEGIN IMMEDIATE")
    free_again = threading.Timer(0.3, other.execute, ("ROLLBACK",))
    free_again.start()

    interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt), transaction(database):
        pass
    free_again.join()

    assert not database.in_transaction
    with transaction(other):
        other.execute("INSERT INTO notes VALUES ('here')")
    database.close()
    other.close()
