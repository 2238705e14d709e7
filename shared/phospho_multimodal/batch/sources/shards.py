"""One share of a source, for jobs that divide it between machines without a cluster."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from phospho_multimodal.batch.sources.items import Item, Source, WrappedSource
from phospho_multimodal.errors import ConfigurationError

__all__ = ["Shard", "ShardedSource"]

_FORM = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


class Shard:
    """Shard `number` of `count`. The hash of an input's id decides which shard it belongs to."""

    def __init__(self, text: str) -> None:
        """Read `2/8`, or reject it."""
        found = _FORM.fullmatch(text)
        self.number, self.count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= self.number <= self.count:
            message = (
                f"shard must be 'i/n' with i from 1 to n, such as '2/8', got {text!r}. Nothing was"
                " sent."
            )
            raise ConfigurationError(message)

    @property
    def suffix(self) -> str:
        """The end of the name of its folder."""
        return f"-shard-{self.number}-of-{self.count}"

    def holds(self, name: str) -> bool:
        """Return whether an input belongs to this shard, by its id."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def share_of(self, images: int) -> int:
        """Return the share of a number of images. The shares of all shards add up to it."""
        return (images + self.count - self.number) // self.count


class ShardedSource(WrappedSource):
    """The inputs of one shard."""

    def __init__(self, source: Source, shard: Shard) -> None:
        super().__init__(source, f"shard {shard.number} of {shard.count} of {source.name}")
        self._shard = shard

    def __iter__(self) -> Iterator[Item]:
        return (item for item in self._source if self._shard.holds(item.id))
