"""Sources that leave out some inputs of another source."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from phospho_multimodal.batch.sources.items import Item, Source, WrappedSource
from phospho_multimodal.batch.sources.remote import RemoteFile
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.images.quiet import without_pillow_warnings
from phospho_multimodal.images.source import check_file, image_source

__all__ = ["Limited", "LongerThan", "check_number"]

_HEAD = 64 * 1024  # bytes of a remote file that nearly always hold the size of the image


def check_number(name: str, value: object) -> None:
    """Reject a number that is not 1 or greater; `None` is fine."""
    if value is not None and not (isinstance(value, int) and value >= 1):
        message = f"{name} must be 1 or greater, got {value!r}. Nothing was sent."
        raise ConfigurationError(message)


class Limited(WrappedSource):
    """The first inputs of a source, to try a prompt on."""

    def __init__(self, source: Source, limit: int) -> None:
        """Wrap a source."""
        super().__init__(source, f"the first {limit:,} of {source.name}")
        self._limit = limit

    def __iter__(self) -> Iterator[Item]:
        return itertools.islice(self._source, self._limit)


class LongerThan(WrappedSource):
    """The images of a source whose shorter side is long enough.

    An image whose size cannot be read without decoding it, such as a URL that is passed on, stays.
    """

    def __init__(self, source: Source, min_size: int) -> None:
        """Wrap a source."""
        super().__init__(source)
        self._min_size = min_size
        self._left_out = 0

    @property
    def skipped(self) -> Counter[str]:
        """What the last pass left out."""
        reason = f"images below {self._min_size} pixels"
        return self._source.skipped + Counter({reason: self._left_out})

    def __iter__(self) -> Iterator[Item]:
        self._left_out = 0
        for item in self._source:
            size = None if item.image is None else _size_of(item.image)
            if size is not None and min(size) < self._min_size:
                self._left_out += 1
            else:
                yield item


def _size_of(image: object) -> tuple[int, int] | None:
    """Read the header of an image; `None` if that does not say the size."""
    if isinstance(image, RemoteFile):
        try:
            head = image.read(_HEAD)
        except OSError:
            return None
        return _read_size(head) or (_read_size(image) if len(head) == _HEAD else None)
    return _read_size(image)


def _read_size(image: object) -> tuple[int, int] | None:
    from PIL import Image  # noqa: PLC0415 - slow to load

    try:
        source = image_source(image)
        if source.url is not None:
            return None
        file: Any = source.value
        if source.form == "path":
            check_file(file)  # a pipe would block
        elif source.form == "pil":
            return int(file.width), int(file.height)
        else:
            content: Any = source.read()
            file = io.BytesIO(content)
        with without_pillow_warnings(), Image.open(file) as opened:
            return opened.width, opened.height
    except Exception:  # noqa: BLE001 - its row says what is wrong
        return None
