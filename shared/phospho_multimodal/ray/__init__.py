"""Describing pictures on a Ray cluster: one cap, one rate, one journal for all of its workers.

    import ray.data
    from phospho_multimodal.ray import DescribeImages, open_accounts

    pictures = ray.data.read_images("/mnt/photos", include_paths=True, mode="RGB")
    with open_accounts("described", "What is in the picture?", max_usd=25) as accounts:
        DescribeImages.on(pictures, accounts, column="image").write_parquet("/mnt/rows")
        print(accounts.snapshot())

Ray schedules the work. What is asked, what it may cost and what came of it is kept by an actor on
the node of the driver, in the same journal that a batch keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phospho_multimodal.ray.accounts import Accounts, open_accounts
    from phospho_multimodal.ray.describe_images import DescribeImages
    from phospho_multimodal.ray.told import Snapshot

__all__ = ["Accounts", "DescribeImages", "Snapshot", "open_accounts"]


def __getattr__(name: str) -> Any:
    """Load what is asked for; what needs no Ray is there without it."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from phospho_multimodal.ray import missing  # noqa: PLC0415

    missing.check_ray()
    from phospho_multimodal.ray import accounts, describe_images, told  # noqa: PLC0415

    found = {
        "Accounts": accounts.Accounts,
        "DescribeImages": describe_images.DescribeImages,
        "Snapshot": told.Snapshot,
        "open_accounts": accounts.open_accounts,
    }
    globals().update(found)
    return found[name]
