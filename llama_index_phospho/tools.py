"""`PhosphoToolSpec`: tools with which an agent looks at pictures."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from llama_index.core.tools import FunctionTool, ToolMetadata
from llama_index.core.tools.tool_spec.base import SPEC_FUNCTION_TYPE, BaseToolSpec
from typing_extensions import override

from llama_index_phospho.content import prompt_turns
from llama_index_phospho.llms import Phospho
from phospho_multimodal import ConfigurationError, ImageError, PhosphoError
from phospho_multimodal.errors import FATAL_ERRORS
from phospho_multimodal.images.allowed_hosts import is_allowed
from phospho_multimodal.images.prepare import image_to_string
from phospho_multimodal.images.source import ImageSource, image_source
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT
from phospho_multimodal.messages.untrusted_text import wrap_untrusted

__all__ = ["PhosphoToolSpec"]

# What an agent's model reads of the arguments.
_ImageName = Annotated[
    str, "The name of an image, or its URL where URLs are allowed. Never its base64."
]
_Question = Annotated[
    str, "What you want to know, as one sentence that needs nothing else to be understood."
]

_SCHEMES = ("http://", "https://")
_QUOTED = 60  # characters of an argument that is no image: it can be a picture's base64


class PhosphoToolSpec(BaseToolSpec):
    """Two tools: describe an image, and ask about one.

    The agent names a picture that it was given, or the URL of one at an allowed host. It never
    passes a picture itself: a model that writes base64 makes it up. The answer comes in a fence,
    marked as untrusted: a picture can say anything. What is wrong with one picture
    comes back as text, for the agent to go on with; what would be wrong with all of them is raised
    (a setting, a spending cap, 401, 402, 403, 404, 405 and 410), which core's agents turn into the
    tool's answer.

    Example:
        ```python
        spec = PhosphoToolSpec(Phospho(), images={"receipt": Path("receipt.png")})
        agent = ReActAgent(llm=driver, tools=spec.to_tool_list())
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
        """Make the tools of some pictures.

        Args:
            llm: Who looks at them; its `spending` is the cap.
            images: Pictures by the names that the agent uses: paths, bytes, PIL images, nodes,
                blocks, or whatever else the llm takes. They are opened when they are asked about.
            allowed_hosts: Hosts whose http(s) URLs the agent may name, each spelled out:
                `"example.com"`, or `"example.com:8443"` for that port. The default is none.

        Raises:
            ImageError: Something is no image.
            ConfigurationError: The hosts are one string, or a name is empty.
        """
        if isinstance(allowed_hosts, str):
            message = "allowed_hosts= is a list of hosts, and not one string."
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
        """Make the tools; their descriptions name the pictures."""
        tools = super().to_tool_list(spec_functions, func_to_metadata_mapping)
        for tool in tools:
            name = tool.metadata.get_name()
            if name not in (func_to_metadata_mapping or {}):
                # Without the signature, in which core would spell out the types of this module.
                purpose = getattr(self, name).__doc__
                tool.metadata.description = f"{purpose} {self._choices()}"
        return tools

    def _answer(self, image: str, question: str) -> str:
        try:
            title, ready = self._ready(image)
            response = self._llm.complete(question, image_documents=[ready])
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            return _told(error)
        return wrap_untrusted(response.text, title=title)

    async def _aanswer(self, image: str, question: str) -> str:
        try:
            title, ready = await asyncio.to_thread(self._ready, image)
            response = await self._llm.acomplete(question, image_documents=[ready])
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            return _told(error)
        return wrap_untrusted(response.text, title=title)

    def _ready(self, image: str) -> tuple[str, str]:
        """Make of an agent's argument a title, and a URL or base64, which core's events hold."""
        image = str(image)  # whatever a model wrote
        title = f"The image {image!r}"
        source = self._images.get(image)
        if source is None:
            if not image.lower().startswith(_SCHEMES):
                quoted = image if len(image) <= _QUOTED else f"{image[:_QUOTED]}…"
                message = (
                    f"There is no image named {quoted!r}, and neither base64, a data: URL nor a"
                    f" path is taken. {self._choices()}"
                )
                raise ImageError(message)
            if not is_allowed(image, self._allowed_hosts):
                message = f"This URL is not allowed. {self._choices()}"
                raise ImageError(message)
            source = image_source(image)
            title = f"The image at {source.url_origin}"
        # The model makes tiles itself, of all the pixels that there are.
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
    ((source,),) = (
        turn.images for turn in prompt_turns("", formatted=None, image_documents=[image])
    )
    return source


def _told(error: PhosphoError) -> str:
    return f"The image could not be looked at. {type(error).__name__}: {error}"
