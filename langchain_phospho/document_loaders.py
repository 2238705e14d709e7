"""`PhosphoImageBlobParser`: pictures become documents."""

from collections.abc import Iterator
from pathlib import Path

from langchain_core.document_loaders import BaseBlobParser
from langchain_core.documents import Document
from langchain_core.documents.base import Blob

from langchain_phospho.chat_models import ChatPhospho
from langchain_phospho.errors import langchain_errors
from langchain_phospho.pictures import message_about, prepared
from phospho_multimodal.images.arrays import NPY_MAGIC, image_from_npy
from phospho_multimodal.images.source import ImageSource, image_source

__all__ = ["PhosphoImageBlobParser"]

_NPY_TYPE = "application/x-npy"


class PhosphoImageBlobParser(BaseBlobParser):
    """Makes one document of each picture: its description, and what it cost in the metadata.

    The type is read from the bytes, whatever the blob says. Arrays that `numpy.save` wrote are
    taken too: so some parsers of PDF files hand over the pictures of a page.

    Example:
        ```python
        parser = PhosphoImageBlobParser(ChatPhospho(base_url="http://127.0.0.1:8000"))
        (document,) = parser.lazy_parse(Blob.from_path("receipt.png"))
        ```
    """

    def __init__(self, model: ChatPhospho, *, prompt: str | None = None) -> None:
        """Open nothing yet.

        Args:
            model: Who describes.
            prompt: What to ask about each picture; else the model's `default_prompt`.
        """
        self.model = model
        self.prompt = prompt

    def lazy_parse(self, blob: Blob) -> Iterator[Document]:
        """Describe one picture.

        Args:
            blob: The picture, in memory or as a path.

        Yields:
            One document, always: parsers of PDF files take the first without looking.

        Raises:
            PhosphoModelError: It cannot be read or described; it is the caller's to go on without.
        """
        with langchain_errors():
            source = _source(blob)
        question = message_about(
            prepared(source, self.model), self.prompt or self.model.default_prompt
        )
        answer = self.model.invoke([question])
        metadata = {**answer.response_metadata, **blob.metadata, "source": blob.source}
        yield Document(page_content=answer.text, metadata=metadata)


def _source(blob: Blob) -> ImageSource:
    data = blob.data
    if blob.mimetype == _NPY_TYPE or (isinstance(data, bytes) and data.startswith(NPY_MAGIC)):
        return image_source(image_from_npy(blob.as_bytes()))
    if data is None and blob.path is not None:
        return image_source(Path(blob.path))
    return image_source(blob.as_bytes())
