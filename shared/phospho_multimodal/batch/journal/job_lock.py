"""The lock of a job: one process at a time works on a journal, on any machine that sees it.

The operating system holds the lock. It works between containers and, on most network file systems,
between hosts, where a process id says nothing. The kernel frees it when its process dies. A record
beside the lock says who works on the job. A record that another machine left behind proves
nothing, because the locks of that machine may not reach this one.
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from phospho_multimodal.errors import ConfigurationError

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["JobLock"]

_LOCK_NAME = "_journal.lock"
_RECORD_NAME = "_journal.owner"  # not .json, which a dataset's reader would take for rows
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class JobLock:
    """The right to work on one job, from its creation until `release`."""

    def __init__(self, folder: Path, *, take_over: bool = False) -> None:
        """Take the lock of a folder, which exists, or report the process that has it."""
        self.token = uuid.uuid4().hex
        self._folder = folder
        self._record = folder / _RECORD_NAME
        self._lock = _acquire(folder, self._record)
        try:
            if not take_over:
                self._check_not_stale()
            self._write_record()
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let another process work on the job. The record of another process stays."""
        try:
            if _read(self._record).get("token") == self.token:
                self._record.unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _check_not_stale(self) -> None:
        left = _read(self._record)
        # On the same kernel the lock is the proof: the process that wrote the record has ended.
        if not left or left.get("kernel") == _kernel():
            return
        message = (
            f"{_describe(left)} began to work on the job in {self._folder} and did not end it"
            " properly. Whether it still runs cannot be seen from here. Nothing was sent. If it has"
            " ended, take the job over: --take-over, or take_over=True."
        )
        raise ConfigurationError(message)

    def _write_record(self) -> None:
        record = {
            "host": platform.node(),
            "kernel": _kernel(),
            "process": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "token": self.token,
        }
        new = self._record.with_name(f"{_RECORD_NAME}.new")
        new.write_text(json.dumps(record), encoding="utf-8")
        new.replace(self._record)


def _acquire(folder: Path, record: Path) -> BaseFileLock:
    try:
        from filelock import FileLock, Timeout  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as missing:
        message = (
            "A batch needs filelock, which is not installed: pip install"
            ' "phospho-multimodal[batch]".'
        )
        raise ImportError(message) from missing
    # The thread that opens a journal is not the one that closes it.
    lock = FileLock(folder / _LOCK_NAME, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        message = (
            f"{_describe(_read(record))} is at this job, in {folder}. Nothing was sent. Wait for"
            " it, or stop it."
        )
        raise ConfigurationError(message) from None
    except NotImplementedError as failure:
        raise OSError(str(failure)) from None
    return lock


def _read(record: Path) -> dict[str, object]:
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _describe(record: dict[str, object]) -> str:
    if not record:
        return "Another process"
    return (
        f"Another process ({record.get('process')} on {record.get('host')}, since"
        f" {record.get('since')})"
    )


def _kernel() -> str:
    """Name the kernel that runs now: containers on one host share it, and a restart ends it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()
