"""The phospho multimodal endpoint in LangChain: a chat model, and what is built on it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from langchain_phospho.document_loaders import PhosphoImageBlobParser
    from langchain_phospho.middleware import VisionMiddleware
    from langchain_phospho.tools import DescribeImageTool

__all__ = [
    "ChatPhospho",
    "DescribeImageTool",
    "PhosphoImageBlobParser",
    "VisionMiddleware",
    "__version__",
]

# Loaded when asked for: agents need an extra, and both take longer to load than the chat model.
_ON_DEMAND = {
    "DescribeImageTool": "tools",
    "PhosphoImageBlobParser": "document_loaders",
    "VisionMiddleware": "middleware",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    try:
        module = import_module(f"{__name__}.{_ON_DEMAND[name]}")
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in {"langchain", "langgraph"}:
            raise
        message = (
            f"{name} needs {missing.name}, which is not installed."
            " Install it with: pip install 'phospho-multimodal[agents]'"
        )
        raise ImportError(message) from missing
    return getattr(module, name)


def __dir__() -> list[str]:
    return list(__all__)
