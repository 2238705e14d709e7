"""Make the images of the requests for one prompt: single images, tiles, or montages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from phospho_multimodal.errors import UnsupportedContentError
from phospho_multimodal.images.prepare import (
    LinkedImage,
    PreparedImage,
    SendableImage,
    prepare_source,
)
from phospho_multimodal.images.source import ImageSource
from phospho_multimodal.messages.conversation import ConversationPlan
from phospho_multimodal.settings import Settings

__all__ = ["Part", "Passed", "legend", "make_montage", "montage_warnings", "parts_of", "ready"]


@dataclass(frozen=True, slots=True)
class Passed:
    """The caller's image, and the fetched file if the image is a URL."""

    source: ImageSource
    fetched: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Part:
    """One request of several.

    Attributes:
        image: The image of the request.
        name: The heading of the answer to this request.
        note: A sentence about the image that follows the prompt.
        shown: The source images, for the metadata; without them, `image` itself.
    """

    image: SendableImage
    name: str
    note: str = ""
    shown: tuple[SendableImage, ...] = ()

    @property
    def images(self) -> tuple[SendableImage, ...]:
        """The images that the metadata lists."""
        return self.shown or (self.image,)


def parts_of(plan: ConversationPlan, passed: Sequence[Passed], settings: Settings) -> list[Part]:
    """Prepare one part for each request, in reading order."""
    if settings.detail == "auto":
        images = [ready(image, settings) for image in passed]
        return [Part(image, f"Image {number}") for number, image in enumerate(images, start=1)]
    if len(passed) > 1 and plan.policy != "each":
        return _montages(passed, settings)
    parts: list[Part] = []
    for number, image in enumerate(passed, start=1):
        parts += _tiles(image, f"Image {number}" if len(passed) > 1 else "", settings)
    return parts


def _tiles(image: Passed, name: str, settings: Settings) -> list[Part]:
    """Cut one image into tiles. The name and the prompt of each part contain its place."""
    from phospho_multimodal.images.tiles import tiles_of  # noqa: PLC0415 - loads Pillow

    tiles = tiles_of(
        image.source,
        max_side=settings.max_image_side,
        max_tiles=settings.max_tiles,
        fetched=image.fetched,
    )
    if len(tiles) == 1:
        return [Part(tiles[0], name or "Image 1")]
    parts: list[Part] = []
    for tile in tiles:
        place = next(change for change in tile.changes if change.startswith("tile "))
        title = f"{name}, {place}" if name else place.capitalize()
        note = (
            f"\nThe image is {place} of one larger image. Neighbouring tiles overlap, so a word"
            " that is cut off at an edge is whole on the next tile."
        )
        parts.append(Part(tile, title, note))
    return parts


def _montages(passed: Sequence[Passed], settings: Settings) -> list[Part]:
    """Distribute several images evenly over at most `max_tiles` montages."""
    count = min(settings.max_tiles, len(passed))
    bounds = [index * len(passed) // count for index in range(count + 1)]
    parts: list[Part] = []
    for begin, end in pairwise(bounds):
        group = passed[begin:end]
        if len(group) == 1:
            (image,) = _opened(group, settings)
            parts.append(Part(image, f"Image {begin + 1}"))
            continue
        montage_image, sources, _ = make_montage(group, settings, first=begin + 1)
        note = f"\n{legend(len(group), first=begin + 1)}"
        parts.append(Part(montage_image, f"Images {begin + 1} to {end}", note, tuple(sources)))
    return parts


def ready(image: Passed, settings: Settings) -> SendableImage:
    """Prepare one image."""
    return prepare_source(
        image.source,
        max_image_side=settings.max_image_side,
        prepare=settings.prepare,
        fetched=image.fetched,
    )


def make_montage(
    images: Sequence[Passed], settings: Settings, *, first: int = 1
) -> tuple[SendableImage, list[SendableImage], list[str]]:
    """Make a montage; return it with its source images and the warnings about small tiles."""
    from phospho_multimodal.images.montage import montage, too_small  # noqa: PLC0415 - loads Pillow

    prepared = _opened(images, settings)
    side = settings.max_image_side
    montage_image = montage(prepared, max_side=side, first=first)
    warning = too_small(prepared, max_side=side)
    return montage_image, [*prepared], [] if warning is None else [warning]


def montage_warnings(images: Sequence[Passed], settings: Settings) -> list[str]:
    """Return warnings if the tiles of a montage would be too small to read."""
    from phospho_multimodal.images.montage import too_small  # noqa: PLC0415 - loads Pillow

    warning = too_small(_opened(images, settings), max_side=settings.max_image_side)
    return [] if warning is None else [warning]


def legend(tiles: int, *, first: int = 1) -> str:
    """Explain the numbers on a montage in one sentence."""
    numbers = range(first, first + tiles)
    named = [f'"Image {number}" is the tile marked {number}' for number in numbers]
    return f"The image is a montage of {tiles} images: {', '.join(named)}."


def _opened(images: Sequence[Passed], settings: Settings) -> list[PreparedImage]:
    """Prepare the images of a montage."""
    prepared: list[PreparedImage] = []
    for passed in images:
        image = prepare_source(
            passed.source, max_image_side=settings.max_image_side, fetched=passed.fetched
        )
        if isinstance(image, LinkedImage):
            message = (
                f"A montage has to open its images, and one is a URL at {image.origin} that is"
                " passed on unopened. Nothing was sent. Set url_mode='fetch', or choose"
                " multi_image='each' for a request for each image."
            )
            raise UnsupportedContentError(message)
        prepared.append(image)
    return prepared
