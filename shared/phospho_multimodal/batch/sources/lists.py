"""Lists of images, and paths or URLs on standard input."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TextIO

from phospho_multimodal.batch.sources.items import Item, make_item, printable
from phospho_multimodal.batch.sources.tables import ReadOptions
from phospho_multimodal.errors import ConfigurationError

__all__ = ["Lines", "Listed"]


class Listed:
    """Images, or (id, image) pairs, of a collection that the caller keeps."""

    def __init__(self, images: Iterable[Any], options: ReadOptions) -> None:
        """Check that the collection can be iterated several times in the same order."""
        what = type(images).__name__
        message = ""
        if isinstance(images, (bytes, bytearray, memoryview)) or not hasattr(images, "__iter__"):
            message = f"A {what} is not a source of images. Pass a path, or a list of images."
        elif isinstance(images, AbstractSet):
            message = "A set has another order in each process. Pass a sorted list."
        elif iter(images) is images:
            message = f"A {what} can be iterated once, and a batch iterates twice. Pass a list."
        if message:
            message += " Nothing was sent."
            raise ConfigurationError(message)
        self.name = f"{what} of images"
        self.skipped: Counter[str] = Counter()
        self._images = images
        self._options = options

    @property
    def first(self) -> Any:
        """The first image; a collection with places is not iterated for it."""
        images = self._images
        if isinstance(images, Sequence):
            return images[0] if images else None
        return next(iter(images.values() if isinstance(images, Mapping) else images), None)

    def __iter__(self) -> Iterator[Item]:
        images = self._images.items() if isinstance(self._images, Mapping) else self._images
        options = self._options
        for number, entry in enumerate(images):
            name, image = f"{number:09d}", entry
            if isinstance(entry, tuple) and len(entry) == 2:  # noqa: PLR2004 - a pair
                name, image = printable(str(entry[0])), entry[1]
            yield make_item(name, image, options.root, options.storage_options)


class Lines:
    """A path or URL a line, kept in a file without a name: standard input can be read once."""

    def __init__(self, stdin: TextIO, options: ReadOptions) -> None:
        """Read all lines."""
        self.name = "standard input"
        self.skipped: Counter[str] = Counter()
        self._options = options
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        weakref.finalize(self, self._file.close)
        binary = getattr(stdin, "buffer", None)
        if binary is not None:  # names that are not UTF-8 as they are
            shutil.copyfileobj(binary, self._file)
        else:
            self._file.writelines(line.encode("utf-8", "surrogateescape") for line in stdin)

    def __iter__(self) -> Iterator[Item]:
        options = self._options
        number = position = 0
        while True:
            self._file.seek(position)
            line = self._file.readline()
            if not line:
                return
            position += len(line)
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if text.strip():
                yield make_item(f"{number:09d}", text, options.root, options.storage_options)
                number += 1
