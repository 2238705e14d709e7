"""`VisionLLM`: an LLM that reads text only, and is told what the images of a chat show."""

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
from llama_index_phospho.llms import Phospho
from llama_index_phospho.paid_once import Ask, PaidOnce, Steps, arun_steps, run_steps
from phospho_multimodal import ConfigurationError, PhosphoError
from phospho_multimodal.errors import FATAL_ERRORS
from phospho_multimodal.messages.untrusted_text import to_single_line, wrap_untrusted

if TYPE_CHECKING:
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool

__all__ = ["VisionLLM"]

_PROMPT = "Describe this image in detail, and write down the text that it shows."
_NAME = 8  # characters of a digest
_WRITTEN = re.compile(f"[0-9a-f]{{{_NAME}}}")
_MOST_IMAGES = 256  # images that can be asked about again

_LOOK_AGAIN = (
    "Look again at an image of the conversation, to find out what its description leaves out. Ask"
    " one question about one image."
)
_Image = Annotated[str, "The name of the image, as its description tells it."]
_Question = Annotated[str, "What to find out, as one sentence that needs nothing else."]


class VisionLLM(FunctionCallingLLM):
    """Give an agent whose LLM reads text only descriptions of the images in its chat.

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
    """The LLM that answers. Its metadata are those of this one."""
    describer: Phospho = Field(exclude=True, repr=False)
    """The model that describes; its `spending` is the limit."""
    prompt: str = _PROMPT
    """The prompt for each image."""
    store: str | None = None
    """A file to keep descriptions in, as that of `ImageDescriptionExtractor`; without one they are
    kept as long as this object is."""

    _store: DescriptionStore = PrivateAttr()
    _keys: dict[str, str] = PrivateAttr(default_factory=dict)
    _images: OrderedDict[str, BaseContentBlock] = PrivateAttr(default_factory=OrderedDict)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @classmethod
    def class_name(cls) -> str:
        """Name the class in what is written down."""
        return "phospho_vision_llm"

    @field_validator("store", mode="before")
    @classmethod
    def _one_file_from_everywhere(cls, store: str | PathLike[str] | None) -> str | None:
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
            A list of that tool. It knows the images that this object has seen, by names that are
            digests: an agent can ask only about images whose names it has read.
        """
        tool = FunctionTool.from_defaults(
            fn=self.look_again,
            async_fn=self.alook_again,
            # Without the signature, in which core would spell out the types of this module.
            description=_LOOK_AGAIN,
        )
        return [tool]

    def look_again(self, image: _Image, question: _Question) -> str:
        """Answer a question about an image of the conversation."""
        return run_steps(self._looked_again(image, question))

    async def alook_again(self, image: _Image, question: _Question) -> str:
        """Do as `look_again`, with await."""
        return await arun_steps(self._looked_again(image, question))

    # No method is decorated: the LLM that answers reports its own events.

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
        raise NotImplementedError  # the LLM that answers does that; the base class asks for one

    def _with_tools(self) -> FunctionCallingLLM:
        if isinstance(self.llm, FunctionCallingLLM):
            return self.llm
        message = (
            f"A {type(self.llm).__name__} takes no tools. Nothing was sent. Use a ReActAgent, or an"
            " LLM that calls functions."
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
        """Put descriptions in the place of images; the messages that are given stay as they are."""
        run = PaidOnce(self.describer, self.prompt, self._store, self._keys)
        told: list[ChatMessage] = []
        for message in messages:
            if not has_image([message]):
                told.append(message)
                continue
            blocks: list[Any] = []
            for block in message.blocks:
                blocks += yield from self._text_of(block, run)
            # Core copies those images into the blocks of every message that it validates.
            rest = {k: v for k, v in message.additional_kwargs.items() if k != "images"}
            told.append(message.model_copy(update={"blocks": blocks, "additional_kwargs": rest}))
        return told

    def _text_of(self, block: Any, run: PaidOnce) -> Steps[list[Any]]:
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
            while len(self._images) > _MOST_IMAGES:
                self._images.popitem(last=False)

    def _looked_again(self, image: str, question: str) -> Steps[str]:
        found = _WRITTEN.search(str(image).lower())  # models write "Image 1a2b3c4d" as well
        name = found[0] if found else ""
        with self._lock:
            block = self._images.get(name)
        if block is None:
            return "There is no image of this name. The description of each image tells its name."
        try:
            response = yield Ask(self.describer, str(question), block)
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            return f"The image could not be looked at. {type(error).__name__}: {error}"
        return wrap_untrusted(response.text, title=f"The image {name}")
