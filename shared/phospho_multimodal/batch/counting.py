"""Counting the inputs of a source before anything is paid, and finding the files that are equal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from phospho_multimodal.batch.job import digest_prompt
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import InputRecord
from phospho_multimodal.batch.results.digests import digest_file
from phospho_multimodal.batch.sources.archives import ARCHIVE_SUFFIXES
from phospho_multimodal.batch.sources.items import NoInputsError, describe_skipped
from phospho_multimodal.batch.sources.rows import TABLE_SUFFIXES
from phospho_multimodal.batch.sources.select import Item, Source
from phospho_multimodal.batch.sources.signed_urls import without_signature
from phospho_multimodal.errors import ConfigurationError, ImageError, PhosphoError
from phospho_multimodal.images.source import ImageInput, check_file, image_source
from phospho_multimodal.settings import Settings

__all__ = ["count_inputs"]

_TOGETHER = 256


def count_inputs(
    source: Source,
    journal: Journal,
    settings: Settings,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[int], None] = lambda _: None,
    *,
    is_limited: bool = False,
) -> None:
    """Note every input of a source in the journal, and digest files of equal size.

    A file is read only if another file has its size, or if `detail="tiles"` needs its dimensions.
    If `stopped` returns `True`, the next run counts the rest. If the source `is_limited`, inputs
    of earlier runs that it does not hold are not removed.
    """
    # An item may hold an image of fifty megabytes, so only its record is kept.
    entries = (_record(item, settings) for item in source)
    found = 0
    while chunk := list(islice(entries, _TOGETHER)):
        found += len(chunk)
        journal.add(chunk)
        report(found)
        if stopped():
            return
    if not found:  # all inputs of an earlier run would count as removed
        raise _nothing_found(source)
    if not is_limited:  # inputs after the limit were not removed
        journal.end_counting()
    _digest_files(source, journal, stopped)


def _nothing_found(source: Source) -> NoInputsError:
    skipped = describe_skipped(source.skipped)
    message = f"There is no image in: {source.name}. Nothing was sent."
    if skipped:
        message += f" Left out: {skipped}."
    kinds = [
        suffix
        for suffix in (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)
        if f"{suffix} files" in source.skipped
    ]
    if kinds:
        message += f" Tables and archives of a folder are named by a pattern: 'folder/*{kinds[0]}'."
    return NoInputsError(message)


def _record(item: Item, settings: Settings) -> InputRecord:
    digest = _digest_held(item.image)
    # The content of an image proves more than its stamp: many archives have no times.
    stamp = item.stamp if digest is None else digest.hex()
    if item.prompt is not None and (stamp or not isinstance(item.image, os.PathLike)):
        stamp = f"{stamp or ''}#{digest_prompt(item.prompt).hex()}"
    digest = digest and _with_prompt(digest, item.prompt)
    requests = _count_tiles(item, settings) if settings.detail == "tiles" else 1
    return InputRecord(item.id, item.source, stamp, item.file_size, digest, requests)


def _with_prompt(digest: bytes, prompt: str | None) -> bytes:
    """Digest an image with its prompt: with two prompts, one file is paid for twice."""
    return digest if prompt is None else hashlib.sha256(digest + digest_prompt(prompt)).digest()


def _count_tiles(item: Item, settings: Settings) -> int:
    """Count the requests of an image by its dimensions, without decoding its pixels."""
    from phospho_multimodal.images.decode import open_image  # noqa: PLC0415 - loads Pillow
    from phospho_multimodal.images.tiles import plan_grid  # noqa: PLC0415 - loads Pillow

    if item.error is not None or item.image is None:
        return 1
    try:
        source = image_source(item.image)
        if source.url is not None:
            if settings.url_mode == "pass":
                raise _unopened_url(source.url_origin)
            return settings.max_tiles  # its size is known when it is fetched
        if source.form == "file" and not item.image.seekable():  # type: ignore[union-attr]
            return settings.max_tiles
        content = source.read()
        size = (open_image(content) if isinstance(content, bytes) else content).size
    except ConfigurationError:
        raise
    except PhosphoError:  # its row has the error
        return 1
    grid = plan_grid(size, max_side=settings.max_image_side, max_tiles=settings.max_tiles)
    return grid.columns * grid.rows


def _unopened_url(origin: str | None) -> ConfigurationError:
    return ConfigurationError(
        f"detail='tiles' has to open each image, and one is a URL at {origin} that is passed on"
        " unopened. Nothing was sent. Choose url_mode='fetch', or detail='auto'."
    )


def _digest_held(image: ImageInput | None) -> bytes | None:
    """Digest an image that is in memory, or open: nothing else shows that it changed."""
    if image is None or isinstance(image, os.PathLike):
        return None
    if isinstance(image, str):
        return hashlib.sha256(without_signature(image).encode("utf-8", "surrogatepass")).digest()
    try:
        picture = image_source(image)
        if picture.form == "file" and not image.seekable():  # type: ignore[union-attr]
            return None  # it can be read once, and has to be sent
        content = picture.read()
        if isinstance(content, bytes):
            return hashlib.sha256(content).digest()
        facts = (content.mode, content.size, content.getpalette(), content.info.get("transparency"))
        digest = hashlib.sha256(repr(facts).encode())
        digest.update(content.tobytes())
    except Exception:  # noqa: BLE001 - an object of the user's; its row has the error
        return None
    return digest.digest()


def _digest_files(source: Source, journal: Journal, stopped: Callable[[], bool]) -> None:
    if not journal.has_undigested():  # a second pass through an archive would read all of it
        return
    files = _files(source)
    while chunk := dict(islice(files, _TOGETHER)):
        alike = journal.undigested(list(chunk))
        found = []
        for name in alike:
            if stopped():
                return
            path, prompt = chunk[name]
            digest = _digest(path)
            if digest is not None:
                found.append((_with_prompt(digest, prompt), name))
        journal.add_digests(found)


def _files(source: Source) -> Iterator[tuple[str, tuple[os.PathLike[str], str | None]]]:
    for item in source:
        if isinstance(item.image, os.PathLike):
            yield item.id, (item.image, item.prompt)


def _digest(path: os.PathLike[str]) -> bytes | None:
    """Digest a file, unless it cannot be read or is not an image; its row has the error."""
    try:
        check_file(Path(path))  # a pipe has the size of every empty file
        with open(path, "rb") as file:  # noqa: PTH123 - any path
            return bytes.fromhex(digest_file(file)[1])
    except (ImageError, OSError):
        return None
