"""Pictures in tar archives, in the form of webdataset: read as a stream, a member at a time."""

from __future__ import annotations

import lzma
import sqlite3
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from typing_extensions import Self

from phospho_multimodal.batch.sources.items import Item, count_skipped, is_picture, printable
from phospho_multimodal.errors import ConfigurationError, ImageError
from phospho_multimodal.images.source import MAX_IMAGE_BYTES

__all__ = ["ARCHIVE_SUFFIXES", "Archives"]

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""What an archive's name ends with."""

_UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


class _Header(tarfile.TarInfo):
    """A member's header, of which a broken one is an error.

    `tarfile` itself takes it for the archive's end, and what follows would be missed in silence.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except (_InvalidHeaderError, _TruncatedHeaderError) as broken:
            message = f"a broken header ({broken})"
            raise _ReadError(message) from None


# Their names are hidden by the argument above; two are in the module, and not in its __all__.
_ReadError = tarfile.ReadError
_InvalidHeaderError: type[Exception] = getattr(tarfile, "InvalidHeaderError")  # noqa: B009
_TruncatedHeaderError: type[Exception] = getattr(tarfile, "TruncatedHeaderError")  # noqa: B009


class Archives:
    """The pictures among the members of one archive or of several."""

    def __init__(self, shards: Sequence[tuple[str | None, Path]], name: str) -> None:
        """Look at nothing yet.

        Args:
            shards: Each archive, and what stands before the ids of its members, which are then the
                keys of webdataset: names up to the first dot. `None` leaves their names whole.
            name: For messages.
        """
        self.name = name
        self.skipped: Counter[str] = Counter()
        self._shards = shards

    def __iter__(self) -> Iterator[Item]:
        self.skipped.clear()
        with closing(_Ids()) as ids:
            last = None
            for prefix, path in self._shards:
                if prefix != last:  # `a.tar` and `a.tar.gz` share one
                    ids.forget()
                    last = prefix
                for item in _members(prefix, path, self.skipped):
                    yield ids.checked(item)


class _Ids:
    """The ids of one archive: the second image with an id is a row that failed, and no more."""

    def __init__(self) -> None:
        # A temporary file of SQLite's own: an archive may have a million members.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def forget(self) -> None:
        """Begin another archive."""
        self._database.execute("DELETE FROM ids")

    def close(self) -> None:
        """Remove the temporary file."""
        self._database.close()

    def checked(self, item: Item) -> Item:
        """Pass an image on, or stand in for the second one with its id."""
        name, number = item.id, 1
        while not self._is_new(name):
            number += 1
            name = f"{item.id} (same id {number})"
        if number == 1:
            return item
        message = (
            f"The id {item.id!r} is that of an earlier image in this archive. Nothing was sent for"
            f" this one, {item.source}. Give it another name."
        )
        return Item(name, item.source, None, None, ImageError(message))

    def _is_new(self, name: str) -> bool:
        added = self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (name,))
        return added.rowcount == 1


def _members(prefix: str | None, path: Path, skipped: Counter[str]) -> Iterator[Item]:
    last = ""
    try:
        file = path.open("rb")
    except OSError as failure:
        message = f"The archive {path} cannot be read: {failure.strerror}."
        raise ConfigurationError(message) from None
    with file:
        try:
            with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
                for member in archive:  # Python 3.10's next() fails in one that is empty
                    _forget(archive)
                    last = member.name
                    if member.isreg() and _is_wanted(last):
                        yield _item(prefix, path, archive, member)
                    elif member.isreg():
                        count_skipped(skipped, last)
        except _UNREADABLE as failure:
            yield _rest(prefix, path, last, failure)


def _forget(archive: Any) -> None:
    """Drop the headers of members passed, all of which `tarfile` keeps before Python 3.13."""
    archive.members.clear()


def _is_wanted(member: str) -> bool:
    # What begins with a dot is no picture: macOS adds a ._a.jpg to each a.jpg.
    return is_picture(member) and not PurePosixPath(member).name.startswith(".")


def _item(
    prefix: str | None, path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> Item:
    name = printable(member.name.removeprefix("./"))
    source = f"{printable(str(path))}::{printable(member.name)}"
    if prefix is not None:
        folder, slash, file = name.rpartition("/")
        name = f"{prefix}/{folder}{slash}{file.partition('.')[0]}"
    stamp = f"{member.size}-{member.mtime}-{member.offset_data}"
    if member.size > MAX_IMAGE_BYTES:
        message = (
            f"The image has {member.size:,} bytes; at most {MAX_IMAGE_BYTES:,} are taken."
            " Shrink it first."
        )
        return Item(name, source, None, stamp, ImageError(message))
    try:
        content = archive.extractfile(member)
        data = b"" if content is None else content.read()
    except _UNREADABLE as failure:
        message = f"The member {source} cannot be read ({failure})."
        return Item(name, source, None, stamp, ImageError(message))
    if not data:
        return Item(name, source, None, stamp, ImageError("The image is empty: 0 bytes."))
    return Item(name, source, data, stamp)


def _rest(prefix: str | None, path: Path, last: str, failure: Exception) -> Item:
    """Stand for all that could not be read: nobody knows how much it was."""
    source = f"{printable(str(path))}::"
    after = f" after {printable(last)}" if last else ""
    message = f"The archive {path} is broken{after}: {failure}. What follows there is missing."
    return Item(f"{prefix or path.name}/", source, None, None, ImageError(message))
