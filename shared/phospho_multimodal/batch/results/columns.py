"""The columns of the results."""

from __future__ import annotations

__all__ = ["COLUMNS"]

COLUMNS = {
    "id": "string",
    "source": "string",
    "description": "string",
    "status": "string",
    "error_class": "string",
    "error": "string",
    "attempts": "int32",
    "cost_usd": "float64",
    "images_in_doubt": "int32",
    "duplicate_of": "string",
    "sha256": "string",
    "width": "int32",
    "height": "int32",
    "seconds": "float64",
    "prompt_id": "string",
    "model": "string",
    "time": "timestamp",
    "removed": "bool_",
}
"""The columns of a row and their types, by their names in Arrow."""
