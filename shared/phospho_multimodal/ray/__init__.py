"""Describe images on a Ray cluster: all workers share one spending limit, one rate and one journal.

`cli` and `batch/api.py` may import this folder, which needs the extra `ray`.

    import ray.data
    from phospho_multimodal.ray import DescribeImages, open_accounts

    images = ray.data.read_images("/mnt/photos", include_paths=True, mode="RGB")
    with open_accounts("described", "What is in the image?", max_usd=25) as accounts:
        rows = DescribeImages.on(images, accounts, column="image")
        rows.drop_columns(["image"]).write_parquet("/mnt/rows")  # captions, not pixels
        print(accounts.snapshot())

Ray schedules the work and restarts workers. The coordinator, one actor on the driver's node, keeps
what is asked, what it may cost and each answer, in the journal that a batch keeps too. The same
call resumes a job and pays nothing twice. To skip the reading of finished rows as well, use Ray's
checkpointing or an anti-join with the results.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phospho_multimodal.ray.accounts import Accounts, open_accounts
    from phospho_multimodal.ray.coordinator import Snapshot
    from phospho_multimodal.ray.describe_images import DescribeImages

__all__ = ["Accounts", "DescribeImages", "Snapshot", "open_accounts"]

_MODULES = {
    "Accounts": "accounts",
    "DescribeImages": "describe_images",
    "Snapshot": "coordinator",
    "open_accounts": "accounts",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used, because Ray is heavy."""
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    check_ray()
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def check_ray() -> None:
    """Raise `ImportError` if Ray or its data library is not installed."""
    for name in ("ray", "pyarrow", "numpy", "pandas"):  # what ray[data] brings
        if importlib.util.find_spec(name) is None:
            message = (
                f"Work over a Ray cluster needs {name}, which is not installed: pip install"
                ' "phospho-multimodal[ray]".'
            )
            raise ImportError(message)
