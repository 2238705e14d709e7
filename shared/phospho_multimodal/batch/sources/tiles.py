"""A source whose images are cut into tiles, each of which is an input with a row of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from phospho_multimodal.batch.sources.items import Item, Source, WrappedSource
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.images.source import image_source
from phospho_multimodal.images.tiles import tiles_of
from phospho_multimodal.settings import Settings

__all__ = ["TiledSource"]


class TiledSource(WrappedSource):
    """Gives the tiles of another source's images, in reading order.

    An image that is small enough stays one input under its own id. So the number of inputs, and
    with it the price, is known when all of them are counted, which is before the first request.
    """

    def __init__(self, source: Source, settings: Settings) -> None:
        """Wrap a source.

        Args:
            source: The images.
            settings: Of the client: the size of tiles, and how many there may be.
        """
        super().__init__(source, f"{source.name}, in tiles")
        self._settings = settings

    def __iter__(self) -> Iterator[Item]:
        for item in self._source:
            yield from self._tiles(item)

    def _tiles(self, item: Item) -> Iterator[Item]:
        if item.error is not None:
            yield item
            return
        try:
            tiles = tiles_of(
                image_source(item.image),
                max_side=self._settings.max_image_side,
                max_tiles=self._settings.max_tiles,
            )
        except PhosphoError as error:
            yield replace(item, error=error, image=None)
            return
        if len(tiles) == 1:
            yield item
            return
        for number, tile in enumerate(tiles, start=1):
            name = f"tile {number} of {len(tiles)}"
            yield replace(
                item, id=f"{item.id}#{name}", source=f"{item.source} ({name})", image=tile.data
            )
