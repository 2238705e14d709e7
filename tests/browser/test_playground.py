"""The server's page, used as people use it."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from live_server import serve
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import InputImage, Question

TOTAL = "6.00"
DROP = """([name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  const field = document.getElementById("drop");
  field.dispatchEvent(
    new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


class MarkupEngine:
    name = "markup"

    def describe(self, picture: InputImage, question: Question) -> str:
        return "<img src=x onerror=alert(1)><b>bold</b>"


def drop(page: Page, file: Path) -> None:
    page.evaluate(DROP, [file.name, base64.b64encode(file.read_bytes()).decode()])
    expect(page.locator("#preview")).to_be_visible()


def ask(page: Page) -> None:
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#status")).to_contain_text("nswered", timeout=60_000)


def copied(page: Page, name: str, block: str) -> str:
    if page.locator(f"#{block}").is_hidden():
        page.get_by_text(name).first.click()
    page.locator(f"[data-copy={block}]").click()
    expect(page.locator("#copied")).to_contain_text("Copied")
    return page.evaluate("navigator.clipboard.readText()")


def test_a_dropped_receipt_is_read_and_its_code_runs(page, receipt, run_in, tmp_path):
    drop(page, receipt)
    ask(page)
    expect(page.locator("#answer")).to_contain_text(TOTAL)
    data = receipt.read_bytes()
    expect(page.locator("#sha256")).to_have_text(hashlib.sha256(data).hexdigest())
    expect(page.locator("#sent")).to_contain_text(f"{len(data):,} bytes")
    expect(page.locator("#price")).to_contain_text("$0.01")
    expect(page.locator("#history li")).to_have_count(1)
    picture_of_the_page = os.environ.get("SCREENSHOT")
    if picture_of_the_page:
        page.screenshot(path=picture_of_the_page)
    assert TOTAL in run_in("sh", "-c", copied(page, "curl", "code-curl"))
    for name, block in (("LangChain:", "code-langchain"), ("LlamaIndex:", "code-llama-index")):
        script = tmp_path / f"{block}.py"
        script.write_text(copied(page, name, block), encoding="utf-8")
        assert TOTAL in run_in(sys.executable, str(script))


def test_the_keyboard_alone_is_enough(page, receipt):
    page.locator("#picture").set_input_files(receipt)
    page.locator("#prompt").focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer")).to_contain_text(TOTAL, timeout=60_000)
    page.locator("#history button").press("Enter")
    expect(page.locator("#prompt")).to_be_focused()


def test_every_field_and_button_has_a_name(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button")]
          .filter((field) => !(field.labels?.length || field.textContent.trim()))
          .map((field) => field.outerHTML)"""
    )
    assert nameless == []
    expect(page.get_by_role("status").first).to_have_text("Nothing was asked yet.")


def test_where_the_keyboard_is_can_be_seen(page):
    page.locator("#picture").focus()
    page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"


def test_a_phone_does_not_scroll_sideways(page, receipt):
    page.set_viewport_size({"width": 360, "height": 740})
    drop(page, receipt)
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_question_of_quotes_and_newlines_stays_one_in_every_language(page, receipt, run_in):
    drop(page, receipt)
    page.locator("#prompt").fill("It's \"so\" \\ $(touch gone) `id`\nand 'more' {x} ü")
    assert TOTAL in run_in("sh", "-c", copied(page, "curl", "code-curl"))
    code = copied(page, "LangChain:", "code-langchain")
    assert TOTAL in run_in(sys.executable, "-c", code)
    assert not (receipt.parent / "gone").exists()


def test_what_is_no_image_is_said_in_the_servers_words(page, tmp_path):
    file = tmp_path / "no.png"
    file.write_bytes(b"%PDF-1.7 not a picture")
    page.locator("#picture").set_input_files(file)
    ask(page)
    expect(page.locator("#answer")).to_contain_text("a PDF document")
    expect(page.locator("#price")).to_contain_text("$0.00")


def test_asking_without_an_image_sends_nothing(page):
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#status")).to_have_text("Choose an image first.")


def test_an_answer_is_text_whatever_it_holds(browser: Browser, receipt):
    with serve(create_app(MarkupEngine())) as url:
        page = browser.new_page()
        page.goto(url)
        drop(page, receipt)
        ask(page)
        expect(page.locator("#answer")).to_have_text("<img src=x onerror=alert(1)><b>bold</b>")
        page.close()


def test_the_key_is_kept_for_the_tab_alone(browser: Browser, receipt):
    with serve(create_app(MarkupEngine(), api_key="open-sesame")) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        drop(page, receipt)
        ask(page)
        expect(page.locator("#answer")).to_have_text("Not authenticated")
        expect(page.locator("#key")).to_be_focused()
        page.locator("#key").fill("open-sesame")
        ask(page)
        expect(page.locator("#answer")).to_contain_text("bold")
        assert "open-sesame" not in page.locator("#code-curl").text_content()
        page.reload()
        expect(page.locator("#key")).to_have_value("open-sesame")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        other = context.new_page()
        other.goto(url)
        expect(other.locator("#key")).to_have_value("")
        context.close()


@pytest.mark.parametrize("path", ["/", "/playground/page.js"])
def test_the_policy_lets_nothing_in_and_nothing_out(page, base_url, path):
    headers = page.request.get(base_url + path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
