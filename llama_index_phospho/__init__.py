"""The phospho multimodal endpoint as an LLM of LlamaIndex, for ingestion and as tools."""

from phospho_multimodal import __version__

try:
    from llama_index_phospho.extractors import ImageDescriptionExtractor
    from llama_index_phospho.llms import Phospho
    from llama_index_phospho.multi_modal_llms import PhosphoMultiModal
    from llama_index_phospho.tools import PhosphoToolSpec
except ModuleNotFoundError as missing:
    # Only the framework's own absence: a broken installation has to tell what is broken.
    if missing.name not in {"llama_index", "llama_index.core"}:
        raise
    message = (
        "llama_index_phospho needs llama-index-core, which is not installed."
        " Install it with: pip install 'phospho-multimodal[llama-index]'"
    )
    raise ImportError(message) from missing

__all__ = [
    "ImageDescriptionExtractor",
    "Phospho",
    "PhosphoMultiModal",
    "PhosphoToolSpec",
    "__version__",
]
