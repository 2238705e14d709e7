"""The phospho multimodal endpoint as a LangChain chat model."""

from phospho_multimodal import __version__

try:
    from langchain_phospho.chat_models import ChatPhospho
except ModuleNotFoundError as missing:
    # Only the framework's own absence: a broken installation has to tell what is broken.
    if missing.name != "langchain_core":
        raise
    message = (
        "langchain_phospho needs langchain-core, which is not installed."
        " Install it with: pip install 'phospho-multimodal[langchain]'"
    )
    raise ImportError(message) from missing

__all__ = ["ChatPhospho", "__version__"]
