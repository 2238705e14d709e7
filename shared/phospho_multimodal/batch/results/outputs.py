"""What a job writes besides its rows and its manifest, as its options describe it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.results.captions import Captions
from phospho_multimodal.batch.results.details import RowDetails
from phospho_multimodal.batch.results.upload import Upload
from phospho_multimodal.batch.sources.inputs import Inputs
from phospho_multimodal.batch.sources.remote import RemoteFile
from phospho_multimodal.batch.sources.select import Source

__all__ = ["Outputs"]


class Outputs:
    """The details of rows, the captions beside images, and the copy in a remote store."""

    def __init__(
        self,
        journal: Journal,
        inputs: Inputs,
        source: Source,
        target: RemoteFile | None,
        options: Mapping[str, Any],
    ) -> None:
        """Open what the options ask for."""
        folder = journal.path.parent
        self.details = self.upload = self._captions = None
        if inputs.keep or inputs.own_prompts:
            self.details = RowDetails(folder, inputs.keep, prompts=bool(inputs.own_prompts))
        if target is not None:
            self.upload = Upload(target, folder, journal)
        sidecar = options.get("sidecar")
        if sidecar is not None:
            overwrite = bool(options.get("overwrite"))
            self._captions = Captions(source, sidecar, journal, overwrite=overwrite)

    def check(self) -> None:
        """Open every output once before anything is paid; raise what `finish` would raise."""
        if self._captions is not None:
            self._captions.check()
        if self.upload is not None:
            self.upload.check()

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the captions, and copy the files that are left."""
        if self._captions is not None:
            self._captions.write(rows)
        if self.upload is not None:
            self.upload.finish()

    def close(self) -> None:
        """Close the files that are open."""
        if self.details is not None:
            self.details.close()
