"""`VisionLLM`: an LLM that reads only text, with descriptions of the images in its chat."""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llama_index.core.base.llms.types import (
    BaseContentBlock,
    BaseRecursiveContentBlock,
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    TextBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.tools import FunctionTool
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from typing_extensions import override

from llama_index_phospho.content import has_image, is_image_block
from llama_index_phospho.description_cache import DescriptionStore
from llama_index_phospho.image_describer import (
    Ask,
    ImageDescriber,
    Steps,
    arun_steps,
    run_steps,
)
from llama_index_phospho.llms import Phospho
from phospho_multimodal import ConfigurationError, PhosphoError
from phospho_multimodal.errors import FATAL_ERRORS
from phospho_multimodal.messages.untrusted_text import to_single_line, wrap_untrusted

if TYPE_CHECKING:
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool

__all__ = ["VisionLLM"]

_PROMPT = "Describe this image in detail, and write down the text that it shows."
_NAME = 8  # characters of a digest
_NAME_PATTERN = re.compile(f"[0-9a-f]{{{_NAME}}}")
_MAX_IMAGES = 256  # images that the tool knows

_LOOK_AGAIN = (
    "Look again at an image of the conversation, to find out what its description leaves out. Ask"
    " one question about one image."
)
_ImageName = Annotated[str, "The name of the image, which its description contains."]
_Question = Annotated[str, "What to find out, as one sentence that needs nothing else."]


class VisionLLM(FunctionCallingLLM):
    """Give an agent whose LLM reads only text descriptions of the images in its chat.

    In place of each image that a user uploads, or a tool returns, the LLM reads a description,
    which is delimited and marked as untrusted. The messages in the agent's memory keep their
    images. Each distinct image is described and billed once. The tool of `to_tool_list` answers new
    questions about an image, each of which is billed.

    If an image cannot be described, the LLM reads a note, and the next step tries again. Errors
    that every image would raise are raised: a wrong setting, the key, billing, the spending limit.

    Example:
        ```python
        llm = VisionLLM(llm=OpenAI(), describer=Phospho())
        agent = FunctionAgent(llm=llm, tools=llm.to_tool_list())
        blocks = [TextBlock(text="What is the total?"), ImageBlock(path="receipt.png")]
        answer = await agent.run(ChatMessage(blocks=blocks))
        ```
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    llm: LLM = Field(exclude=True, repr=False)
    """The LLM that answers."""
    describer: Phospho = Field(exclude=True, repr=False)
    """The model that describes; its `spending` is the limit."""
    prompt: str = _PROMPT
    """The prompt for each image."""
    store: str | None = None
    """A file for descriptions, as that of `ImageDescriptionExtractor`. By default, they stay in
    memory."""

    _store: DescriptionStore = PrivateAttr()
    _keys: dict[str, str] = PrivateAttr(default_factory=dict)
    _images: OrderedDict[str, BaseContentBlock] = PrivateAttr(default_factory=OrderedDict)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class in serialized objects."""
        return "phospho_vision_llm"

    @field_validator("store", mode="before")
    @classmethod
    def _absolute_path(cls, store: str | PathLike[str] | None) -> str | None:
        return None if store is None else str(Path(fspath(store)).absolute())

    def model_post_init(self, context: Any, /) -> None:
        """Open the store."""
        super().model_post_init(context)
        self._store = DescriptionStore(None if self.store is None else Path(self.store))

    @property
    def metadata(self) -> LLMMetadata:
        """The metadata of the LLM that answers."""
        return self.llm.metadata

    def to_tool_list(self) -> list[FunctionTool]:
        """Make the tool `look_again`, with which an agent asks about an image.

        Returns:
            A list of this tool. It knows the images that this object has seen. Their names are
            digests, so an agent can ask only about images whose names it has read.
        """
        tool = FunctionTool.from_defaults(
            fn=self.look_again,
            async_fn=self.alook_again,
            # By default it has the signature, with the types of this module.
            description=_LOOK_AGAIN,
        )
        return [tool]

    def look_again(self, image: _ImageName, question: _Question) -> str:
        """Answer a question about an image of the conversation."""
        return run_steps(self._looked_again(image, question))

    async def alook_again(self, image: _ImageName, question: _Question) -> str:
        """Do the same as `look_again`, async."""
        return await arun_steps(self._looked_again(image, question))

    # These methods have no callbacks, because the LLM that answers reports its own events.

    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self.llm.chat(run_steps(self._described(messages)), **kwargs)

    @override
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self.llm.stream_chat(run_steps(self._described(messages)), **kwargs)

    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await self.llm.achat(await arun_steps(self._described(messages)), **kwargs)

    @override
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        return await self.llm.astream_chat(await arun_steps(self._described(messages)), **kwargs)

    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self.llm.complete(prompt, formatted=formatted, **kwargs)

    @override
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        return self.llm.stream_complete(prompt, formatted=formatted, **kwargs)

    @override
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        return await self.llm.acomplete(prompt, formatted=formatted, **kwargs)

    @override
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        return await self.llm.astream_complete(prompt, formatted=formatted, **kwargs)

    @override
    def chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> ChatResponse:
        llm, given = self._with_tools(), run_steps(self._given(*args, **kwargs))
        return llm.chat_with_tools(tools, **given)

    @override
    def stream_chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> ChatResponseGen:
        llm, given = self._with_tools(), run_steps(self._given(*args, **kwargs))
        return llm.stream_chat_with_tools(tools, **given)

    @override
    async def achat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> ChatResponse:
        llm, given = self._with_tools(), await arun_steps(self._given(*args, **kwargs))
        return await llm.achat_with_tools(tools, **given)

    @override
    async def astream_chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        llm, given = self._with_tools(), await arun_steps(self._given(*args, **kwargs))
        return await llm.astream_chat_with_tools(tools, **given)

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list["ToolSelection"]:
        return self._with_tools().get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )

    @override
    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise NotImplementedError  # abstract in the base class; the LLM that answers has its own

    def _with_tools(self) -> FunctionCallingLLM:
        if isinstance(self.llm, FunctionCallingLLM):
            return self.llm
        message = (
            f"A {type(self.llm).__name__} accepts no tools. Nothing was sent. Use a ReActAgent, or"
            " an LLM that calls functions."
        )
        raise ConfigurationError(message)

    def _given(
        self,
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Steps[dict[str, Any]]:
        given = dict(
            zip(("verbose", "allow_parallel_tool_calls", "tool_required"), args, strict=False)
        )
        if isinstance(user_msg, ChatMessage):
            (user_msg,) = yield from self._described([user_msg])
        history = yield from self._described(chat_history or ())
        return {**given, **kwargs, "user_msg": user_msg, "chat_history": history}

    def _described(self, messages: Sequence[ChatMessage]) -> Steps[list[ChatMessage]]:
        """Copy messages with descriptions in place of their images."""
        run = ImageDescriber(self.describer, self.prompt, self._store, self._keys)
        described: list[ChatMessage] = []
        for message in messages:
            if not has_image([message]):
                described.append(message)
                continue
            blocks: list[Any] = []
            for block in message.blocks:
                blocks += yield from self._text_of(block, run)
            # LlamaIndex copies these images into the blocks of every message that it validates.
            rest = {k: v for k, v in message.additional_kwargs.items() if k != "images"}
            described.append(
                message.model_copy(update={"blocks": blocks, "additional_kwargs": rest})
            )
        return described

    def _text_of(self, block: Any, run: ImageDescriber) -> Steps[list[Any]]:
        if isinstance(block, BaseRecursiveContentBlock):
            texts: list[Any] = []
            for nested in block.nested_blocks:
                texts += yield from self._text_of(nested, run)
            return texts
        if not is_image_block(block):
            return [block]
        try:
            key, image = yield lambda: run.identify(block)
            name = key[:_NAME]
            self._keep(name, block)
            description = yield from run.describe(block, key, image)
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            note = f"[An image that could not be described: {to_single_line(str(error))}]"
            return [TextBlock(text=note)]
        text = "" if description is None else description.text
        return [TextBlock(text=wrap_untrusted(text, title=f"Image {name}"))]

    def _keep(self, name: str, block: BaseContentBlock) -> None:
        with self._lock:
            self._images[name] = block
            self._images.move_to_end(name)
            while len(self._images) > _MAX_IMAGES:
                self._images.popitem(last=False)

    def _looked_again(self, image: str, question: str) -> Steps[str]:
        found = _NAME_PATTERN.search(str(image).lower())  # models also write "Image 1a2b3c4d"
        name = found[0] if found else ""
        with self._lock:
            block = self._images.get(name)
        if block is None:
            return "No image has this name. The description of each image contains its name."
        try:
            response = yield Ask(self.describer, str(question), block)
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            return f"The image could not be read. {type(error).__name__}: {error}"
        return wrap_untrusted(response.text, title=f"The image {name}")
