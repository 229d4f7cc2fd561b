"""The page while Gradio is not there yet: the chat can be used at once, and goes into its tab as it is."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Site, say

pytestmark = pytest.mark.browser


class Held:
    """Gradio's scripts, which do not arrive until they are let through."""

    def __init__(self, page: Page) -> None:
        self._waiting: list[Route] = []
        self._open = False
        page.route("**/assets/*.js", self._meet)

    def _meet(self, route: Route) -> None:
        if self._open:
            route.continue_()
        else:
            self._waiting.append(route)

    def let_through(self) -> None:
        self._open = True
        for route in self._waiting:
            route.continue_()


@pytest.fixture
def visit(site: Site) -> tuple[Page, Held]:
    return begin(site)


def begin(site: Site, **context: object) -> tuple[Page, Held]:
    page = site.empty(**context)
    held = Held(page)
    page.goto(site.url, wait_until="commit")
    return page, held


def test_a_chat_begun_before_gradio_is_there_goes_on_in_its_tab(site: Site, visit: tuple[Page, Held]):
    page, held = visit
    site.model.reply = lambda request: "An early answer."
    say(page, "An early question")
    expect(page.locator(".tl-message[data-role=assistant] .tl-body")).to_have_text("An early answer.")
    page.fill(".tl-composer textarea", "half a")
    page.locator(".tl-composer textarea").evaluate("area => area.setSelectionRange(4, 4)")
    held.let_through()
    expect(page.locator("#chat-view .tl-message")).to_have_count(2)
    expect(page.locator("#tl-early")).to_have_count(0)
    page.keyboard.type(" whole")
    expect(page.locator(".tl-composer textarea")).to_have_value("half whole a")
    page.fill(".tl-composer textarea", "")
    say(page, "And again")
    expect(page.locator("#chat-view .tl-message")).to_have_count(4)


def test_a_tab_that_is_asked_for_early_opens_once_it_is_there(site: Site, visit: tuple[Page, Held]):
    page, held = visit
    page.get_by_role("button", name="Parameters", exact=True).click()
    held.let_through()
    expect(page.locator("#tab-parameters")).to_be_visible()


def test_the_style_is_there_from_the_first_and_stays_behind_those_that_come_late(site: Site, visit: tuple[Page, Held]):
    page, held = visit
    look = "element => { const style = getComputedStyle(element); return [style.width, style.backgroundColor, style.font] }"
    expect(page.locator(".tl-new")).to_be_visible()
    early = [page.locator(name).evaluate(look) for name in (".tl-side", ".tl-new", ".tl-search input", ".tl-composer textarea")]
    held.let_through()
    expect(page.locator("#chat-view .tl-new")).to_be_visible()
    page.wait_for_function("[...document.styleSheets].some((sheet) => sheet.href?.includes('theme.css'))")
    late = [page.locator(name).evaluate(look) for name in (".tl-side", ".tl-new", ".tl-search input", ".tl-composer textarea")]
    assert early == late and early[0][0] == "270px"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_early_page_has_the_colours_of_the_late_one(site: Site, scheme: str):
    page, held = begin(site, color_scheme=scheme)
    expect(page.locator(".tl-composer textarea")).to_be_visible()
    colours = "[document.body, document.querySelector('.tl-side')].map((element) => getComputedStyle(element).backgroundColor)"
    early = page.evaluate(colours)
    held.let_through()
    expect(page.locator("#chat-view .tl-side")).to_be_visible()
    assert page.evaluate(colours) == early
    assert ("rgb(255, 255, 255)" in early) == (scheme == "light")


def watch_colours(page: Page) -> None:
    """Keep in `frames_` what stands behind the page, in each frame since it has a body."""
    page.add_init_script(
        "window.frames_ = new Set(); (function look() {"
        "  if (document.body) frames_.add(getComputedStyle(document.body).backgroundColor);"
        "  requestAnimationFrame(look); })()"
    )


@pytest.mark.parametrize("tab", ["chat", "models"])
def test_a_dark_page_is_dark_from_its_first_frame(site: Site, tab: str):
    page = site.empty(color_scheme="dark")
    watch_colours(page)
    page.add_init_script(f"sessionStorage.setItem('textloom-tab', '{tab}')")
    held = Held(page)
    page.goto(site.url, wait_until="commit")
    page.wait_for_function("document.body && window.TEXTLOOM && frames_.size")
    held.let_through()
    expect(page.locator(f"#tab-{tab}")).to_be_visible()
    assert page.evaluate("[...frames_]") == ["rgb(23, 24, 27)"]
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert page.evaluate("document.querySelector('meta[name=color-scheme]').content") == "light dark"


def test_the_theme_that_was_chosen_stands_against_that_of_the_system(site: Site):
    site.app.store.for_owner("local").preferences.set("page", {"theme": "light"})
    page = site.empty(color_scheme="dark")
    watch_colours(page)
    page.goto(site.url)
    expect(page.locator("#chat-view .tl-new")).to_be_visible()
    assert page.evaluate("[...frames_]") == ["rgb(255, 255, 255)"]
    assert page.evaluate("document.querySelector('meta[name=color-scheme]').content") == "light"


def test_nothing_of_gradio_lies_over_the_chat_that_is_there_already(site: Site):
    page = site.empty()
    page.add_init_script(
        "window.over = []; (function look() {"
        "  const early = document.getElementById('tl-early'); const loading = document.querySelector('gradio-app .wrap, .gradio-container .wrap');"
        "  if (early && loading) { const place = loading.getBoundingClientRect(); window.met = true;"
        "    const top = document.elementFromPoint(place.x + place.width / 2, Math.min(innerHeight - 1, place.y + place.height / 2));"
        "    if (top && !early.contains(top) && !top.contains(early)) over.push(top.outerHTML.slice(0, 80)); }"
        "  setTimeout(look, 5); })()"
    )
    page.goto(site.url)
    expect(page.locator("#chat-view .tl-new")).to_be_visible()
    expect(page.locator("#tl-early")).to_have_count(0)
    assert page.evaluate("window.met") and page.evaluate("over") == []


def test_people_with_conversations_are_not_told_that_they_have_none(site: Site):
    site.app.store.for_owner("local").chats.create(title="Here it is")
    page = site.empty()
    page.route("**/chats?search=*", lambda route: (page.wait_for_timeout(300), route.continue_()))
    page.add_init_script(
        "window.said = new Set(); new MutationObserver(() => {"
        "  const list = document.querySelector('.tl-list'); if (list) said.add(list.innerText.trim()); })"
        "  .observe(document, {childList: true, subtree: true})"
    )
    page.goto(site.url)
    expect(page.locator(".tl-list")).to_contain_text("Here it is")
    assert not any("will be listed" in text for text in page.evaluate("[...said]"))
