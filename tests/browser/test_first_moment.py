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
