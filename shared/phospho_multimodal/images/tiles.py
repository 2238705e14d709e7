"""Cut an image with small text into overlapping tiles, one for each request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phospho_multimodal.contract import DEFAULT_IMAGE_SIDE, DEFAULT_MAX_TILES
from phospho_multimodal.errors import ConfigurationError, ImageError, UnsupportedContentError
from phospho_multimodal.images.prepare import (
    PreparedImage,
    decode_image,
    encode_image,
    prepare_content,
)
from phospho_multimodal.images.source import ImageInput, ImageSource, image_source

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Grid", "plan_grid", "prepare_tiles", "tiles_of"]

_OVERLAP = 12
"""Neighboring tiles share a twelfth of their side, so that each word is whole on one of them."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Tiles in rows and columns over an image that may have to be shrunk for them.

    Attributes:
        width: The width of the image, in pixels.
        height: The height of the image, in pixels.
        columns: The number of tiles beside each other.
        rows: The number of tiles below each other.
        overlap: The pixels that neighboring tiles share.
    """

    width: int
    height: int
    columns: int
    rows: int
    overlap: int

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Left, top, right and bottom of each tile, in reading order."""
        lefts = _cuts(self.width, self.columns, self.overlap)
        tops = _cuts(self.height, self.rows, self.overlap)
        return [(left, top, right, bottom) for top, bottom in tops for left, right in lefts]

    def name(self, index: int) -> str:
        """Name a tile by its place."""
        row, column = divmod(index, self.columns)
        places = []
        if self.rows > 1:
            places.append(f"row {row + 1} of {self.rows}")
        if self.columns > 1:
            places.append(f"column {column + 1} of {self.columns}")
        return f"tile {index + 1} of {self.rows * self.columns}: {', '.join(places)}"


def plan_grid(size: tuple[int, int], *, max_side: int, max_tiles: int) -> Grid:
    """Find the grid that shrinks an image least, with as few tiles as possible."""
    overlap = min(max_side - 1, max(1, max_side // _OVERLAP))
    best, best_scale = Grid(*size, 1, 1, overlap), 0.0
    for columns in range(1, max_tiles + 1):
        for rows in range(1, max_tiles // columns + 1):
            widest = columns * max_side - (columns - 1) * overlap
            highest = rows * max_side - (rows - 1) * overlap
            scale = min(1.0, widest / size[0], highest / size[1])
            fewer = columns * rows < best.columns * best.rows
            if scale > best_scale + 1e-9 or (fewer and scale > best_scale - 1e-9):
                width, height = (max(1, int(side * scale)) for side in size)
                best, best_scale = Grid(width, height, columns, rows, overlap), scale
    return best


def prepare_tiles(
    image: ImageInput,
    *,
    max_image_side: int = DEFAULT_IMAGE_SIDE,
    max_tiles: int = DEFAULT_MAX_TILES,
) -> list[PreparedImage]:
    """Prepare the tiles of an image as the clients send them with `detail="tiles"`.

    Nothing is sent. Each tile is one billed request, so the length of the list gives the price.

    Args:
        image: A `pathlib.Path`, bytes, a binary file object, a PIL image, a `data:` URL or base64.
        max_image_side: The longest side of a tile, in pixels.
        max_tiles: The maximum number of tiles. If the image needs more, it is shrunk.

    Returns:
        The tiles in reading order. A small image is one tile, as from `prepare_image`.

    Raises:
        ImageError: The image cannot be read, or it is an http(s) URL, which is not opened here.
        ConfigurationError: `max_image_side` or `max_tiles` is below 1.
    """
    if max_image_side < 1 or max_tiles < 1:
        message = (
            f"max_image_side and max_tiles must be 1 or greater, got {max_image_side} and"
            f" {max_tiles}."
        )
        raise ConfigurationError(message)
    source = image_source(image)
    if source.url is not None:
        message = "An http(s) URL is not opened here. Download it and pass the file."
        raise ImageError(message)
    return tiles_of(source, max_side=max_image_side, max_tiles=max_tiles)


def tiles_of(
    source: ImageSource, *, max_side: int, max_tiles: int, fetched: bytes | None = None
) -> list[PreparedImage]:
    """Cut a source into tiles."""
    if source.url is not None and fetched is None:
        message = (
            f"detail='tiles' has to open the image, and it is a URL at {source.url_origin} that is"
            " passed on unopened. Nothing was sent. Set url_mode='fetch', or detail='auto'."
        )
        raise UnsupportedContentError(message)
    content = source.read() if fetched is None else fetched

    def longest(size: tuple[int, int]) -> int:
        # EXIF orientation may swap the sides later, which swaps columns and rows of the grid.
        grid = plan_grid(size, max_side=max_side, max_tiles=max_tiles)
        return max(grid.width, grid.height)

    pixels, lossless, changes = decode_image(content, longest)
    origin = source.url_origin
    grid = plan_grid(pixels.size, max_side=max_side, max_tiles=max_tiles)
    if grid.columns == grid.rows == 1:
        return [replace(prepare_content(content, source.form, max_side), origin=origin)]
    tiles: list[PreparedImage] = []
    for index, box in enumerate(grid.boxes()):
        part: Image = pixels.crop(box)
        changes_of_tile = (*changes, grid.name(index))
        tiles.append(
            replace(
                encode_image(part, source.form, changes_of_tile, lossless=lossless), origin=origin
            )
        )
    return tiles


def _cuts(length: int, count: int, overlap: int) -> list[tuple[int, int]]:
    """Cut a length into equal parts that overlap."""
    part = -(-(length + (count - 1) * overlap) // count)
    starts = [min(index * (part - overlap), length - part) for index in range(count)]
    return [(max(0, start), max(0, start) + min(part, length)) for start in starts]
