"""Images in tar archives, as webdataset writes them, read as a stream."""

from __future__ import annotations

import json
import lzma
import sqlite3
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from typing_extensions import Self

from phospho_multimodal.batch.sources.items import Item, count_skipped, is_image, printable
from phospho_multimodal.batch.sources.remote import AnyPath, failure_reason
from phospho_multimodal.errors import ConfigurationError, ImageError
from phospho_multimodal.images.source import MAX_IMAGE_BYTES

__all__ = ["ARCHIVE_SUFFIXES", "Archives"]

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""How the name of an archive ends."""

_UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
_MAX_FIELD_BYTES = 1024 * 1024


class _Header(tarfile.TarInfo):
    """A member's header that raises an error if it is broken.

    `tarfile` itself takes a broken header for the end of the archive and drops the rest silently.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except (_InvalidHeaderError, _TruncatedHeaderError) as broken:
            message = f"a broken header ({broken})"
            raise _ReadError(message) from None


# The argument above hides the module's names; two of them are in the module but not in __all__.
_ReadError = tarfile.ReadError
_InvalidHeaderError: type[Exception] = getattr(tarfile, "InvalidHeaderError")  # noqa: B009
_TruncatedHeaderError: type[Exception] = getattr(tarfile, "TruncatedHeaderError")  # noqa: B009


class Archives:
    """The images among the members of one archive or of several."""

    def __init__(
        self,
        shards: Sequence[tuple[str | None, AnyPath]],
        name: str,
        fields: Sequence[str] = (),
    ) -> None:
        """Check the fields against the first sample; nothing else is read yet."""
        self.name = name
        self.skipped: Counter[str] = Counter()
        self._shards = shards
        self._fields = frozenset(fields)
        first = next(iter(self), None) if fields else None
        unknown = [] if first is None else [f for f in fields if f not in first.fields]
        if unknown:
            message = (
                f"The first sample of the {name} has no field {unknown[0]!r}, neither in a .json"
                " member nor as a .txt member. Nothing was sent."
            )
            raise ConfigurationError(message)

    def __iter__(self) -> Iterator[Item]:
        self.skipped.clear()
        with closing(_Ids()) as ids:
            last = None
            for prefix, path in self._shards:
                if prefix != last:  # `a.tar` and `a.tar.gz` share one
                    ids.forget()
                    last = prefix
                for item in self._read(prefix, path):
                    yield ids.checked(item)

    def _read(self, prefix: str | None, path: AnyPath) -> Iterator[Item]:
        """Read one archive: the members of one key after the other, as webdataset has them."""
        last = key = ""
        items: list[Item] = []
        fields: dict[str, object] = {}
        try:
            file = path.open("rb")
        except OSError as failure:
            message = f"The archive {path} cannot be read: {failure_reason(failure)}."
            raise ConfigurationError(message) from None
        with file:
            try:
                with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
                    for member in archive:  # Python 3.10's next() fails in an empty archive
                        _forget_headers(archive)
                        last = member.name
                        if not member.isreg():
                            continue
                        if _key(last) != key:
                            yield from (replace(item, fields=fields) for item in items)
                            key, items, fields = _key(last), [], {}
                        if _is_wanted(last):
                            items.append(_item(prefix, path, archive, member))
                        elif self._fields and last.endswith((".json", ".txt")):
                            found = _fields_of(archive, member)
                            fields.update({n: found[n] for n in self._fields & found.keys()})
                        else:
                            count_skipped(self.skipped, last)
            except _UNREADABLE as failure:
                items.append(_rest(prefix, path, last, failure))
        yield from (replace(item, fields=fields) for item in items)


class _Ids:
    """The ids of one archive, in a temporary file: an archive may have a million members.

    Only the row of the second image with an id fails.
    """

    def __init__(self) -> None:
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
        """Return an image, or an item with an error for the second one with its id."""
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


def _forget_headers(archive: Any) -> None:
    """Drop the headers of earlier members, all of which `tarfile` keeps before Python 3.13."""
    archive.members.clear()


def _key(member: str) -> str:
    folder, slash, file = member.removeprefix("./").rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _is_wanted(member: str) -> bool:
    # A name that begins with a dot is not an image: macOS adds a ._a.jpg to each a.jpg.
    return is_image(member) and not PurePosixPath(member).name.startswith(".")


def _item(
    prefix: str | None, path: AnyPath, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> Item:
    name = member.name.removeprefix("./") if prefix is None else f"{prefix}/{_key(member.name)}"
    name = printable(name)
    source = f"{printable(str(path))}::{printable(member.name)}"
    stamp = f"{member.size}-{member.mtime}-{member.offset_data}"
    if member.size > MAX_IMAGE_BYTES:
        message = (
            f"The image has {member.size:,} bytes. The maximum is {MAX_IMAGE_BYTES:,}."
            " Shrink it first."
        )
        return Item(name, source, None, stamp, ImageError(message))
    try:
        data = _read_member(archive, member)
    except _UNREADABLE as failure:
        message = f"The member {source} cannot be read ({failure})."
        return Item(name, source, None, stamp, ImageError(message))
    if not data:
        return Item(name, source, None, stamp, ImageError("The image is empty: 0 bytes."))
    return Item(name, source, data, stamp)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    return b"" if content is None else content.read()


def _fields_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, object]:
    """Read the text of a `.txt` member, or the object of a `.json` member, if that is possible."""
    if member.size > _MAX_FIELD_BYTES:
        return {}
    text = _read_member(archive, member).decode("utf-8", "replace")
    if member.name.endswith(".txt"):
        return {"txt": text.strip()}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _rest(prefix: str | None, path: AnyPath, last: str, failure: Exception) -> Item:
    """Make the item for the unknown number of members that cannot be read."""
    source = f"{printable(str(path))}::"
    after = f" after {printable(last)}" if last else ""
    message = f"The archive {path} is broken{after}: {failure}. The members after that are missing."
    return Item(f"{prefix or path.name}/", source, None, None, ImageError(message))
