"""Every tab, in both themes and languages: nothing that shuts people out, and no word in the wrong language."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from modules.ui.words import tables
from tests.browser.conftest import Site, reply, say

pytestmark = pytest.mark.browser
TABS = ("chat", "default", "notebook", "parameters", "models", "training", "session")


def open_tab(page: Page, name: str) -> None:
    page.evaluate(f"TEXTLOOM.openTab('{name}')")
    expect(page.locator(f"#tab-{name}")).to_be_visible()
    page.wait_for_timeout(1200)  # what the tab asks the server for


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_tab(site: Site, scheme: str):
    site.model.reply = lambda request: (
        "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n<think>hm</think>$x^2$"
    )
    site.app.store.set_preference("local", "sheet.default", {"prompt": "Once", "text": " upon a time"})
    page = site.open(color_scheme=scheme)
    say(page, "hello")
    reply(page)
    found: dict[str, list[str]] = {}
    for tab in TABS:
        open_tab(page, tab)
        violations = Axe().run(page).response["violations"]
        if violations:
            found[tab] = [f"{each['id']}: {node['html'][:160]}" for each in violations for node in each["nodes"][:3]]
    assert found == {}


# What stands on the page in English whatever the language: names, keys, numbers, and what is written in a file or typed.
_NAMES = re.compile(
    r"gptqmodel|textloom|python|markdown|html|json|yaml|gbnf|lark|lora|q?lora|gguf|gptq|awq|transformers|llama\.?cpp|vllm|gradio|torch|peft"
    r"|xllamacpp|bitsandbytes|hugging ?face|mirostat|xtc|dry|top|min|tfs|eta|tau|sigma|epsilon|bos|eos|typical|echo|english"
    r"|auto|linux|x86_64|gpu|cpu|mb|gb|kb|esc|enter|ctrl|shift|simple-1|penalties|quadratic|temperature|qa|alpaca|vicuna|chat|with|input",
    re.IGNORECASE,
)


def test_in_chinese_no_word_of_the_page_is_english(site: Site):
    english = {text for key, text in tables()["en"].items() if re.search(r"[a-z]{3}", text)}
    same = set(tables()["zh"].values())
    page = site.open(locale="zh-CN")
    wrong: dict[str, set[str]] = {}
    for tab in TABS:
        open_tab(page, tab)
        texts: list[str] = page.evaluate(
            """() => {
              const found = [];
              const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
              while (walk.nextNode()) {
                const parent = walk.currentNode.parentElement;
                if (parent.closest("script, style, code, kbd, pre, textarea, .tl-facts dd, .tl-message, .tl-row-title")) continue;
                if (parent.checkVisibility({visibilityProperty: true})) found.push(walk.currentNode.nodeValue.trim());
              }
              for (const element of document.querySelectorAll("[aria-label], [title], [placeholder]")) {
                if (!element.checkVisibility({visibilityProperty: true}) || element.closest("code, .tl-message, .tl-row")) continue;
                for (const name of ["aria-label", "title", "placeholder"]) found.push((element.getAttribute(name) ?? "").trim());
              }
              return found;
            }"""
        )
        for text in texts:
            text = re.sub(r"^(number input|range slider) for ", "", text)  # Gradio's own names for the parts of a slider
            left = _NAMES.sub("", re.sub(r"\w+[_/][\w/.-]+", "", text))  # and names of settings, models and files
            if text in same:  # a term that both languages use
                continue
            if text in english or (re.search(r"[A-Za-z]{3,}", left) and not re.search(r"[\u4e00-\u9fff]", text)):
                wrong.setdefault(tab, set()).add(text[:100])
    assert wrong == {}, wrong
