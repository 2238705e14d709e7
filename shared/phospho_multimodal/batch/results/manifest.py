"""The manifest: the counts, the cost and the digest of a job, in one file with its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phospho_multimodal._version import __version__
from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.results.rows import MANIFEST_NAME, Results
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.spending.budget import Spending

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MANIFEST_NAME", "WORKED", "Summary", "write_manifest"]

WORKED = "seconds"
"""The name under which the journal keeps how long all runs have worked."""

_CARD_NAME = "README.md"
_CARD = """\
---
configs:
- config_name: default
  data_files: "part-*.{kind}"
---

Descriptions written by phospho-multimodal. `datasets.load_dataset` and `pyarrow` read this folder.
"""
_LISTED = 100  # ids in doubt that the manifest names; the results have them all


@dataclass(frozen=True)
class Summary:
    """The counts, the cost and the files of a job, over all of its runs.

    Attributes:
        folder: Where the results, the journal and the manifest are.
        manifest: All that `_manifest.json` says.
        url: Where the same files are in a store, if the output is a URL.
    """

    folder: Path
    manifest: Mapping[str, Any]
    url: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the summary of a job that ended, for example with an error.

        Args:
            folder: Of the job, inside the folder for results.

        Returns:
            The same that a call which ends well returns.

        Raises:
            ConfigurationError: No job has ended there.
        """
        try:
            manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError) as failure:
            message = f"{folder} holds no {MANIFEST_NAME} of a job: {failure}."
            raise ConfigurationError(message) from None
        return cls(folder, manifest)

    @property
    def inputs(self) -> int:
        """How many there are."""
        return int(self.manifest["inputs"])

    @property
    def described(self) -> int:
        """Inputs with an answer."""
        return int(self.manifest["statuses"]["described"])

    @property
    def failed(self) -> int:
        """Inputs with an error."""
        return int(self.manifest["statuses"]["failed"])

    @property
    def in_doubt(self) -> int:
        """Inputs that may have been billed, without an answer."""
        return int(self.manifest["statuses"]["in_doubt"])

    @property
    def pending(self) -> int:
        """Inputs without a row: the job was stopped before."""
        return int(self.manifest["statuses"]["pending"])

    @property
    def removed(self) -> int:
        """Inputs among these that the source does not hold any more; their rows say so."""
        return int(self.manifest.get("removed", 0))

    @property
    def images_billed(self) -> int:
        """The images that were billed."""
        return int(self.manifest["images_billed"])

    @property
    def images_in_doubt(self) -> int:
        """The images that may have been billed without an answer."""
        return int(self.manifest["images_in_doubt"])

    @property
    def cost_usd(self) -> float:
        """The price of the billed images in dollars."""
        return float(self.manifest["cost_usd"])

    @property
    def parts(self) -> Sequence[Path]:
        """The files of the results, in their order."""
        return [self.folder / part["name"] for part in self.manifest["results"]["parts"]]

    def __str__(self) -> str:
        told = self.manifest
        gone = f"{self.removed:,} rows of removed inputs are kept\n" if self.removed else ""
        rest = f", {self.pending:,} not asked yet" if self.pending else ""
        return (
            f"{self.inputs:,} inputs: {self.described:,} described, {self.failed:,} failed,"
            f" {self.in_doubt:,} in doubt{rest}\n"
            f"{self.images_billed:,} images billed, ${told['cost_usd']:,.2f};"
            f" {self.images_in_doubt:,} in doubt, ${told['cost_in_doubt_usd']:,.2f};"
            f" saved by sending equal images once: {told['duplicates']:,} images,"
            f" ${told['saved_by_deduplication_usd']:,.2f}\n"
            f"{gone}Results in {self.url or self.folder}"
        )


def write_manifest(
    folder: Path,
    job: Job,
    journal: Journal,
    results: Results,
    spending: Spending,
    *,
    kind: str,
    seconds: float,
) -> Summary:
    """Write the manifest of a job."""
    journal.keep_replaced()
    parts = results.write_rest()
    tally = journal.tally()
    price = spending.usd_per_image
    journal.note(WORKED, str(seconds))
    began = journal.fact("began") or _now()
    journal.note("began", began)
    duplicates = journal.duplicates()
    manifest: dict[str, Any] = {
        "prompt_id": job.prompt_id,
        **job.to_dict(),
        "created": began,
        "finished": _now(),
        "version": __version__,
        "inputs": tally.inputs,
        "statuses": {
            "described": tally.described,
            "failed": tally.failed,
            "in_doubt": tally.in_doubt,
            "pending": tally.pending,
        },
        "error_classes": journal.error_classes(),
        "in_doubt": journal.in_doubt(_LISTED),
        "removed": journal.count_removed(),
        "distinct_pictures": tally.pictures,
        "duplicates": duplicates,
        "images_billed": tally.images_billed,
        "images_in_doubt": tally.images_in_doubt,
        "usd_per_image": float(price),
        "cost_usd": float(tally.images_billed * price),
        "cost_in_doubt_usd": float(tally.images_in_doubt * price),
        "saved_by_deduplication_usd": float(duplicates * price),
        "attempts": tally.attempts,
        "seconds": round(seconds, 3),
        "runs": journal.run,
        "results": {"format": kind, "parts": parts, "digest": results.digest()},
    }
    _write(folder / MANIFEST_NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    # Without it, a reader of datasets takes the manifest for one of the files with rows.
    if parts and kind == "jsonl":
        _write(folder / _CARD_NAME, _CARD.format(kind=kind))
    else:  # pyarrow reads a folder of Parquet whole, and would stumble over a text
        (folder / _CARD_NAME).unlink(missing_ok=True)
    return Summary(folder, manifest)


def _write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as failure:
        message = f"The manifest {path} cannot be written: {failure.strerror or failure}."
        raise ConfigurationError(message) from None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
