"""`PhosphoToolSpec`: tools with which an agent asks about images."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from llama_index.core.tools import FunctionTool, ToolMetadata
from llama_index.core.tools.tool_spec.base import SPEC_FUNCTION_TYPE, BaseToolSpec
from typing_extensions import override

from llama_index_phospho.content import single_image
from llama_index_phospho.llms import Phospho
from phospho_multimodal import ConfigurationError, ImageError, PhosphoError
from phospho_multimodal.errors import FATAL_ERRORS
from phospho_multimodal.images.allowed_hosts import is_allowed
from phospho_multimodal.images.prepare import image_to_string
from phospho_multimodal.images.source import ImageSource, image_source
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT
from phospho_multimodal.messages.untrusted_text import wrap_untrusted

__all__ = ["PhosphoToolSpec"]

# The descriptions of the arguments for the agent model.
_ImageName = Annotated[
    str, "The name of an image, or its URL where URLs are allowed. Never its base64."
]
_Question = Annotated[
    str, "What you want to know, as one sentence that needs nothing else to be understood."
]

_SCHEMES = ("http://", "https://")
_QUOTED = 60  # characters of a wrong argument, which can be the base64 of an image


class PhosphoToolSpec(BaseToolSpec):
    """Two tools: describe an image, and ask about one.

    The agent passes the name of an image, or a URL at an allowed host. It never passes an image
    itself, because a model that writes base64 invents it. The answer is delimited and marked as
    untrusted, because an image can contain any text. If one image fails, the tool returns the error
    as text, and the agent continues. Errors that every image would raise are raised: a wrong
    setting, the spending limit, and the statuses 401, 402, 403, 404, 405 and 410. LlamaIndex's
    agents return them as the tool's answer.

    Example:
        ```python
        spec = PhosphoToolSpec(Phospho(), images={"receipt": Path("receipt.png")})
        agent = ReActAgent(llm=agent_llm, tools=spec.to_tool_list())
        ```
    """

    spec_functions: list[SPEC_FUNCTION_TYPE] = [  # noqa: RUF012 - as the base class has it
        ("describe_image", "adescribe_image"),
        ("ask_about_image", "aask_about_image"),
    ]

    def __init__(
        self,
        llm: Phospho,
        *,
        images: Mapping[str, Any] | None = None,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        """Make the tools for some images.

        Args:
            llm: The model that answers. Its `spending` is the limit.
            images: Images by the names that the agent uses: paths, bytes, PIL images, nodes,
                blocks, or anything else that the llm accepts. Each is opened when the agent asks
                about it.
            allowed_hosts: Hosts whose http(s) URLs the agent may pass, such as `"example.com"`, or
                `"example.com:8443"` for one port. By default none.

        Raises:
            ImageError: One of the images is not an image.
            ConfigurationError: `allowed_hosts` is a string, or a name is empty.
        """
        if isinstance(allowed_hosts, str):
            message = f"allowed_hosts must be a list of hosts, got the string {allowed_hosts!r}."
            raise ConfigurationError(message)
        self._llm = llm
        self._images = {name: _source(name, image) for name, image in (images or {}).items()}
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    def describe_image(self, image: _ImageName) -> str:
        """Describe an image: what it shows, and the text in it."""
        return self._answer(image, DEFAULT_PROMPT)

    async def adescribe_image(self, image: _ImageName) -> str:
        """Describe an image: what it shows, and the text in it."""
        return await self._aanswer(image, DEFAULT_PROMPT)

    def ask_about_image(self, image: _ImageName, question: _Question) -> str:
        """Ask one question about an image."""
        return self._answer(image, question)

    async def aask_about_image(self, image: _ImageName, question: _Question) -> str:
        """Ask one question about an image."""
        return await self._aanswer(image, question)

    @override
    def to_tool_list(
        self,
        spec_functions: list[SPEC_FUNCTION_TYPE] | None = None,
        func_to_metadata_mapping: dict[str, ToolMetadata] | None = None,
    ) -> list[FunctionTool]:
        """Make the tools. Their descriptions contain the names of the images."""
        tools = super().to_tool_list(spec_functions, func_to_metadata_mapping)
        for tool in tools:
            name = tool.metadata.get_name()
            if name not in (func_to_metadata_mapping or {}):
                # By default it has the signature, with the types of this module.
                purpose = getattr(self, name).__doc__
                tool.metadata.description = f"{purpose} {self._choices()}"
        return tools

    def _answer(self, image: str, question: str) -> str:
        try:
            title, ready = self._prepare(image)
            response = self._llm.complete(question, image_documents=[ready])
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            return _error_text(error)
        return wrap_untrusted(response.text, title=title)

    async def _aanswer(self, image: str, question: str) -> str:
        try:
            title, ready = await asyncio.to_thread(self._prepare, image)
            response = await self._llm.acomplete(question, image_documents=[ready])
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            return _error_text(error)
        return wrap_untrusted(response.text, title=title)

    def _prepare(self, image: str) -> tuple[str, str]:
        """Return a title, and a URL or base64, because LlamaIndex's events contain the image."""
        image = str(image)  # a model can write anything
        title = f"The image {image!r}"
        source = self._images.get(image)
        if source is None:
            if not image.lower().startswith(_SCHEMES):
                quoted = image if len(image) <= _QUOTED else f"{image[:_QUOTED]}…"
                message = (
                    f"There is no image named {quoted!r}. Base64, data: URLs and paths are not"
                    f" accepted. {self._choices()}"
                )
                raise ImageError(message)
            if not is_allowed(image, self._allowed_hosts):
                message = f"This URL is not allowed. {self._choices()}"
                raise ImageError(message)
            source = image_source(image)
            title = f"The image at {source.url_origin}"
        # The model makes tiles itself, from all pixels.
        whole = self._llm.prepare and self._llm.detail == "auto"
        return title, image_to_string(
            source, max_image_side=self._llm.max_image_side, prepare=whole
        )

    def _choices(self) -> str:
        names = ", ".join(repr(name) for name in self._images) or "none"
        hosts = ", ".join(sorted(self._allowed_hosts)) or "none"
        return f"Images by name: {names}. Hosts whose http(s) URLs are allowed: {hosts}."


def _source(name: str, image: Any) -> ImageSource:
    if not name.strip():
        message = "An image in images= has an empty name."
        raise ConfigurationError(message)
    return single_image(image)


def _error_text(error: PhosphoError) -> str:
    return f"The image could not be read. {type(error).__name__}: {error}"
