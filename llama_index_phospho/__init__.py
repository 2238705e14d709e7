"""The phospho multimodal endpoint as an LLM, an extractor and tools of LlamaIndex."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phospho_multimodal import __version__

try:
    from llama_index_phospho.llms import Phospho
    from llama_index_phospho.multi_modal_llms import PhosphoMultiModal
except ModuleNotFoundError as missing:
    # A broken installation must report what is broken.
    if missing.name not in {"llama_index", "llama_index.core"}:
        raise
    message = (
        "llama_index_phospho needs llama-index-core, which is not installed."
        " Install it with: pip install 'phospho-multimodal[llama-index]'"
    )
    raise ImportError(message) from missing

if TYPE_CHECKING:
    from llama_index_phospho.extractors import ImageDescriptionExtractor
    from llama_index_phospho.memory import ImageMemoryBlock
    from llama_index_phospho.tools import PhosphoToolSpec
    from llama_index_phospho.vision_llm import VisionLLM

__all__ = [
    "ImageDescriptionExtractor",
    "ImageMemoryBlock",
    "Phospho",
    "PhosphoMultiModal",
    "PhosphoToolSpec",
    "VisionLLM",
    "__version__",
]

# These are imported on first use, because an LLM does not need LlamaIndex's agents or extractors.
_LAZY = {
    "ImageDescriptionExtractor": "extractors",
    "ImageMemoryBlock": "memory",
    "PhosphoToolSpec": "tools",
    "VisionLLM": "vision_llm",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
