"""`PhosphoMultiModal`: `Phospho` where LlamaIndex requires a `MultiModalLLM`."""

from llama_index.core.multi_modal_llms import MultiModalLLM

from llama_index_phospho.llms import Phospho

__all__ = ["PhosphoMultiModal"]


class PhosphoMultiModal(Phospho, MultiModalLLM):  # type: ignore[misc] # both have metadata
    """The phospho multimodal endpoint as an LLM and as a multimodal LLM of LlamaIndex.

    It is a `Phospho` with a second base class. LlamaIndex accepts an LLM nearly everywhere, but a
    few places require `isinstance(llm, MultiModalLLM)`.

    Example:
        ```python
        llm = PhosphoMultiModal(base_url="http://127.0.0.1:8000")
        response = llm.complete("What is the total?", image_documents=[ImageBlock(path="a.png")])
        ```
    """

    # Define none of the eight methods here: `MultiModalLLM` decorates those of a subclass. Those of
    # `Phospho` are decorated already, and each event would be reported twice.

    @classmethod
    def class_name(cls) -> str:
        """Return a name with "multi", which LlamaIndex's multimodal index looks for."""
        return "phospho_multi_modal"
