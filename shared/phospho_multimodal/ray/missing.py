"""Is Ray there?"""

from __future__ import annotations

import importlib.util

__all__ = ["check_ray"]


def check_ray() -> None:
    """Look whether Ray and its data library are installed.

    Raises:
        ImportError: Something is missing.
    """
    for name in ("ray", "pyarrow", "numpy", "pandas"):  # what ray[data] brings
        if importlib.util.find_spec(name) is None:
            message = (
                f"Work over a Ray cluster needs {name}, which is not installed: pip install"
                ' "phospho-multimodal[ray]".'
            )
            raise ImportError(message)
