"""The event stream that all tabs of a browser share: more tabs than a browser has connections, and what breaks it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Site, say, until

TABS = 7
"""A browser holds six connections to one host."""


@pytest.fixture
def slow(site: Site) -> Iterator[Site]:
    """Replies that do not end before the test does."""
    site.model.reply, site.model.pace = lambda request: "word " * 10_000, 0.02
    yield site
    site.app.replies.close()


def another(first: Page, site: Site) -> Page:
    page = first.context.new_page()
    page.goto(site.url)
    page.wait_for_function("document.querySelector('.tl-model')?.dataset.state")
    return page


def length(page: Page) -> int:
    return page.evaluate("document.querySelector('.tl-message[data-role=assistant] .tl-body')?.textContent.length ?? 0")


def grows(page: Page) -> None:
    page.wait_for_function(
        "before => document.querySelector('.tl-message[data-role=assistant] .tl-body')?.textContent.length > before",
        arg=length(page),
    )


def test_replies_move_in_more_tabs_than_a_browser_has_connections(slow: Site):
    pages = [slow.open()]
    pages += [another(pages[0], slow) for _ in range(TABS - 1)]
    for number, page in enumerate(pages):
        say(page, f"question {number}")
    for page in pages:
        grows(page)
    for page in pages:  # all of them still do, with all of them open
        grows(page)
    assert pages[-1].evaluate("fetch('chats/menus').then((reply) => reply.ok)"), "there are connections left for all else"


def test_a_stream_that_breaks_goes_on_where_it_was(slow: Site):
    page = slow.open()
    say(page, "question")
    grows(page)
    slow.app.on_stop[-1]()  # what a restart does to streams
    before = length(page)
    page.wait_for_function("before => document.querySelector('.tl-last .tl-body').textContent.length > before + 50", arg=before)
    reply = slow.app.replies.for_owner("local").get(last_reply(slow))
    assert reply is not None
    text = page.locator(".tl-last .tl-body").inner_text()
    assert reply.progress.text.startswith(text), "nothing is lost, and nothing is there twice"


def last_reply(site: Site) -> int:
    history = site.app.store.for_owner("local")
    return history.messages.path(history.chats.page()[0].id)[-1].message.id


def no_shared_workers(context: BrowserContext) -> None:
    context.add_init_script("delete window.SharedWorker;")


def test_a_browser_without_shared_workers_has_a_stream_of_its_own(slow: Site):
    page = slow.empty()
    no_shared_workers(page.context)
    page.goto(slow.url)
    page.wait_for_function("document.querySelector('.tl-model')?.dataset.state")
    say(page, "question")
    grows(page)


def test_a_tab_that_nobody_sees_follows_nothing_and_catches_up(slow: Site):
    page = slow.empty()
    no_shared_workers(page.context)  # so that its requests are seen here
    page.goto(slow.url)
    page.wait_for_function("document.querySelector('.tl-model')?.dataset.state")
    say(page, "question")
    grows(page)
    with page.expect_event("requestfailed", lambda request: "/chats/events" in request.url):  # it is given up
        hide(page, True)
    before = length(page)
    reply = slow.app.replies.for_owner("local").get(last_reply(slow))
    assert reply is not None
    until(page, lambda: len(reply.progress.text) > before + 200)
    assert length(page) == before
    hide(page, False)
    page.wait_for_function(
        "before => document.querySelector('.tl-last .tl-body').textContent.length > before + 200", arg=before
    )


def hide(page: Page, hidden: bool) -> None:
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', {configurable: true, get: () => hidden});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def test_behind_a_proxy_that_holds_streams_back_the_page_asks_for_news(site: Site):
    """Such a proxy hands an answer on when it is whole: what never ends never comes."""
    page = site.empty()
    no_shared_workers(page.context)
    page.clock.install()
    page.add_init_script(
        """
        const ask = window.fetch;
        window.fetch = (address, options) => {
          if (!String(address).includes("/chats/events?")) return ask(address, options);
          return ask(address, options).then(async (reply) => new Response(await reply.text(), {headers: reply.headers}));
        };
        """
    )
    page.goto(site.url)
    page.wait_for_selector(".tl-composer textarea")
    page.clock.run_for(16_000)  # the time in which a stream shows that it comes piece by piece
    page.wait_for_function("document.querySelector('.tl-model').dataset.state === 'ready'")
    page.clock.resume()
    say(page, "question")
    expect(page.locator(".tl-message[data-role=assistant]")).to_contain_text("An answer.")


def test_who_has_logged_out_is_told_nothing_more(site: Site):
    """Without a session the stream is refused, and the page goes to the login by itself."""
    page = site.empty()
    no_shared_workers(page.context)
    page.goto(site.url)
    page.wait_for_function("document.querySelector('.tl-model')?.dataset.state")
    refused = json.dumps({"error": {"message": "Log in first."}})
    page.route(re.compile(r"/chats/events\?"), lambda route: route.fulfill(status=401, body=refused), times=1)
    with page.expect_event("load"):
        site.app.on_stop[-1]()
