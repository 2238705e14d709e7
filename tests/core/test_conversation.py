"""How turns of text and images become one text and one image."""

from __future__ import annotations

import pytest

from phospho_multimodal.errors import (
    ConfigurationError,
    MissingImageError,
    PhosphoError,
    UnsupportedContentError,
)
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import (
    ImagePolicy,
    Turn,
    cut_at_stop,
    plan_conversation,
)

A, B, C = (image_source(f"https://x.example/{name}.png") for name in "abc")


def user(*parts: object) -> Turn:
    return Turn("user", parts)  # type: ignore[arg-type]


def assistant(*parts: object) -> Turn:
    return Turn("assistant", parts)  # type: ignore[arg-type]


def system(*parts: object) -> Turn:
    return Turn("system", parts)  # type: ignore[arg-type]


def tool(*parts: object, name: str = "camera") -> Turn:
    return Turn("tool", parts, name)  # type: ignore[arg-type]


LAST = ImagePolicy(multi_image="last")
DEFAULT = ImagePolicy(default_image=C)

CASES = [
    pytest.param([user("What?", A)], None, "What?", [A], 0, "single", id="a lone question"),
    pytest.param([user(A, "What?")], None, "What?", [A], 0, "single", id="the image first"),
    pytest.param(
        [user("  One.\n", A, "Two.")],
        None,
        "  One.\n\nTwo.",
        [A],
        0,
        "single",
        id="texts are joined by a newline and left alone",
    ),
    pytest.param([user(A)], None, "Describe this image.", [A], 0, "single", id="no text"),
    pytest.param([user(" ", A)], None, "Describe this image.", [A], 0, "single", id="blank text"),
    pytest.param(
        [user(A)],
        ImagePolicy(default_prompt="Caption it."),
        "Caption it.",
        [A],
        0,
        "single",
        id="another default prompt",
    ),
    pytest.param(
        [user("Compare", A, "with", B)],
        LAST,
        "Compare\n[image]\nwith",
        [B],
        1,
        "last",
        id="the last of two leaves a mark for the other",
    ),
    pytest.param(
        [user(A, B)],
        LAST,
        "[image]\nDescribe this image.",
        [B],
        1,
        "last",
        id="the last of two without text",
    ),
    pytest.param(
        [system("Be brief."), user("What?", A)],
        None,
        "Be brief.\nUser: What?",
        [A],
        0,
        "single",
        id="a system text makes a transcript",
    ),
    pytest.param(
        [user("What?", A), assistant("A cat."), user("What colour?")],
        None,
        "User: What?\nAssistant: A cat.\nUser: What colour?",
        [A],
        0,
        "single",
        id="the image of an older turn decides",
    ),
    pytest.param(
        [user("First", A), assistant("A cat."), user("And this?", B)],
        None,
        "User: First\n[image]\nAssistant: A cat.\nUser: And this?",
        [B],
        1,
        "single",
        id="the newest image decides and the older leaves a mark",
    ),
    pytest.param(
        [user("Look", A), assistant(""), tool("done", B), user("So?")],
        None,
        "User: Look\n[image]\nTool (camera): done\nUser: So?",
        [B],
        1,
        "single",
        id="an image of a tool decides",
    ),
    pytest.param(
        [user("Look"), tool(A)],
        None,
        "User: Look\nTool (camera):",
        [A],
        0,
        "single",
        id="a tool that gives an image alone",
    ),
    pytest.param(
        [user("Hi"), assistant("Hello"), user(A)],
        None,
        "User: Hi\nAssistant: Hello\nUser: Describe this image.",
        [A],
        0,
        "single",
        id="an image alone after a talk",
    ),
    pytest.param(
        [user("One"), system("S1"), user("Two", A), system("S2")],
        None,
        "S1\nS2\nUser: One\nUser: Two",
        [A],
        0,
        "single",
        id="all system texts come first",
    ),
    pytest.param(
        [system("S", B), user("What?", A)],
        None,
        "S\n[image]\nUser: What?",
        [A],
        1,
        "single",
        id="an image in a system turn",
    ),
    pytest.param([user("Hi")], DEFAULT, "Hi", [C], 0, "default_image", id="the default image"),
    pytest.param([], DEFAULT, "Describe this image.", [C], 0, "default_image", id="no turn at all"),
    pytest.param(
        [user("https://x.example/z.png is nice", A)],
        None,
        "https://x.example/z.png is nice",
        [A],
        0,
        "single",
        id="a URL in running text is text",
    ),
]


@pytest.mark.parametrize(("turns", "policy", "text", "images", "omitted", "name"), CASES)
def test_a_conversation_becomes(  # noqa: PLR0917 - the columns of the table
    turns, policy, text, images, omitted, name
):
    plan = plan_conversation(turns, policy or ImagePolicy())

    assert plan.text == text
    assert list(plan.images) == images
    assert plan.images_omitted == omitted
    assert plan.policy == name


@pytest.mark.parametrize(
    ("turns", "policy", "error", "words"),
    [
        pytest.param([user("Hi")], ImagePolicy(), MissingImageError, "default_image", id="none"),
        pytest.param([], ImagePolicy(), MissingImageError, "no image", id="no turn"),
        pytest.param(
            [user(A, B)],
            ImagePolicy(multi_image="error"),
            UnsupportedContentError,
            "2 images",
            id="two where one is allowed",
        ),
    ],
)
def test_a_conversation_is_refused(turns, policy, error: type[PhosphoError], words: str):
    with pytest.raises(error, match=words) as caught:
        plan_conversation(turns, policy)

    assert "Nothing was sent" in str(caught.value)


@pytest.mark.parametrize("options", [{"multi_image": "first"}, {"max_images": 0}], ids=str)
def test_a_policy_that_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        ImagePolicy(**options)


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (None, "one two three"),
        ([], "one two three"),
        (["four"], "one two three"),
        (["three", "two"], "one "),
        (["one"], ""),
        ([""], "one two three"),
    ],
)
def test_an_answer_is_cut_at_the_first_stop_string(stop, left):
    assert cut_at_stop("one two three", stop) == left
