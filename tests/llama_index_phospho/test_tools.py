"""The tools of an agent: what it may look at, what it is told, and what is raised."""

from __future__ import annotations

import asyncio
import base64
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.schema import ImageNode

from fault_server import FaultServer, answer, reset, status
from llama_index_phospho import PhosphoToolSpec
from phospho_multimodal import (
    AuthenticationError,
    ConfigurationError,
    EndpointGoneError,
    ImageError,
    PaymentRequiredError,
    PermissionDeniedError,
    Spending,
    SpendingLimitError,
)
from phospho_multimodal.messages.untrusted_text import wrap_untrusted
from pictures import draw, encoded

KEY = "sk-secret-0123456789"
PNG = encoded(draw(), "PNG")
BASE64 = base64.b64encode(PNG).decode()
HOSTS = ["images.example.com", "127.0.0.1:9"]
URL = "https://images.example.com/a%20b.png?sig=x"

Make = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Calls a tool of a spec by its name, as an agent does."""

    def run(spec: PhosphoToolSpec, name: str, **arguments: Any) -> str:
        tools = {tool.metadata.name: tool for tool in spec.to_tool_list()}
        if request.param == "sync":
            return str(tools[name].call(**arguments))
        return str(asyncio.run(tools[name].acall(**arguments)))

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    file.write_bytes(PNG)
    return file


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(lambda path: path, id="a path"),
        pytest.param(lambda _: PNG, id="bytes"),
        pytest.param(lambda _: draw(), id="a PIL image"),
        pytest.param(lambda _: BASE64, id="base64"),
        pytest.param(lambda path: ImageNode(image_path=str(path)), id="a node"),
        pytest.param(lambda path: ImageBlock(path=path), id="a block"),
    ],
)
def test_an_image_is_asked_about_by_its_name(
    call: Any, llm: Any, *, server: FaultServer, path: Path, image: Callable[[Path], Any]
) -> None:
    spec = PhosphoToolSpec(llm, images={"the receipt": image(path)})
    asked = call(spec, "ask_about_image", image="the receipt", question="What is the total?")
    described = call(spec, "describe_image", image="the receipt")
    assert asked == wrap_untrusted("You asked: What is the total?", title="The image 'the receipt'")
    assert described == wrap_untrusted(
        "You asked: Describe this image.", title="The image 'the receipt'"
    )
    assert {request.image for request in server.requests} == {PNG}


def test_a_url_of_an_allowed_host_is_passed_on_as_it_is(
    call: Any, llm: Any, server: FaultServer
) -> None:
    spec = PhosphoToolSpec(llm, allowed_hosts=HOSTS)
    for url in (URL, "http://127.0.0.1:9/a.png", "https://IMAGES.example.com/a.png"):
        told = call(spec, "describe_image", image=url)
        assert told.startswith(f"The image at {url[: url.index('/', 8)].lower()}, as another model")
        assert "| You asked: Describe this image." in told
        assert server.requests[-1].item["image_url"] == url


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example.com/a.png",
        "https://images.example.com.evil.example/a.png",
        "https://evil.example/images.example.com",
        "https://images.example.com@evil.example/a.png",
        "https://evil.example\\@images.example.com/a.png",
        "https://someone:password@images.example.com/a.png",
        "https://images.example.com\t.evil.example/a.png",
        "https://images.example.com/a b.png",
        "https://images.exämple.com/a.png",
        "https://[images.example.com/a.png",
        "https:///a.png",
        "https://images.example.com./a.png",
        "https://images.example.com:8443/a.png",
        "http://127.0.0.1:22/a.png",
        "http://localhost/a.png",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_any_other_url_is_refused_in_words(
    call: Any, llm: Any, *, server: FaultServer, url: str
) -> None:
    spec = PhosphoToolSpec(llm, images={"cat": PNG}, allowed_hosts=HOSTS)
    told = call(spec, "describe_image", image=url)
    assert "This URL is not allowed." in told
    assert "Images by name: 'cat'." in told
    assert "127.0.0.1:9, images.example.com" in told
    assert PhosphoToolSpec(llm).describe_image(URL).startswith("The image could not be read.")
    assert server.requests == []


@pytest.mark.parametrize(
    "image",
    [
        BASE64,
        f"data:image/png;base64,{BASE64}",
        "file:///etc/passwd",
        "/etc/passwd",
        "picture.png",
        "",
        None,
        ["cat"],
        7,
    ],
    ids=lambda image: str(image)[:20],
)
def test_neither_base64_nor_a_path_nor_a_wrong_name_is_taken(
    call: Any, llm: Any, *, server: FaultServer, image: Any
) -> None:
    spec = PhosphoToolSpec(llm, images={"cat": PNG}, allowed_hosts=HOSTS)
    told = call(spec, "ask_about_image", image=image, question="What?")
    assert told.startswith("The image could not be read. ImageError: There is no image named")
    assert "Images by name: 'cat'." in told
    assert len(told) < 400
    assert server.requests == []


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (status(422, "unreadable"), "InvalidRequestError"),
        (status(429), "RateLimitedError"),
        (status(500), "ServiceError"),
        (status(200), "UnexpectedReplyError"),
        (reset(), "ReplyLostError"),
    ],
)
def test_what_is_wrong_with_one_picture_is_told_to_the_agent(
    call: Any, make: Make, *, server: FaultServer, behaviour: Any, says: str
) -> None:
    server.script = [behaviour]
    spec = PhosphoToolSpec(make(max_retries=0), images={"cat": PNG})
    told = call(spec, "describe_image", image="cat")
    assert told.startswith(f"The image could not be read. {says}: ")
    assert KEY not in told


def test_a_file_that_is_gone_is_told_to_the_agent(call: Any, llm: Any, path: Path) -> None:
    spec = PhosphoToolSpec(llm, images={"cat": path})
    path.unlink()
    assert "cannot be read" in call(spec, "describe_image", image="cat")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (401, AuthenticationError),
        (402, PaymentRequiredError),
        (403, PermissionDeniedError),
        (404, EndpointGoneError),
    ],
)
def test_what_is_wrong_with_all_of_them_is_raised(
    call: Any, llm: Any, *, server: FaultServer, code: int, error: type[Exception]
) -> None:
    server.script = [status(code)]
    with pytest.raises(error):
        call(PhosphoToolSpec(llm, images={"cat": PNG}), "describe_image", image="cat")


def test_the_cap_of_the_llm_holds(call: Any, make: Make, server: FaultServer) -> None:
    spec = PhosphoToolSpec(make(spending=Spending(max_images=1)), images={"cat": PNG})
    call(spec, "describe_image", image="cat")
    with pytest.raises(SpendingLimitError):
        call(spec, "describe_image", image="cat")
    assert server.billed == 1


def test_the_agent_reads_what_it_can_look_at(llm: Any) -> None:
    spec = PhosphoToolSpec(llm, images={"cat": PNG, "dog": PNG}, allowed_hosts=HOSTS)
    describe, ask = (tool.metadata for tool in spec.to_tool_list())
    assert describe.description == (
        "Describe an image: what it shows, and the text in it. Images by name: 'cat', 'dog'."
        " Hosts whose http(s) URLs are allowed: 127.0.0.1:9, images.example.com."
    )
    assert ask.description.startswith("Ask one question about an image. Images by name: 'cat',")
    image = "The name of an image, or its URL where URLs are allowed. Never its base64."
    parameters = ask.get_parameters_dict()
    assert parameters["properties"]["image"]["description"] == image
    assert parameters["required"] == ["image", "question"]
    (alone,) = spec.to_tool_list(["adescribe_image"])
    assert alone.metadata.description == describe.description


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"allowed_hosts": "images.example.com"}, ConfigurationError, "got the string"),
        ({"images": {" ": PNG}}, ConfigurationError, "empty name"),
        ({"images": {"cat": 7}}, ImageError, "int is not an image"),
        ({"images": {"cat": ImageNode(text="a cat")}}, ImageError, "holds no image"),
    ],
)
def test_what_is_wrong_is_told_when_the_tools_are_made(
    llm: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        PhosphoToolSpec(llm, **options)


def test_nothing_that_is_written_down_holds_the_key(llm: Any, events: Any) -> None:
    spec = PhosphoToolSpec(llm, images={"cat": PNG})
    output = spec.to_tool_list()[0].call(image="cat")
    asyncio.run(spec.adescribe_image("cat"))
    written = [repr(spec), output.model_dump_json(), repr(output)]
    written += [repr(tool.metadata) for tool in spec.to_tool_list()]
    written += [event.model_dump_json() for event in events.seen]
    assert [text for text in written if KEY in text] == []
    assert len(events.seen) == 4
    twin = pickle.loads(pickle.dumps(spec))  # noqa: S301 - our own
    assert "| You asked: Describe this image." in twin.describe_image("cat")
    twin._llm.close()


# Workflows look at every attribute of an agent, the deprecated ones of pydantic too.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
def test_a_react_agent_looks_at_pictures(make: Make, server: FaultServer) -> None:
    """Its driver is a model of its own, which here follows a script."""
    question = '{"image": "cat", "question": "Which colour is it?"}'
    steps = [
        'Thought: I look.\nAction: describe_image\nAction Input: {"image": "dog"}',
        f"Thought: The other one.\nAction: ask_about_image\nAction Input: {question}",
        "Thought: I can answer.\nAnswer: A grey cat.",
    ]
    with FaultServer(*map(answer, steps)).running() as driving:
        driver = make(base_url=driving.base_url, default_image=PNG)
        spec = PhosphoToolSpec(make(), images={"cat": PNG})
        server.script = [answer("It is grey.")]

        async def run() -> Any:
            agent = ReActAgent(llm=driver, tools=spec.to_tool_list())
            return await agent.run(user_msg="What is the cat like?")

        assert str(asyncio.run(run())) == "A grey cat."
        texts = [request.item["text"] for request in driving.requests]
        assert "Images by name: 'cat'." in texts[0]
        assert "There is no image named 'dog'" in texts[1]
        assert "| It is grey." in texts[2]
        driver.close()
    (asked,) = server.requests
    assert (asked.item["text"], asked.image) == ("Which colour is it?", PNG)
