"""`PhosphoImageBlobParser`: images become documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain_core.document_loaders import BaseBlobParser
from langchain_core.documents import Document
from langchain_core.documents.base import Blob

from langchain_phospho.chat_models import ChatPhospho
from langchain_phospho.errors import langchain_errors
from langchain_phospho.image_describer import ImageDescriber, ImageQuestion, answered
from langchain_phospho.message_images import require_chat_phospho
from phospho_multimodal import PhosphoError
from phospho_multimodal.images.numpy_arrays import NPY_MAGIC, image_from_npy
from phospho_multimodal.images.source import ImageSource, image_source

__all__ = ["PhosphoImageBlobParser"]

_NPY_TYPE = "application/x-npy"


class PhosphoImageBlobParser(BaseBlobParser):
    """Makes one document of each image, with its description as the text.

    The metadata of a document have `model_name`, `prompt`, the `source` if the blob has one, and
    the blob's own metadata. They are the same for the same image and prompt, so that `index()`
    skips unchanged documents. They are strings, which every vector store accepts.

    A parser pays only once for an image that occurs again with the same prompt, such as a logo on
    every page of a PDF. It keeps the newest 1024 descriptions and no image. It keeps no failures.

    The cost of an answer is not in the document. The model's callbacks get it as `cost_usd`,
    `attempts` and `request_id` in the `response_metadata` of `on_llm_end`. The logger
    `phospho_multimodal` writes it at INFO, and `Spending` keeps the sum.

    The type is read from the bytes, not from the blob's `mimetype`. Arrays that `numpy.save` wrote
    are accepted too, because some PDF parsers pass the images of a page in this form.

    Example:
        ```python
        parser = PhosphoImageBlobParser(ChatPhospho(base_url="http://127.0.0.1:8000"))
        (document,) = parser.lazy_parse(Blob.from_path("receipt.png"))
        ```
    """

    def __init__(self, model: ChatPhospho, *, prompt: str | None = None) -> None:
        """Open nothing yet.

        Args:
            model: The model that generates descriptions.
            prompt: The prompt for each image. Default: the model's `default_prompt`.

        Raises:
            PhosphoConfigurationError: The model is not a `ChatPhospho`, or it is wrapped.
        """
        self._model = require_chat_phospho(model, type(self).__name__)
        self.prompt = prompt
        self._describer = ImageDescriber(model)

    @property
    def model(self) -> ChatPhospho:
        """The model that generates descriptions."""
        return self._model

    def lazy_parse(self, blob: Blob) -> Iterator[Document]:
        """Describe one image.

        Args:
            blob: The image, in memory or as a path.

        Yields:
            Always exactly one document, because PDF parsers take the first one without a check.

        Raises:
            PhosphoModelError: The image cannot be read or described.
        """
        with langchain_errors():
            image = self._describer.recognize(_source(blob))
            if isinstance(image, PhosphoError):
                raise image
        prompt = self.prompt or self._model.default_prompt
        (outcome,) = self._describer.describe([ImageQuestion(image, prompt)])
        metadata: dict[str, Any] = {"model_name": self._model.model_name, "prompt": prompt}
        if blob.source is not None:  # some vector stores refuse None
            metadata["source"] = blob.source
        yield Document(answered(outcome).text, metadata={**metadata, **blob.metadata})


def _source(blob: Blob) -> ImageSource:
    data = blob.data
    if blob.mimetype == _NPY_TYPE or (isinstance(data, bytes) and data.startswith(NPY_MAGIC)):
        return image_source(image_from_npy(blob.as_bytes()))
    if data is None and blob.path is not None:
        return image_source(Path(blob.path))
    return image_source(blob.as_bytes())
