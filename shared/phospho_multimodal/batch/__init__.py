"""Describe any number of images, with one row for each, across stops and kills."""

from __future__ import annotations

from phospho_multimodal.batch.api import BatchOptions, adescribe_many, describe_many
from phospho_multimodal.batch.pipeline.progress import Progress
from phospho_multimodal.batch.preflight import Preflight
from phospho_multimodal.batch.results.manifest import Summary

__all__ = [
    "BatchOptions",
    "Preflight",
    "Progress",
    "Summary",
    "adescribe_many",
    "describe_many",
]
