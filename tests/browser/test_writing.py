"""The Default and Notebook tabs: each button, in both languages, and what happens to a reply meanwhile."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site

pytestmark = pytest.mark.browser
TABS = {"default": "Default", "notebook": "Notebook"}


class Paper:
    """One of the two tabs, in front."""

    def __init__(self, page: Page, name: str, *, open_it: bool = True) -> None:
        self.page, self.name = page, name
        if open_it:
            page.locator(f"#tab-{name}-button").click()
        self.at = page.locator(f"#tab-{name}")
        expect(self.at.locator(".tl-writing")).to_have_attribute("data-state", re.compile("whole|cut|streaming"))
        self.papers = self.at.locator("textarea.tl-paper")
        self.text = self.papers.last
        self.start = self.papers.first
        """Where people write: the prompt, or the free page."""

    def button(self, name: str):
        return self.at.get_by_role("button", name=name, exact=True)

    def view(self, name: str) -> None:
        self.at.get_by_role("tab", name=name, exact=True).click()

    def state(self, state: str) -> None:
        expect(self.at.locator(".tl-writing")).to_have_attribute("data-state", state)


@pytest.mark.parametrize("name", TABS)
def test_every_button_of_a_page_does_its_work(site: Site, name: str):
    site.model.reply = lambda request: " and more"
    page = site.open()
    paper = Paper(page, name)
    page.get_by_role("tab", name=TABS[name]).click()
    before = "" if name == "default" else "Once"
    paper.start.fill("Once")
    paper.button("Generate").click()
    expect(paper.text).to_have_value(before + " and more")
    paper.state("whole")
    paper.button("Continue").click()
    expect(paper.text).to_have_value(before + " and more and more")
    paper.state("whole")
    assert site.model.requests[-1].prompt == "Once and more"
    site.model.reply = lambda request: " otherwise"
    paper.button("Regenerate").click()
    expect(paper.text).to_have_value(before + " otherwise")
    paper.state("whole")
    expect(paper.at.locator(".tl-writing-status")).to_contain_text("tokens")
    paper.button("Count tokens").click()
    expect(paper.at.locator(".tl-writing-status")).to_contain_text("the context holds 4,096")
    paper.button("Undo").click()
    expect(paper.text).to_have_value(before)
    page.get_by_role("button", name="Bring it back").click()
    expect(paper.text).to_have_value(before + " otherwise")


def test_the_prompt_is_on_the_left_and_the_reply_on_the_right(site: Site):
    paper = Paper(site.open(), "default")
    left, right = paper.at.locator(".tl-left"), paper.at.locator(".tl-right")
    beside = "([left, right]) => left.getBoundingClientRect().right <= right.getBoundingClientRect().left"
    paper.page.wait_for_function(beside, arg=[left.element_handle(), right.element_handle()])
    tops = [each.evaluate("area => area.getBoundingClientRect().top") for each in (paper.start, paper.text)]
    assert abs(tops[0] - tops[1]) < 3


@pytest.mark.parametrize("name", TABS)
def test_a_reply_survives_a_reload_and_stop_ends_it_at_once(site: Site, name: str):
    site.app.store.for_owner("local").preferences.set("sampling", {"values": {"max_tokens": 3000}})
    site.model.reply, site.model.pace = (lambda request: "word " * 4000), 0.004
    page = site.open()
    paper = Paper(page, name)
    paper.start.fill("Begin: ")
    paper.start.press("Control+Enter")
    page.wait_for_function(
        "tab => [...document.querySelectorAll(`#tab-${tab} textarea`)].at(-1).value.includes('word word')", arg=name
    )
    page.reload()
    paper = Paper(page, name, open_it=False)  # the tab is still in front
    paper.state("streaming")
    seen = len(paper.text.input_value())
    page.wait_for_function(
        "([tab, seen]) => [...document.querySelectorAll(`#tab-${tab} textarea`)].at(-1).value.length > seen", arg=[name, seen]
    )
    paper.button("Stop").click()
    paper.state("cut")
    text = paper.text.input_value()
    assert text == site.app.notebooks.for_owner("local").read(name).text and 20 < len(text) < 3000
    assert text.removeprefix("Begin: " if name == "notebook" else "").startswith("word word")
    assert site.model.streams[-1].closed


def test_the_views_show_markdown_html_tokens_and_what_could_come_next(site: Site):
    site.model.reply = lambda request: "# Big\n\n<b onclick='x()'>bold</b><script>window.ran = 1</script>"
    page = site.open()
    paper = Paper(page, "default")
    paper.start.fill("x")
    paper.button("Generate").click()
    paper.state("whole")
    paper.view("Markdown")
    shown = paper.at.locator(".tl-shown")
    expect(shown.locator("h1")).to_have_text("Big")
    expect(shown).to_contain_text("<b onclick='x()'>")
    paper.view("HTML")
    expect(shown).to_contain_text("# Big")
    expect(shown).not_to_contain_text("<b")
    assert page.evaluate("window.ran") is None
    paper.view("Token ids")
    expect(shown.locator("li").first).to_contain_text("35")  # "#"
    paper.view("Next token")
    expect(shown.locator(".tl-distribution li").first).to_contain_text("→")
    shown.locator(".tl-distribution button").first.click()
    paper.view("Raw")
    expect(paper.text).to_have_value(re.compile(r"</script>.$", re.DOTALL))


def test_markdown_is_drawn_while_it_streams(site: Site):
    site.model.reply, site.model.pace = (lambda request: "**bold** words\n\n" * 30), 0.005
    page = site.open()
    paper = Paper(page, "default")
    paper.view("Markdown")
    paper.start.fill("x")
    paper.button("Generate").click()
    expect(paper.at.locator(".tl-shown strong").nth(2)).to_be_visible()
    paper.state("streaming")
    paper.view("Raw")
    paper.state("whole")
    expect(paper.text).to_have_value("**bold** words\n\n" * 30)


def test_prompts_are_chosen_saved_and_deleted(site: Site):
    page = site.open()
    paper = Paper(page, "default")
    menu = paper.at.get_by_label("Prompts")
    menu.select_option("Alpaca")
    expect(paper.start).to_have_value(re.compile("Write a poem"))
    paper.start.fill("mine")
    paper.button("Save prompt").click()
    page.get_by_role("textbox", name="Title A prompt").fill("../../etc/x")
    page.get_by_role("button", name="Save", exact=True).last.click()
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("cannot be")
    paper.button("Save prompt").click()
    page.get_by_role("textbox", name="Title A prompt").fill("My own")
    page.get_by_role("button", name="Save", exact=True).last.click()
    expect(menu).to_have_value("My own")
    assert site.app.prompts.read("My own") == "mine"
    paper.button("Delete prompt").click()
    expect(menu).to_have_value("")
    assert "My own" not in site.app.prompts.names()


def test_an_adapter_writes_where_one_is_chosen(site: Site):
    site.model.load_adapter("poet", "somewhere")
    page = site.open()
    paper = Paper(page, "notebook")
    paper.at.get_by_label("Adapter").select_option("poet")
    paper.text.fill("Once")
    paper.button("Generate").click()
    paper.state("whole")
    expect(paper.text).to_have_value("OnceAn answer.")
    assert site.model.requests[-1].adapter == "poet"
    site.model.unload_adapter("poet")


def test_two_tabs_on_one_page_see_each_other(site: Site):
    first, second = Paper(site.open(), "notebook"), Paper(site.open(), "notebook")
    first.text.fill("from the first")
    expect(second.text).to_have_value("from the first")


def test_without_streaming_the_reply_comes_whole(site: Site):
    site.app.store.for_owner("local").preferences.set("page", {"stream": False})
    site.model.reply, site.model.pace = (lambda request: "word " * 100), 0.003
    page = site.open()
    paper = Paper(page, "notebook")
    paper.text.fill("x")
    page.evaluate(
        "window.lengths = new Set(); const paper = document.querySelector('#tab-notebook textarea');"
        " (function look() { window.lengths.add(paper.value.length); requestAnimationFrame(look); })()"
    )
    paper.button("Generate").click()
    paper.state("streaming")
    paper.state("whole")
    expect(paper.text).to_have_value("x" + "word " * 100)
    assert page.evaluate("[...window.lengths].sort((a, b) => a - b)") == [1, 501]


def test_both_pages_work_in_chinese_on_a_phone(site: Site):
    site.model.reply = lambda request: "好的"
    page = site.open(width=390, height=844, locale="zh-CN")
    for name in TABS:
        page.evaluate(f"TEXTLOOM.openTab('{name}')")
        paper = Paper(page, name, open_it=False)
        paper.start.fill("你好")
        paper.button("生成").click()
        expect(paper.text).to_have_value("好的" if name == "default" else "你好好的")
        paper.state("whole")
        for button in ("继续", "撤销", "重新生成", "统计词元", "保存提示词", "删除提示词"):
            expect(paper.button(button)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("first", "width"), [("notebook", 1280), ("parameters", 1280), ("session", 390)])
def test_the_page_opens_on_the_tab_that_was_chosen(site: Site, first: str, width: int):
    """On a phone too, where most tabs are in a menu."""
    site.app.store.for_owner("local").preferences.set("page", {"first_tab": first})
    page = site._browser.new_context(viewport={"width": width, "height": 844}).new_page()
    page.goto(site.url)
    expect(page.locator(f"#tab-{first}")).to_be_visible()
    page.reload()
    expect(page.locator(f"#tab-{first}")).to_be_visible()
