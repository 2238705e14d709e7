"""A montage puts several images on one labelled image, so that one image is billed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from phospho_multimodal.errors import UnsupportedContentError
from phospho_multimodal.images.decode import encode
from phospho_multimodal.images.prepare import PreparedImage

__all__ = ["Tile", "lay_out", "montage", "too_small"]

_GAP = 8
"""White pixels around every tile."""
_LABELS_IN_A_SIDE = 42
_SMALLEST_LABEL = 16
_SMALLEST_TILE = 32
"""The shortest useful longest side of a tile, in pixels."""
_HALVINGS = 16
"""Steps of the binary search for the common factor, which make it exact to a pixel."""

_MOST_PHOTOS = 9
"""The most images on one montage that leave enough detail."""
_LETTERS_IN_A_SIDE = 120
"""The number of printed letters that are as high as a page, one above the other."""
_LEAST_LETTER = 8
"""The least readable height of a letter, in pixels."""
_PAGE_RATIOS = ((1.27, 1.31), (1.38, 1.46), (1.9, 100.0))
"""The ratios of the sides of US Letter, A4, and receipts or long pages. No camera has these."""


@dataclass(frozen=True, slots=True)
class Tile:
    """The place of an image on the montage, in pixels, below the strip with its number."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Images in rows that are as wide as possible."""

    sizes: Sequence[tuple[int, int]]
    rows: list[list[int]]
    label: int

    def tile_sizes(self, width: int) -> list[list[tuple[int, int]]]:
        """Size the tiles of each row for a montage of this width. No image is enlarged."""
        return [self._row(row, width) for row in self.rows]

    def _row(self, row: list[int], width: int) -> list[tuple[int, int]]:
        free = width - _GAP * (len(row) + 1)
        height = max(0.0, free / sum(self.sizes[i][0] / self.sizes[i][1] for i in row))
        tiles = []
        for i in row:
            original_width, original_height = self.sizes[i]
            # Rounding errors must not cost a pixel: 145 × 0.2 is 29 pixels.
            scale = min(1.0, height / original_height) * (1 + 1e-12)
            tiles.append((int(original_width * scale), int(original_height * scale)))
        return tiles

    def height(self, width: int) -> int:
        """Return the height of a montage of this width."""
        rows = self.tile_sizes(width)
        return _GAP + sum(max(h for _, h in row) + self.label + _GAP for row in rows)

    def widest(self, max_side: int) -> int:
        """Find the greatest width at which neither side exceeds the limit."""
        low, high = 0, max_side
        while low < high:
            middle = (low + high + 1) // 2
            if self.height(middle) <= max_side:
                low = middle
            else:
                high = middle - 1
        return low

    def shrinking(self, width: int) -> tuple[float, float]:
        """Return the scale of the most shrunk image and the sum of all scales; more is better."""
        rows = zip(self.rows, self.tile_sizes(width), strict=True)
        scales = [
            size[0] / self.sizes[i][0]
            for row, tiles in rows
            for i, size in zip(row, tiles, strict=True)
        ]
        return min(scales), sum(scales)


def montage(images: Sequence[PreparedImage], *, max_side: int, first: int = 1) -> PreparedImage:
    """Put images on one montage in their order, each below a strip with its number."""
    tiles, size = lay_out([(image.width, image.height) for image in images], max_side)
    label = _label(max_side)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=label * 0.8)
    for number, (image, tile) in enumerate(zip(images, tiles, strict=True), start=first):
        strip = (tile.left, tile.top - label, tile.left + tile.width - 1, tile.top - 1)
        pen.rectangle(strip, fill="black")
        middle = (tile.left + tile.width / 2, tile.top - label / 2)
        pen.text(middle, str(number), fill="white", font=font, anchor="mm")
        canvas.paste(_scaled(image, (tile.width, tile.height)), (tile.left, tile.top))
    data, kind = encode(canvas, lossless=all(image.format == "PNG" for image in images))
    changes = (f"{len(images)} images on one montage", f"written as {kind}")
    return PreparedImage(data, kind, *canvas.size, form="pil", changes=changes)


def too_small(images: Sequence[PreparedImage], *, max_side: int) -> str | None:
    """Return a warning if the tiles of a montage are too small to read."""
    advice = "Choose multi_image='each' or 'auto' for a request for each image."
    tiles, _ = lay_out([(image.width, image.height) for image in images], max_side)
    longest = [
        max(tile.width, tile.height)
        for image, tile in zip(images, tiles, strict=True)
        if _is_page(image) and tile.width < image.width
    ]
    if longest and min(longest) < _LEAST_LETTER * _LETTERS_IN_A_SIDE:
        letter = min(longest) / _LETTERS_IN_A_SIDE
        return (
            f"A document on the montage has {min(longest)} pixels, so that letters of usual print"
            f" have about {letter:.0f} and may be unreadable. {advice}"
        )
    if len(images) > _MOST_PHOTOS:
        return f"The montage has {len(images)} images, so that details may be lost. {advice}"
    return None


def _is_page(image: PreparedImage) -> bool:
    """Tell whether an image is a page or a screenshot, by its proportions or lossless format."""
    ratio = max(image.width, image.height) / min(image.width, image.height)
    return image.format == "PNG" or any(low <= ratio <= high for low, high in _PAGE_RATIOS)


def lay_out(sizes: Sequence[tuple[int, int]], max_side: int) -> tuple[list[Tile], tuple[int, int]]:
    """Find the largest tiles for images in rows, in their order, and the size of the montage.

    Of all ways to break the images into rows, choose the one that shrinks the most shrunk image
    least, since that image is the hardest to read.
    """
    label = _label(max_side)
    layouts = [_Layout(sizes, rows, label) for rows in _breaks(sizes)]
    layout = max(layouts, key=lambda layout: layout.shrinking(layout.widest(max_side)))
    tiles, canvas = _placed(layout.tile_sizes(layout.widest(max_side)), label)
    if not all(map(_can_be_seen, tiles, sizes)):
        # In rows of equal width, a small image between large ones can become invisible.
        tiles, canvas = _placed(_shelves(sizes, max_side, label), label)
    if max(canvas) > max_side or not all(map(_can_be_seen, tiles, sizes)):
        message = (
            f"{len(sizes)} images do not fit on a montage of {max_side} pixels. Nothing was sent."
            " Raise max_image_side=, or choose multi_image='each'."
        )
        raise UnsupportedContentError(message)
    return tiles, canvas


def _placed(
    rows: Sequence[Sequence[tuple[int, int]]], label: int
) -> tuple[list[Tile], tuple[int, int]]:
    """Put rows of tile sizes below each other; return the tiles and the size of the montage."""
    tiles: list[Tile] = []
    top = _GAP
    for row in rows:
        left = _GAP
        top += label
        for width, height in row:
            tiles.append(Tile(left, top, width, height))
            left += width + _GAP
        top += max(height for _, height in row) + _GAP
    right = max(tile.left + tile.width for tile in tiles) + _GAP
    return tiles, (right, top)


def _shelves(
    sizes: Sequence[tuple[int, int]], max_side: int, label: int
) -> list[list[tuple[int, int]]]:
    """Shrink all images by one factor, as little as possible, but keep each visible."""
    low, high = 0.0, 1.0
    best = _shelved(sizes, low, max_side)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rows = _shelved(sizes, middle, max_side)
        if max(_placed(rows, label)[1]) <= max_side:
            low, best = middle, rows
        else:
            high = middle
    return best


def _shelved(
    sizes: Sequence[tuple[int, int]], scale: float, max_side: int
) -> list[list[tuple[int, int]]]:
    rows: list[list[tuple[int, int]]] = []
    left = max_side  # no tile fits behind this, so the first tile starts a row
    for width, height in sizes:
        factor = min(1.0, max(scale, _SMALLEST_TILE / max(width, height)))
        tile = (max(1, round(width * factor)), max(1, round(height * factor)))
        if left + tile[0] + _GAP > max_side:
            rows.append([])
            left = _GAP
        rows[-1].append(tile)
        left += tile[0] + _GAP
    return rows


def _can_be_seen(tile: Tile, size: tuple[int, int]) -> bool:
    longest = max(tile.width, tile.height)
    return min(tile.width, tile.height) > 0 and longest >= min(_SMALLEST_TILE, max(size))


def _label(max_side: int) -> int:
    return max(_SMALLEST_LABEL, max_side // _LABELS_IN_A_SIDE)


def _breaks(sizes: Sequence[tuple[int, int]]) -> Iterator[list[list[int]]]:
    """Break a sequence into rows of about equal width, for every possible number of rows.

    Each row is filled up to a limit. The limits to try are the widths of runs of images.
    """
    ratios = [width / height for width, height in sizes]
    limits = {sum(ratios[i:j]) for i in range(len(ratios)) for j in range(i + 1, len(ratios) + 1)}
    seen: set[tuple[int, ...]] = set()
    for limit in sorted(limits):
        rows: list[list[int]] = [[]]
        filled = 0.0
        for i, ratio in enumerate(ratios):
            if rows[-1] and filled + ratio > limit + 1e-9:
                rows.append([])
                filled = 0.0
            rows[-1].append(i)
            filled += ratio
        lengths = tuple(map(len, rows))
        if lengths not in seen:
            seen.add(lengths)
            yield rows


def _scaled(image: PreparedImage, size: tuple[int, int]) -> Image.Image:
    opened = Image.open(io.BytesIO(image.data), formats=(image.format,))
    if image.format == "JPEG":
        opened.draft(None, size)
    opened.load()
    return opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
