"""Describing many pictures: any number of inputs, one row each, whatever happens on the way."""

from __future__ import annotations

from phospho_multimodal.batch.describe import BatchOptions, adescribe_many, describe_many
from phospho_multimodal.batch.manifest import Summary
from phospho_multimodal.batch.preflight import Preflight
from phospho_multimodal.batch.progress import Progress

__all__ = [
    "BatchOptions",
    "Preflight",
    "Progress",
    "Summary",
    "adescribe_many",
    "describe_many",
]
