"""`PhosphoMultiModal`: `Phospho`, for the places that ask for a `MultiModalLLM`."""

from llama_index.core.multi_modal_llms import MultiModalLLM

from llama_index_phospho.llms import Phospho

__all__ = ["PhosphoMultiModal"]


class PhosphoMultiModal(Phospho, MultiModalLLM):  # type: ignore[misc] # both have metadata
    """The phospho multimodal endpoint as an LLM and as a multimodal LLM of LlamaIndex.

    The same as `Phospho`, with a second base. Core takes an LLM nearly everywhere, also where it
    says multimodal; a few places assert `isinstance(llm, MultiModalLLM)`.

    Example:
        ```python
        llm = PhosphoMultiModal(base_url="http://127.0.0.1:8000")
        response = llm.complete("What is the total?", image_documents=[ImageBlock(path="a.png")])
        ```
    """

    # No method of the eight is defined here: `MultiModalLLM` decorates what it finds in a
    # subclass, those of `Phospho` are decorated already, and each event would fire twice.

    @classmethod
    def class_name(cls) -> str:
        """Name the class; core's multimodal index looks for "multi" in it."""
        return "phospho_multi_modal"
