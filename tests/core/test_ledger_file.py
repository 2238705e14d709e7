"""A ledger in a file: shared by processes, and right after any of them was killed."""

from __future__ import annotations

import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import time
from textwrap import dedent

import pytest

from phospho_multimodal import ConfigurationError, Spending, SpendingLimitError

CHILD = """
    import sys
    from phospho_multimodal import Spending, SpendingLimitError
    spending = Spending(max_images=int(sys.argv[2]), path=sys.argv[1])
    ends = ["bill", "release", "mark_in_doubt"]
    print("ready", flush=True)
    for step in range(int(sys.argv[3])):
        try:
            (reservation,) = spending.reserve()
        except SpendingLimitError:
            break
        print("+", flush=True)
        end = ends[step % 3]
        getattr(reservation, end)()
        print(end, flush=True)
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "spending.db"


def start(path: pathlib.Path, cap: int, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", dedent(CHILD), str(path), str(cap), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own code


def test_the_next_process_finds_the_ledger_again(path: pathlib.Path):
    first = Spending(path=path)
    first.reserve()[0].bill()
    first.reserve()[0].mark_in_doubt()

    snapshot = Spending(path=path).snapshot()

    assert (snapshot.images_billed, snapshot.images_in_doubt) == (1, 1)


def test_processes_share_the_cap(path: pathlib.Path):
    children = [start(path, cap=20, steps=200) for _ in range(4)]
    printed = [child.communicate(timeout=60)[0].split() for child in children]

    snapshot = Spending(path=path, max_images=20).snapshot()
    assert snapshot.images_billed == sum(lines.count("bill") for lines in printed)
    assert snapshot.images_in_doubt == sum(lines.count("mark_in_doubt") for lines in printed)
    assert snapshot.images_billed + snapshot.images_in_doubt == 20
    assert snapshot.images_reserved == 0


@pytest.mark.long
def test_a_process_killed_at_any_moment_leaves_a_ledger_that_can_be_read(path: pathlib.Path):
    randomness = random.Random(20)  # noqa: S311 - which moments, not which secrets
    billed = doubted = 0
    for _ in range(20):
        child = start(path, cap=10**9, steps=10**9)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(randomness.uniform(0.0, 0.03))
        child.send_signal(signal.SIGKILL)
        lines = child.stdout.read().split()  # not communicate: it loses what readline read ahead
        child.stdout.close()
        child.wait()
        billed += lines.count("bill")
        doubted += lines.count("mark_in_doubt")

    snapshot = Spending(path=path).snapshot()

    # Each killed process may have settled one image, or reserved one, that it could not tell of.
    assert billed <= snapshot.images_billed <= billed + 20
    assert doubted <= snapshot.images_in_doubt <= doubted + 20
    assert snapshot.images_reserved == 0


def test_what_a_dead_process_had_reserved_is_in_doubt_until_it_is_settled(path: pathlib.Path):
    child = subprocess.run(  # noqa: S603 - our own code
        [
            sys.executable,
            "-c",
            f"from phospho_multimodal import Spending; Spending(path={str(path)!r}).reserve(3)",
        ],
        check=True,
    )
    assert child.returncode == 0
    spending = Spending(path=path, max_images=3)

    assert (spending.snapshot().images_in_doubt, spending.snapshot().images_reserved) == (3, 0)
    with pytest.raises(SpendingLimitError):
        spending.reserve()
    snapshot = spending.settle(billed=2)

    assert (snapshot.images_billed, snapshot.images_in_doubt) == (2, 0)
    assert len(spending.reserve()) == 1


def test_what_a_living_process_has_reserved_is_not_in_doubt(path: pathlib.Path):
    spending = Spending(path=path)
    spending.reserve(2)

    other = Spending(path=path)
    other.settle()

    assert (other.snapshot().images_in_doubt, other.snapshot().images_reserved) == (0, 2)


def test_a_process_with_the_number_of_a_dead_one_is_another_one(path: pathlib.Path):
    spending = Spending(path=path)
    spending.reserve()
    with spending._ledger._transaction() as database:  # type: ignore[attr-defined]
        database.execute("UPDATE reservations SET owner = ?", (f"{os.getpid()}:12345",))

    assert spending.snapshot().images_in_doubt == 1


def test_it_pickles_by_its_path(path: pathlib.Path):
    spending = Spending(1, max_images=7, usd_per_image="0.02", path=path)
    spending.reserve()[0].bill()

    twin = pickle.loads(pickle.dumps(spending))  # noqa: S301 - our own
    twin.reserve()[0].bill()

    assert spending.snapshot() == twin.snapshot()
    assert spending.snapshot().images_billed == 2


def test_after_a_fork_both_sides_write_to_the_same_ledger(path: pathlib.Path):
    code = f"""
        import os
        from phospho_multimodal import Spending
        spending = Spending(path={str(path)!r})
        spending.reserve()[0].bill()
        child = os.fork()
        for _ in range(20):
            spending.reserve()[0].bill()
        if child:
            os.waitpid(child, 0)
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True)  # noqa: S603 - our own code

    assert Spending(path=path).snapshot().images_billed == 41


@pytest.mark.parametrize("content", [b"not a database at all, but long enough", b"\0" * 4096])
def test_a_file_that_is_no_ledger_is_told_of_at_once(path: pathlib.Path, content: bytes):
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"spending\.db cannot be used"):
        Spending(path=path)


def test_a_folder_that_is_not_there_is_told_of_at_once(tmp_path: pathlib.Path):
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Spending(path=tmp_path / "no" / "such" / "folder.db")
