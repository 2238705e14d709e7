"""The package itself: what it exports, and what it says where the framework is missing."""

from __future__ import annotations

import pytest

import llama_index_phospho
import phospho_multimodal
from fresh_python import in_fresh_python

_WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import llama_index_phospho
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_it_exports_its_classes_and_the_version() -> None:
    assert llama_index_phospho.__all__ == [
        "ImageDescriptionExtractor",
        "ImageMemoryBlock",
        "Phospho",
        "PhosphoMultiModal",
        "PhosphoToolSpec",
        "VisionLLM",
        "__version__",
    ]
    assert llama_index_phospho.__version__ == phospho_multimodal.__version__


@pytest.mark.parametrize("absent", ["llama_index", "llama_index.core"])
def test_a_missing_framework_names_the_extra(absent: str) -> None:
    done = in_fresh_python(_WITHOUT.format(absent=absent))
    assert done.stdout.startswith("ImportError "), done.stderr
    assert "phospho-multimodal[llama-index]" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("absent", ["filetype", "llama_index.core.multi_modal_llms"])
def test_anything_else_that_is_missing_is_told_as_it_is(absent: str) -> None:
    done = in_fresh_python(_WITHOUT.format(absent=absent))
    assert done.stdout.startswith("ModuleNotFoundError "), done.stderr
    assert absent in done.stdout
    assert "llama-index]" not in done.stdout
