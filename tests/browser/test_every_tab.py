"""Every tab, in both themes and languages: nothing that shuts people out, and no word in the wrong language."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from modules.i18n.catalogs import tables
from modules.library.character import Character
from tests.browser.conftest import Site, message_menu, open_menu, reply, say

pytestmark = pytest.mark.browser
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
STILL = """() => new Promise((resolve) => {
  const begun = performance.now();
  let changed = begun;
  new MutationObserver(() => { changed = performance.now(); }).observe(document, { subtree: true, childList: true, attributes: true });
  const look = () => {
    const now = performance.now();
    const moving = document.getAnimations().some((each) => each.playState === "running" && each.effect.getTiming().iterations !== Infinity);
    if (now - begun > 3000 || (now - changed > 250 && !moving)) resolve(); else setTimeout(look, 50);
  };
  look();
})"""
"""Waits until nothing on the page has changed or moved for a quarter of a second."""
TABS = ("chat", "default", "notebook", "parameters", "models", "training", "session")


def open_tab(page: Page, name: str) -> None:
    page.evaluate(f"TEXTLOOM.openTab('{name}')")
    expect(page.locator(f"#tab-{name}")).to_be_visible()
    page.evaluate(STILL)  # what the tab asks the server for is there, and drawn


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_tab(site: Site, scheme: str):
    site.model.reply = lambda request: (
        "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n<think>hm</think>$x^2$"
    )
    site.app.store.for_owner("local").preferences.set("sheet.default", {"prompt": "Once", "text": " upon a time"})
    page = site.open(color_scheme=scheme)
    say(page, "hello")
    reply(page)
    found = {}
    for tab in TABS:
        open_tab(page, tab)
        found[tab] = violations(page, scheme)
    assert not any(found.values()), found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_dialog_menu_or_pane(site: Site, scheme: str):
    if not site.app.characters.all("local"):
        site.app.characters.save("local", Character("Mira", "A keeper.", "Welcome."))
    answers = iter(("one answer", "another answer"))
    site.model.reply = lambda request: next(answers)
    page = site.open(color_scheme=scheme)
    say(page, "hello")
    reply(page)
    page.locator(".tl-last").get_by_role("button", name="Regenerate").click()
    expect(page.locator(".tl-last .tl-versions")).to_contain_text("2/2")
    reply(page)

    def press(name: str) -> None:
        page.get_by_role("button", name=name, exact=True).click()

    def edit_character() -> None:
        page.locator(".tl-character").click()
        page.get_by_role("dialog").get_by_role("button", name="New", exact=True).click()

    def rename() -> None:
        page.locator(".tl-row.tl-current").get_by_role("button").click()
        page.get_by_role("menuitem", name="Rename").click()

    openings: dict[str, Callable[[], None]] = {
        "models": lambda: page.locator(".tl-model").click(),
        "presets": lambda: press("Preset"),
        "characters": lambda: page.locator(".tl-character").click(),
        "new character": edit_character,
        "settings": lambda: press("Chat settings"),
        "view": lambda: press("Look at this conversation"),
        "keys": lambda: open_menu(page, "Look at this conversation", "Keyboard"),
        "map": lambda: page.keyboard.press("Control+Shift+M"),
        "prompt": lambda: page.locator(".tl-context").click(),
        "marks": lambda: open_menu(page, "Look at this conversation", "training data"),
        "composer": lambda: press("More ways to go on"),
        "compare": lambda: page.keyboard.press("Control+Shift+K"),
        "start": lambda: open_menu(page, "More ways to go on", "Start replies with"),
        "message": lambda: page.locator(".tl-last .tl-tools").get_by_role("button", name="More for this message").click(),
        "diff": lambda: message_menu(page, "Compare versions"),
        "row": lambda: page.locator(".tl-row.tl-current").get_by_role("button").click(),
        "rename": rename,
    }
    found = {}
    for name, opening in openings.items():
        opening()
        expect(page.locator("dialog[open], .tl-menu")).not_to_have_count(0)
        page.evaluate(STILL)  # what it asks the server for is there, and it has come into view
        found[name] = violations(page, scheme)
        while page.locator("dialog[open], .tl-menu").count():
            page.keyboard.press("Escape")
    page.keyboard.press("Control+Shift+L")
    page.locator(".tl-last").get_by_role("button", name="Edit").click()
    found["editor"] = violations(page, scheme)
    assert not any(found.values()), found


def violations(page: Page, scheme: str) -> list[str]:
    """What axe objects to, with the places. In the dark, of what colours are for: all else was looked at in the light."""
    found = Axe().run(page, **({"options": CONTRAST} if scheme == "dark" else {})).response["violations"]
    return [f"{each['id']}: {node['html'][:160]}" for each in found for node in each["nodes"][:3]]


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
            left = _NAMES.sub("", re.sub(r"\w+[_/][\w/.-]+", "", text))  # names of settings, models and files
            if text in same:  # a term that both languages use
                continue
            phrase = re.search(r"[a-z]{2,}( [a-z]{2,}){2}", left)
            if text in english or phrase or (re.search(r"[A-Za-z]{3,}", left) and not re.search(r"[\u4e00-\u9fff]", text)):
                wrong.setdefault(tab, set()).add(text[:100])
    assert wrong == {}, wrong
