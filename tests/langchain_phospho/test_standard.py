"""LangChain's own tests for chat models, against a scripted endpoint on this machine.

The first pair has a `default_image`, since most of these tests send text alone. The second pair
has none: what needs no image is tested with it, and the rest has to refuse before sending.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests import chat_models as integration_tests
from langchain_tests.unit_tests import ChatModelUnitTests
from langchain_tests.unit_tests.chat_models import ChatModelTests

from fault_server import Connection, FaultServer, Received, answer
from langchain_phospho import ChatPhospho
from phospho_multimodal import MissingImageError

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
NOWHERE = "http://127.0.0.1:9"

load_is_beta = pytest.mark.filterwarnings("ignore:The function `load` is in beta")
refuses_load = pytest.mark.xfail(
    reason="load(allowed_objects='all') admits only the class paths that langchain-core lists",
    raises=ValueError,
)


class Flags:
    """What the model is and can do."""

    @property
    def chat_model_class(self) -> type[ChatPhospho]:
        return ChatPhospho

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def returns_usage_metadata(self) -> bool:
        return False

    @property
    def model_override_value(self) -> str:
        return "phospho-multimodal-next"


class Unit(Flags):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"PHOSPHO_API_KEY": "key-from-env", "PHOSPHO_BASE_URL": NOWHERE}
        return environment, {}, {"phospho_api_key": "key-from-env", "base_url": NOWHERE}

    @load_is_beta
    @refuses_load
    def test_serdes(self, model: BaseChatModel) -> None:
        load(
            dumpd(model),
            valid_namespaces=["langchain_phospho"],
            allowed_objects="all",
            secrets_from_env=True,
        )


class TestUnit(Unit, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": NOWHERE, "default_image": DOT}


class TestUnitWithoutDefaultImage(Unit, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": NOWHERE}


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


JOKE = {"setup": "Why do cats sit on keyboards?", "punchline": "To see who they work with."}

OBEDIENT = [
    ("magic_function(3)", call("magic_function", input=3)),
    ("magic_function_no_args()", call("magic_function_no_args")),
    ("a Pirate greeting", call("greeting_generator", answer_style="pirate")),
    ("What is 3 + 4", call("my_adder_tool", a=3, b=4)),
    ("Hello!", call("magic_function", input=1)),
    ("你好啊集团", call("unicode_customer", customer_name="你好啊集团", description="Technology")),
    ("こんにちは", call("unicode_customer", customer_name="こんにちは株式会社", description="?")),
    ("What is the weather", call("get_weather", location="San Francisco, CA")),
    ("no punchline", f"```json\n{json.dumps({'setup': JOKE['setup']})}\n```"),
    ("joke about cats", f"Here it is:\n```json\n{json.dumps(JOKE)}\n```\nHa!"),
]
"""A line that a suite's prompt is known by, and what a model that does as it is told answers."""


def obey(connection: Connection, request: Received) -> None:
    *_, last = request.item["text"].splitlines()
    reply = next((reply for words, reply in OBEDIENT if words in last), "I see a dot.")
    answer("It is done." if last.startswith("Tool (") else reply)(connection, request)


@pytest.fixture
def obedient() -> Iterator[FaultServer]:
    with FaultServer(obey).running() as server:
        yield server


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch, red: Any) -> None:
    """Hand the suite a drawn picture where it would download one."""
    response = SimpleNamespace(content=red.data)
    monkeypatch.setattr(integration_tests, "httpx", SimpleNamespace(get=lambda *_, **__: response))


@pytest.mark.usefixtures("downloaded")
class TestIntegration(Flags, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def where(self, obedient: FaultServer) -> None:
        self.base_url = obedient.base_url

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.base_url, "default_image": DOT}


@pytest.mark.usefixtures("downloaded")
class TestIntegrationWithoutDefaultImage(Flags, ChatModelTests):
    """The two integration tests in which every conversation has an image."""

    test_image_inputs = ChatModelIntegrationTests.test_image_inputs
    test_image_tool_message = ChatModelIntegrationTests.test_image_tool_message

    @pytest.fixture(autouse=True)
    def where(self, endpoint: Any) -> None:
        self.base_url = endpoint.base_url

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.base_url}


def test_a_text_alone_is_refused_and_sends_nothing(
    driver: Any, model: ChatPhospho, endpoint: Any
) -> None:
    with pytest.raises(MissingImageError, match="default_image="):
        driver.invoke(model, "Hello")
    with pytest.raises(MissingImageError):
        driver.stream(model, "Hello")
    with pytest.raises(MissingImageError):
        driver.batch(model, ["Hello", [SystemMessage("Be brief."), HumanMessage("Hello")]])
    assert endpoint.received == []


# What those tests do not look at.


@pytest.mark.parametrize("form", ["image_url", "image"])
def test_an_image_that_a_tool_returned_is_answered(
    form: str, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    blocks = {
        "image_url": {"type": "image_url", "image_url": {"url": red.data_url}},
        "image": red.block,
    }
    call = {"type": "tool_call", "id": "1", "name": "random_image", "args": {}}
    driver.invoke(
        model,
        [
            HumanMessage("Get a diagram and describe it."),
            AIMessage([], tool_calls=[call]),
            ToolMessage([blocks[form]], tool_call_id="1", name="random_image"),
        ],
    )
    (request,) = endpoint.received
    assert request.picture == red.sha256
    assert request.text == "User: Get a diagram and describe it.\nTool (random_image):"


def test_a_history_of_anthropic_is_answered(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": red.base64}
    tool_use = {"type": "tool_use", "input": {"colour": "purple"}, "id": "foo", "name": "picker"}
    thought = {"type": "thinking", "thinking": "Purple, surely.", "signature": "c2lnbmVk"}
    driver.invoke(
        model,
        [
            SystemMessage("You are helpful."),
            HumanMessage(
                [
                    {"type": "text", "text": "Which colour?", "cache_control": {"type": "x"}},
                    {"type": "image", "source": source},
                ]
            ),
            AIMessage([thought, {"type": "text", "text": "Let me think."}, tool_use]),
            HumanMessage(
                [
                    {
                        "type": "tool_result",
                        "tool_use_id": "foo",
                        "content": [{"type": "text", "text": "A great pick!"}],
                    },
                    {"type": "text", "text": "So which?"},
                ]
            ),
        ],
    )
    (request,) = endpoint.received
    assert request.picture == red.sha256
    assert request.text == (
        "You are helpful.\nUser: Which colour?\nAssistant: Let me think.\n"
        "User: A great pick!\nSo which?"
    )


@load_is_beta
def test_a_dumped_model_is_loaded_with_its_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PHOSPHO_API_KEY", "key-from-env")
    model = ChatPhospho(
        base_url=NOWHERE,
        default_image=base64.b64decode(DOT),
        temperature=0.5,
        max_tokens=7,
        stop=["."],
        max_retries=0,
        verify=False,
    )
    dumped = dumpd(model)
    assert "key-from-env" not in str(dumped)
    loaded = load(
        dumped,
        allowed_objects=[ChatPhospho],
        valid_namespaces=["langchain_phospho"],
        secrets_from_env=True,
    )
    assert loaded.asdict() == model.asdict()
    assert loaded.model_dump() == model.model_dump()
    assert loaded.phospho_api_key.get_secret_value() == "key-from-env"
