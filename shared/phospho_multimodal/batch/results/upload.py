"""Results in a remote store: a job works in a local folder, and copies its finished files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import uuid
from pathlib import Path

from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.sources.remote import (
    RemoteFile,
    StorageOptions,
    failure_reason,
    is_url,
    open_url,
)
from phospho_multimodal.errors import ConfigurationError

__all__ = ["OWNER_NAME", "Upload", "open_output"]

logger = logging.getLogger("phospho_multimodal")

OWNER_NAME = "_upload.owner"  # not .json, which a dataset's reader would take for rows
_UPLOADED = "uploaded"
_OWNER = "upload_owner"
_PUBLISHED = ("part-*", "_manifest.json", "README.md", "_report.html")
_LEFT_OF_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]")  # a path has one of two slashes left


def open_output(
    out: str | os.PathLike[str],
    journal: str | os.PathLike[str] | None,
    storage_options: StorageOptions | None,
) -> tuple[Path, RemoteFile | None]:
    """Find out where a job works, and where its results go."""
    text = os.fspath(out)
    if is_url(text):
        name = hashlib.sha256(text.rstrip("/").encode()).hexdigest()[:16]
        local = _state_folder() / name if journal is None else Path(journal)
        return local, open_url(text, storage_options)
    message = ""
    if _LEFT_OF_URL.match(text):
        message = f"The output {text!r} is a path that was a URL. Pass the URL as a text."
    elif journal is not None:
        message = (
            "journal= is for an output that is a URL. In a local folder, the journal is there."
        )
    if message:
        message += " Nothing was sent."
        raise ConfigurationError(message)
    return Path(text), None


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(base or Path.home() / ".local" / "state") / "phospho-multimodal" / "jobs"


class Upload:
    """Copies the finished files of a job to a remote folder, which one journal owns."""

    def __init__(self, target: RemoteFile, folder: Path, journal: Journal) -> None:
        """Look at nothing yet."""
        self.target = target
        self._folder = folder
        self._journal = journal
        self._uploaded: dict[str, str] = json.loads(journal.fact(_UPLOADED) or "{}")

    def check(self) -> None:
        """Write to the remote folder once before anything is paid."""
        mine = self._journal.fact(_OWNER) or f"{socket.gethostname()}:{self._folder}:{uuid.uuid4()}"
        owner = self.target / OWNER_NAME
        try:
            theirs = owner.read_bytes().decode("utf-8", "replace") if owner.exists() else ""
            if not theirs:
                owner.write_bytes(mine.encode())
            names = {Path(str(info["name"])).name for info in self.target.list()}
        except OSError as failure:
            message = (
                f"The output {self.target} cannot be written: {failure_reason(failure)}."
                " Nothing was sent."
            )
            raise ConfigurationError(message) from None
        if theirs and theirs != mine:
            host, _, folder = theirs.rpartition(":")[0].partition(":")
            message = (
                f"{self.target} holds the results of a job whose journal is on {host}, in {folder}."
                " Nothing was sent. Run it there, pass journal= of that job, or choose another"
                " output."
            )
            raise ConfigurationError(message)
        self._journal.note(_OWNER, mine)
        self._uploaded = {name: key for name, key in self._uploaded.items() if name in names}

    def try_to_copy(self) -> None:
        """Copy the finished files; a failure is logged, and the next call tries again."""
        try:
            self._copy()
        except OSError as failure:
            logger.warning("Copying to %s failed: %s", self.target, failure_reason(failure))

    def finish(self) -> None:
        """Copy all that is left."""
        try:
            self._copy()
        except OSError as failure:
            message = (
                f"The results are in {self._folder}, and copying them to {self.target} failed:"
                f" {failure_reason(failure)}. The same call copies them, and pays nothing again."
            )
            raise ConfigurationError(message) from None

    def _copy(self) -> None:
        files = {path.name: path for kind in _PUBLISHED for path in self._folder.glob(kind)}
        before = dict(self._uploaded)
        try:
            for name, path in sorted(files.items()):
                status = path.stat()
                key = f"{status.st_size}-{status.st_mtime_ns}"
                if self._uploaded.get(name) != key:
                    (self.target / name).upload(path)
                    self._uploaded[name] = key
            for name in self._uploaded.keys() - files.keys():
                (self.target / name).unlink(missing_ok=True)
                del self._uploaded[name]
        finally:
            if self._uploaded != before:
                self._journal.note(_UPLOADED, json.dumps(self._uploaded))
