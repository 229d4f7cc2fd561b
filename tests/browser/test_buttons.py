"""Every button answers in the browser before the server does: what it does is to be seen at once, and a second click sends nothing."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.browser.conftest import Site, reply, say
from tests.browser.test_every_tab import TABS, open_tab

pytestmark = pytest.mark.browser
CLICK = """() => {
  const seen = (element) => element.checkVisibility({visibilityProperty: true}) && !element.closest("[inert]");
  const front = document.querySelector("dialog[open]") ?? [...document.querySelectorAll("#tl-tabs > .tabitem")].find(seen);
  const button = [...front.querySelectorAll("button, [type=submit]")].find((one) => seen(one) && !one.disabled && !("walked" in one.dataset));
  if (!button) return null;
  button.dataset.walked = "";
  const name = button.ariaLabel || button.innerText.trim() || button.className;
  const look = () => [document.querySelectorAll("dialog[open], .tl-menu, .tl-toast, details[open]").length, button.isConnected && seen(button), button.disabled,
    button.ariaPressed, button.ariaSelected, button.ariaExpanded, button.ariaBusy, button.innerHTML, button.className].join("|");
  const before = look();
  const gradio = button.classList.contains("tl-asks");
  button.form?.querySelectorAll("[required]").forEach((input) => { input.value ||= "something"; });
  button.click();
  const shown = look() !== before;
  const off = button.ariaBusy === "true" && button.ariaDisabled === "true";
  if (button.isConnected && seen(button) && !button.disabled && (off || !document.querySelector("dialog[open], .tl-menu") || front.matches("dialog"))) button.click();
  return {name, shown, off, gradio, words: button.dataset.busy ?? ""};
}"""
"""Clicks the next button of the tab (or dialog) in front twice; what was to be seen after the first click, in the same moment."""
BY_ITSELF = re.compile(
    r"GET .*/chats(/(pulse|models|server|deleted|menus|events|training(/[^/]+)?|writing/\w+)?(\?.*)?)?$|POST .*/chats/(context|events/[\w-]+|writing/distribution|\d+/view)$"
)
"""What the page asks for by itself, or after a button did its work in the browser."""


class SlowServer:
    """Holds every request of a page back, until `refuse` has it answered with an error: nothing that is pressed changes anything."""

    def __init__(self, page: Page) -> None:
        self.held: list[tuple[Request, Route]] = []
        page.route(re.compile(r"/chats/(?!static)|/gradio_api/queue/join"), self._hold)

    def _hold(self, route: Route, request: Request) -> None:
        if BY_ITSELF.match(f"{request.method} {request.url}"):
            route.fallback()
        else:
            self.held.append((request, route))

    def refuse(self) -> list[str]:
        """What was asked for since the last time."""
        held, self.held = self.held, []
        for _, route in held:
            route.fulfill(status=503, json={"error": {"message": "The server is slow."}})
        return [f"{request.method} {request.url} {request.post_data or ''}" for request, _ in held]

    def refuse_until_idle(self, page: Page, name: str) -> list[str]:
        """What a click asked for until no button is busy any more; the first question may come after one to the server's pulse."""
        # What the click asks for comes after some steps of the page's own: they are waited for there, however slow it is.
        page.evaluate("new Promise((done) => setTimeout(() => requestAnimationFrame(() => setTimeout(done, 25)), 25))")
        asked = self.refuse()
        for _ in range(1200):
            if not page.locator("button[aria-busy=true]").count():
                return asked
            page.wait_for_timeout(25)
            asked += self.refuse()
        raise AssertionError(f"{name} stays busy though all that it asked for was answered: {asked}")


def gradio_is_idle(page: Page) -> None:
    """Until all that Gradio was asked for is answered, twice in a row: one answer may ask for the next."""
    for _ in range(2):
        page.wait_for_function(
            """() => {
              const seen = performance.getEntriesByType("resource").filter(({name}) => name.includes("/gradio_api/queue/"));
              window.asked_of_gradio ??= 0;
              const quiet = seen.length === window.asked_of_gradio && seen.every(({responseEnd}) => responseEnd);
              window.asked_of_gradio = seen.length;
              return quiet;
            }""",
            polling=300,
        )


@pytest.mark.parametrize("tab", TABS)
def test_every_button_shows_what_it_does_before_the_server_answers_and_asks_once(filled: Site, tab: str):
    for name in ("default", "notebook"):
        filled.app.store.for_owner("local").preferences.set(f"sheet.{name}", {"prompt": "Once", "text": " upon a time"})
    page = filled.open()
    page.on("filechooser", lambda chooser: None)
    say(page, "hello")
    reply(page)
    open_tab(page, tab)
    if tab == "models":
        page.locator(".tl-card").first.click()
        expect(page.locator(".tl-chosen h2").first).not_to_be_empty()
    gradio_is_idle(page)
    server = SlowServer(page)
    walked, wrong = 0, []
    while (found := page.evaluate(CLICK)) is not None and walked < 150:
        walked += 1
        asked = server.refuse_until_idle(page, found["name"])
        if asked and not found["shown"]:
            wrong.append(f"{found['name']} is silent while it asks for {asked}")
        if len(asked) > len(set(asked)):
            wrong.append(f"{found['name']} asks twice: {asked}")
        if found["gradio"] and not (found["off"] and found["words"].endswith("…")):
            wrong.append(f"{found['name']} is not off and does not say what goes on")
        while page.locator(".tl-menu, .tl-toast button[aria-label=Close]").count():
            page.evaluate("document.querySelectorAll('.tl-toast button[aria-label=Close]').forEach((one) => one.click())")
            if page.locator(".tl-menu").count():
                page.keyboard.press("Escape")
        page.evaluate("document.querySelectorAll('dialog[open]').forEach((one) => one.close())")
        page.evaluate("TEXTLOOM.openTab", tab)
    assert wrong == []
    assert walked > 2
