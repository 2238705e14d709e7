"""Which objects of an answer are calls: what a model made runs, what it only wrote does not."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phospho_multimodal.exchange.prediction import Prediction
from phospho_multimodal.messages.conversation import Turn
from phospho_multimodal.tools.parsing import Answer, read_answer
from phospho_multimodal.tools.prompt import ToolProtocol


def tool(name: str, /, *required: str, **types: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "description": f"Does {name}.", "parameters": parameters}


TOOLS = [
    tool("get_weather", "city", city="string", unit="string"),
    tool("delete_file", "path", path="string"),
    tool("zoom", "x", "y", x="number", y="number"),
    tool("caption", "text", text="string"),
    tool("install", "version", version="string"),
    tool("refresh", mode="string"),
    tool("open_app", name="string", type="string"),
]
DELETE = '{"name": "delete_file", "arguments": {"path": "a"}}'
WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
PARTS: dict[str, Any] = {"id": {"type": "integer"}, "input": {}}
PARIS = ("get_weather", {"city": "Paris"})
LONG = "The picture shows a poster with a lot of text on it."

SINGLE = {ord("“"): "\u2018", ord("”"): "\u2019"}  # typographic quotes

Run = tuple[str, dict[str, Any]] | None


def read(reply: str, choice: Any = None) -> Answer:
    protocol = replace(ToolProtocol.of(TOOLS, tool_choice=choice), return_invalid_calls=True)
    metadata = {"images_billed": 1, "images_in_doubt": 0, "attempts": 1}
    return read_answer(Prediction(reply, metadata), protocol, [Turn("user", ("?",))])


def run_by(reply: str, choice: Any = None) -> Run:
    """Read an answer, and give what an agent would run."""
    answer = read(reply, choice)
    if answer.call is None or "tool_call_problem" in answer.metadata:
        return None
    return answer.call.name, dict(answer.call.arguments)


# Thinking.

BLOCKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<THINK>\n", "\n</THINK>\n"),
    ("< think >", "</ think >"),
    ("<think effort='high'>", "</think>"),
    ("<thought_process>", "</thought_process>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<scratch_pad>", "</scratch_pad>"),
    ("<analysis>", "</analysis>"),
    ("<inner_monologue>", "</inner_monologue>"),
    ("<antThinking>", "</antThinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
    ('<details type="reasoning">', "</details>"),
]
CHANNELS = [
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<!-- ", " -->"),
]


@pytest.mark.parametrize(("opening", "closing"), [*BLOCKS, *CHANNELS], ids=lambda tag: tag.strip())
def test_what_a_model_only_thinks_is_not_called(opening: str, closing: str) -> None:
    thought = f"{opening}I could call {DELETE}, but no."
    assert run_by(f"{thought}{closing}It is a dog.") is None
    assert run_by(thought) is None
    assert run_by(f"{thought}{closing}{WEATHER}") == PARIS
    assert run_by(f"{thought}{closing}{thought}{closing}{WEATHER}") == PARIS
    assert run_by(f"{WEATHER}\n{thought}{closing}") == PARIS


@pytest.mark.parametrize(("opening", "closing"), BLOCKS, ids=lambda tag: tag.strip())
def test_thinking_without_its_opening_tag_and_in_itself_is_not_called(
    opening: str, closing: str
) -> None:
    assert run_by(f"I could call {DELETE}, but no.{closing}It is a dog.") is None
    assert run_by(f"I could call {DELETE}, but no.{closing}{WEATHER}") == PARIS
    nested = f"{opening}a{opening}b{closing}{DELETE}"
    assert run_by(nested) is None
    assert run_by(f"{nested}{closing}{WEATHER}") == PARIS


@pytest.mark.parametrize("text", ["<think>", "a </think> b", "<think>x</think>", "<|end|>", "-->"])
def test_a_tag_in_an_argument_is_part_of_the_argument(text: str) -> None:
    reply = f'<think>Hm.</think>{{"name": "caption", "arguments": {{"text": "{text}"}}}}'
    assert run_by(reply) == ("caption", {"text": text})


@pytest.mark.parametrize("mark", ["<think/>", "<think></think>", "<|end|>", "->", "<b>"])
def test_a_mark_that_ends_no_thinking_hides_no_call(mark: str) -> None:
    assert run_by(f"{mark}{WEATHER}") == PARIS
    assert run_by(f"{WEATHER}{mark}") == PARIS


# Objects that cannot be read, and what comes after or within them.

UNREADABLE = [
    '{"name": "zoom", "arguments": {"x": 110/5, "y": 3}}',
    "{'name': 'zoom', 'arguments': {'x': (110/5)**2, 'y': 3}}",
    '{"name": "zoom", "arguments": {"x": 1, "y": [1, 2, ...]}}',
    '{"name": "zoom", "arguments": {"x": 010, "y": 3}}',
    '{"name": "zoom", "arguments": {"x": 0x10, "y": 3}}',
    '{"name": "zoom", "arguments": {"x": 12 px, "y": 3}}',
    '{"name": "zoom", "arguments": {"x": 1.234,5, "y": 3}}',
    '{"name": "zoom", "arguments": {"x": NaN, "y": 3}}',
    '{"name": "zoom", "arguments": {"x": 1, "x": 2, "y": 3}}',
    '{"name": "zoom", "arguments": {"x": 1,, "y": 2}}',
    '{"name": "zoom" "arguments": {"x": 1, "y": 2}}',
    '{name: "zoom", arguments: {x: 1, y: 2}}',
    "{“name”: “zoom”, “arguments”: {“x”: 1, “y”: 2}}",
    "{“name”: “zoom”, “arguments”: {“x”: 1, “y”: 2}}".translate(SINGLE),
    "{«name»: «zoom», «arguments»: {«x»: 1, «y»: 2}}",
    "{`name`: `zoom`, `arguments`: {`x`: 1, `y`: 2}}",
    '{"name": "zoom", /* both */ "arguments": {"x": 1, "y": 2}}',
    "{'name': 'caption', 'arguments': {'text': 'It's a sign'}}",
    "{'name': 'caption', 'arguments': {'text': 'a' 'b'}}",
    '{"name": "caption", "arguments": {"text": "C:\\x"}}',
    '{"name": "caption", "arguments": {"text": "C:\\_a"}}',
    '{"name": "caption", "arguments": {"text": "a_b", "t\\_u": "c"}}',
]


@pytest.mark.parametrize("between", [", ", "\n", "", "\n\nAnd then:\n"])
@pytest.mark.parametrize("first", UNREADABLE)
def test_no_later_call_runs_in_the_place_of_one_that_cannot_be_read(
    first: str, between: str
) -> None:
    answer = read(f"{first}{between}{DELETE}")
    assert run_by(f"{first}{between}{DELETE}") is None
    assert "is not valid JSON" in answer.metadata["tool_call_problem"]
    assert "cut off" not in answer.metadata["tool_call_problem"]


@pytest.mark.parametrize("first", UNREADABLE)
def test_a_call_that_cannot_be_read_is_reported_in_every_spelling(first: str) -> None:
    answer = read(first)
    assert run_by(first) is None
    name = "caption" if "caption" in first else "zoom"
    assert answer.metadata["tool_call_problem"] == f"its call of {name} is not valid JSON"


@pytest.mark.parametrize(
    "cut",
    [
        "{'name': 'get_weather', 'arguments': {'city': 'Par",
        "{'name': 'refresh', 'arguments': {'mode': 'ha",
        '{"name": "get_weather", "arguments": {"city": "C:\\',
        '{"get_weather": {"city": "Par',
        '{{"name": "refresh", "arguments": {{"mode": "ha',
        "<tool_call>\n{\"arguments\": {'city': 'L\\'Aqu",
        '<tool_call>{"arguments": {"city": "Par',
        '```json\n[{"name": "refresh", "arguments": {"mode": 1',
    ],
)
def test_a_call_that_was_cut_off_is_said_to_be(cut: str) -> None:
    assert run_by(cut) is None
    assert "is cut off" in read(cut).metadata["tool_call_problem"]


@pytest.mark.parametrize(
    "first",
    [
        "{'seen': 'It's }",  # a text of the picture can end the object that it is quoted in
        '"name": "zoom", "arguments": {"x": 1, "y": 2}}',
        'name": "zoom", "arguments": {"x": 1, "y": 2}}',
        '{"name"} "zoom", "arguments": {"x": 1, "y": 2}}',
        '{}"name": "zoom", "arguments": {"x": 1, "y": 2}}',
        "<tool_call>'name': 'zoom', 'arguments': {}}</tool_call>",
    ],
)
def test_an_object_that_is_no_call_and_cannot_be_read_holds_back_what_follows(first: str) -> None:
    answer = read(f"{first}\n{DELETE}")
    assert run_by(f"{first}\n{DELETE}") is None
    assert "before its call of delete_file" in answer.metadata["tool_call_problem"]


@pytest.mark.parametrize("words", ["{x}", "the set {1, 2}:", "f() { return 1; }", "${n}", "{{a}}"])
def test_braces_in_prose_hold_nothing_back(words: str) -> None:
    assert run_by(f"{words}\n{WEATHER}") == PARIS
    assert run_by(f"{WEATHER}}}\n{words}") == PARIS


@pytest.mark.parametrize(
    "outer",
    [
        "{caption: %s}",
        "{caption = %s}",
        "{:caption => %s}",
        "{caption %s}",
        "{`caption`: %s}",
        "{“caption”: %s}",
        "{„caption“: %s}",
        "{“caption”: %s}".translate(SINGLE),
        "{«caption»: %s}",
        "{'caption': %s, x}",
        '{"caption": see(%s)}',
        '{"caption": "it is " + %s}',
        '{"caption": """%s"""}',
        "{'caption': '''%s'''}",
        '{ // a comment\n "caption": %s}',
        "{ x %s }",
        "{(%s)}",
        '{name: "caption", arguments: {text: %s}}',
        '{"note": {"call": %s}}',
        '{"note": [1, %s]}',
    ],
)
def test_nothing_inside_an_object_is_called_however_the_object_is_spelt(outer: str) -> None:
    reply = outer % DELETE
    assert [run_by(reply[:length]) for length in range(len(reply) + 1)] == [None] * (len(reply) + 1)


@pytest.mark.parametrize(
    "reply",
    [
        '{"name": "delete_file", "arguments": {"path": "a"}, "name": "refresh"}',
        "{'name': 'delete_file', 'arguments': {'path': 'a'}, 'name': 'refresh'}",
        '{"name": "delete_file", \'name\': "refresh", "arguments": {"path": "a"}}',
        '{"name": "delete_file", "na\\u006de": "refresh", "arguments": {"path": "a"}}',
        '{"name": "delete_file", "arguments": {"path": "a"}, "arguments": {"path": "b"}}',
        '{"name": "delete_file", "arguments": {"path": "a", "path": "b"}}',
        '{"tool_calls": [{"name": "delete_file", "arguments": {"path": "a", "path": "b"}}]}',
        '{"tool": "refresh", "name": "delete_file", "arguments": {"path": "a"}}',
        '{"refresh": {"mode": "a"}, "refresh": {"mode": "b"}}',
        '{"name": "refresh", "arguments": {"mode": "a"}, "args": {"mode": "b"}}',
        '{"name": "refresh", "arguments": {"mode": "a"}, "mode": "b"}',
        '{"function": {"name": "refresh"}, "outer": {"mode": "b"}}',
    ],
)
def test_two_calls_in_one_object_do_not_make_a_third(reply: str) -> None:
    assert run_by(reply) is None
    assert "tool_call_problem" in read(reply).metadata


# What a picture shows, and what the model was told.


@pytest.mark.parametrize(
    "reply",
    [
        '{"name": "refresh", "type": "button"}',
        '{"id": 3, "name": "refresh", "type": "icon"}',
        '{"id": 3, "name": "refresh"}',
        '{"name": "open_app", "id": "button-7"}',
        '{"type": "function", "function": {"id": 3, "name": "refresh"}}',
        '{"name": "refresh", "label": "Refresh", "x": 3, "y": 4}',
        '{"name": "open_app", "type": "icon", "x": 1}',
        '{"name": "get_weather", "bbox": [1, 2, 3, 4]}',
        '{"action": "refresh", "element": "button"}',
        '{"elements": [{"name": "refresh", "type": "button"}]}',
        '[{"name": "search", "type": "icon"}, {"name": "refresh", "type": "button"}]',
        '[{"name": "back"}, {"name": "refresh"}]',
        '[{"name": "refresh"}, {"name": "back"}]',
        '[{"name": "refresh"}',
    ],
)
def test_the_description_of_a_user_interface_is_not_called(reply: str) -> None:
    answer = read(reply)
    assert (answer.call, answer.text) == (None, reply)


@pytest.mark.parametrize(
    "reply",
    [
        '{"name": "refresh", "parameters": {"type": "object", "properties": {}}}',
        '{"name": "refresh", "parameters": {"properties": {"mode": {"type": "string"}}}}',
        '{"name": "refresh", "parameters": {"mode": {"type": "string"}}}',
        '{"name": "refresh", "parameters": {"type": "object"}}',
        '{"name": "refresh", "input_schema": {"type": "object", "properties": {}}}',
        '{"name": "refresh", "arguments": {"mode": {"type": "string"}}}',
        '{"name": "refresh", "parameters": {"mode": {"type": "string", "description": "How."}}}',
        '{"name": "zoom", "parameters": {"x": {"type": "number", "title": "X"}, "y": {}}}',
        '{"refresh": {"mode": {"title": "Mode", "type": "string", "description": "How."}}}',
        '{"name": "refresh", "description": "Does refresh."}',
        '{"refresh": {"mode": {"type": "string"}}}',
        '{"type": "function", "function": {"name": "refresh", "parameters": {"properties": {}}}}',
    ],
)
def test_a_definition_that_is_repeated_is_neither_called_nor_hides_a_call(reply: str) -> None:
    assert run_by(reply) is None
    assert run_by(f"{reply}\n{WEATHER}") == PARIS


@pytest.mark.parametrize("choice", [None, "any", "get_weather"])
def test_the_instructions_repeated_neither_hide_a_call_nor_are_one(choice: Any) -> None:
    told = ToolProtocol.of(TOOLS, tool_choice=choice).instructions()
    last = told.splitlines()[-1]
    assert run_by(told, choice) is None
    assert run_by(last, choice) is None
    for echo in (told, last, "\n".join(told.splitlines()[-2:])):
        assert run_by(f"{echo}\n{WEATHER}", choice) == PARIS
        assert run_by(f"{echo}\n```json\n{WEATHER}\n```\nThat is my call.", choice) == PARIS
        assert read(f"{echo}\nIt is a dog.").text.endswith("It is a dog.")


def test_a_form_that_is_not_filled_in_is_not_called() -> None:
    half = '{"name": "zoom", "arguments": {"x": 1, "y": "<number>"}}'
    assert run_by(half, "zoom") is None
    assert "does not fill in y" in read(half, "zoom").metadata["tool_call_problem"]
    for arguments in ('{"argument name": "value"}', '{"mode": "a", "argument name": "value"}'):
        for named in (
            f'{{"name": "refresh", "arguments": {arguments}}}',
            f"{{'tool': 'refresh', 'args': {arguments}}}",
        ):
            assert run_by(named) is None
            assert "does not fill in argument name" in read(named).metadata["tool_call_problem"]


@pytest.mark.parametrize(
    "reply",
    [
        '{"name": "Pump X", "parameters": {"flow": "3 l/min"}}',
        '{"action": "submit", "args": ["a"]}',
        '{"tool": "hammer", "args": {"size": 3}}',
        '{"function": {"name": "f", "arguments": {}}}',
        '{"tool_calls": [{"name": "nope", "arguments": {}}]}',
        'I may answer in this form: {"name": "tool name", "arguments": {}} but need not.',
    ],
)
def test_an_object_that_names_no_offered_tool_is_an_answer(reply: str) -> None:
    answer = read(reply)
    assert (answer.text, answer.call, answer.invalid_tool_name) == (reply, None, None)
    assert "tool_call_problem" not in answer.metadata


# Prose.


@pytest.mark.parametrize(
    ("reply", "runs"),
    [
        (f"{'x' * 40} {WEATHER} And more.", True),
        (f"{'x' * 41} {WEATHER} And more.", False),
        (f"{LONG} {WEATHER}", False),
        (f"{LONG}\n{WEATHER}\nIt hangs on a wall.", False),
        (f"{LONG}\n```json\n{WEATHER}\n```\nbut that is not my answer.", False),
        (f"{LONG}\n{WEATHER}", True),
        (f"{LONG}\n{WEATHER}.", True),
        (f"{LONG}\r\n{WEATHER}\r\n\r\n---", True),
        (f"{LONG}\n{WEATHER} \u2705", True),
        (f'{LONG}\n"{WEATHER}"', False),
        (f"{LONG}\n> {WEATHER}", False),
        (f"{LONG}\n{WEATHER} 2", False),
        (f"{LONG}\n```json\n{WEATHER}\n```", True),
        (f"{LONG}\n<tool_call>\n[{WEATHER}]\n</tool_call>", True),
        (f"<think>{LONG}</think>{WEATHER} {LONG}", True),
        (f"<tool_call>\n```json\n[{WEATHER}]\n```\n</tool_call> {LONG}", True),
        (f'{LONG}\n{{"note": 1}} {WEATHER}', True),
    ],
)
def test_a_call_deep_in_prose_is_an_example_or_a_text_of_the_picture(
    reply: str, *, runs: bool
) -> None:
    """Of 8,114 right calls of 15 models 8 have more than 40 characters of prose before them."""
    assert (run_by(reply) == PARIS) is runs


LETTERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{"), max_size=80)


@given(before=LETTERS, after=LETTERS)
def test_prose_of_any_kind_never_alters_a_call(before: str, after: str) -> None:
    run = run_by(f"{before}{WEATHER}{after}")
    assert run is None or run == PARIS


# Dialects and values.


@pytest.mark.parametrize(
    "reply",
    [
        '{"name": "get_weather", "params": {"city": "Paris"}}',
        '{"tool_name": "get_weather", "tool_arguments": {"city": "Paris"}}',
        '{"tool_name": "get_weather", "tool_input": {"city": "Paris"}}',
        '{"function_name": "get_weather", "function_args": {"city": "Paris"}}',
        '{"get_weather": {"city": "Paris"}}',
        '[{"get_weather": {"city": "Paris"}}]',
        '{"tool_call": {"get_weather": {"city": "Paris"}}}',
        '{"name": "get_weather", "city": "Paris"}',
        '{"type": "function", "name": "get_weather", "city": "Paris"}',
        '{"name": "get_weather", "arguments": {}, "city": "Paris"}',
        '{"name": "get_weather", "arguments": {}, "input": {"city": "Paris"}}',
        '{"name": "get_weather", "arguments": {"city": "Paris"}, "thought": "sunny?"}',
        '{"name": "get\\_weather", "arguments": {"city": "Paris"}}',
        "{'name': 'get\\_weather', 'arguments': {'city': 'Paris'}}",
        '{"tool\\_calls": [{"name": "get\\_weather", "arguments": {"city": "Paris"}}]}',
        '{{"name": "get_weather", "arguments": {{"city": "Paris"}}}}',
        '{{"name": "get_weather", "arguments": {"city": "Paris"}}}',
    ],
)
def test_a_whole_call_is_read_in_the_dialects_that_models_use(reply: str) -> None:
    assert run_by(reply) == PARIS
    runs = [run_by(reply[:length]) for length in range(len(reply))]
    assert set(map(str, runs)) <= {"None", str(PARIS)}


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("'L\\'Aquila'", "L'Aquila"),
        ("'a\\nb\\tc'", "a\nb\tc"),
        ("'a \\\"b\\\"'", 'a "b"'),
        ("'Z\\u00fcrich'", "Zürich"),
        ("'\\ud83d\\ude00'", "😀"),
        ("'a\\\\b'", "a\\b"),
        ('"it\\\'s"', "it's"),
        ("'a\nb'", "a\nb"),
    ],
)
def test_escapes_that_python_and_json_read_alike_are_read(written: str, text: str) -> None:
    reply = f"{{'name': 'caption', 'arguments': {{'text': {written}}}}}"
    assert run_by(reply) == ("caption", {"text": text})


@pytest.mark.parametrize(
    ("reply", "arguments"),
    [
        ('{"tool": "open_app", "name": "calculator"}', {"name": "calculator"}),
        ('{"function": "open_app", "type": "window"}', {"type": "window"}),
        ('{"tool": "open_app", "args": {"name": "a"}, "type": "b"}', {"name": "a", "type": "b"}),
        ('{"function": {"tool": "open_app"}, "arguments": {"name": "a"}}', {"name": "a"}),
        ('{"tool_call": {"tool": "open_app"}, "name": "a"}', {"name": "a"}),
    ],
)
def test_an_argument_beside_the_name_is_not_dropped(reply: str, arguments: Any) -> None:
    assert run_by(reply) == ("open_app", arguments)


@pytest.mark.parametrize(
    ("reply", "arguments"),
    [
        ('{"name": "find", "id": 5}', {"id": 5}),
        ('{"name": "find", "input": "x"}', {"input": "x"}),
        ('{"name": "find", "input": {"a": 1}}', {"input": {"a": 1}}),
        ('{"name": "find", "input": {"input": "x", "id": 5}}', {"input": "x", "id": 5}),
        ('{"name": "find", "id": "call_1", "input": {"id": 5}}', {"id": 5}),
        ('{"name": "find", "arguments": {"id": 5}, "input": "x"}', {"id": 5, "input": "x"}),
    ],
)
def test_an_argument_can_have_the_name_of_a_part_of_a_call(reply: str, arguments: Any) -> None:
    protocol = ToolProtocol.of([{"name": "find", "parameters": {"properties": PARTS}}])
    call = read_answer(Prediction(reply, {}), protocol, []).call
    assert call is not None
    assert call.arguments == arguments


@pytest.mark.parametrize("figures", ["3.10", "10.00", "1e3", "100000000000000000000.10", "7"])
def test_a_number_given_for_a_text_keeps_its_figures(figures: str) -> None:
    wanted = ("install", {"version": figures})
    assert run_by(f'{{"name": "install", "arguments": {{"version": {figures}}}}}') == wanted
    assert run_by(f"{{'name': 'install', 'version': {figures}}}") == wanted
    as_text = f'{{"name": "install", "arguments": "{{\\"version\\": {figures}}}"}}'
    assert run_by(as_text) == wanted


def test_a_number_given_for_a_number_is_a_plain_number() -> None:
    run = run_by('{"name": "zoom", "arguments": {"x": 1.50, "y": 2}}')
    assert run == ("zoom", {"x": 1.5, "y": 2})
    assert [type(value) for value in run[1].values()] == [float, int]


# Time.


@pytest.mark.parametrize(
    "unit",
    [
        *("{", "{}", '{"a":', '{"', "{'", '"', "'", "“", "{{", "{[", "<", "{1", "{'\\", "◁think"),
        *("<think>", "</think>", '{"a":1}', '{"name":"refresh"}', '{"name":"refresh","name":'),
    ],
)
def test_a_hostile_answer_is_read_in_no_time(unit: str) -> None:
    """An event loop waits for it."""
    for length in (8_000, 63_000):
        reply = (unit * length)[:length]
        began = time.process_time()
        assert run_by(reply) is None
        assert time.process_time() - began < 0.2
