"""A browser for the tests that drive the page, and the page with a model whose words the test decides."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from modules.app import App
from modules.generation.stream import EventStream
from modules.generation.types import GenerationRequest, Queued
from modules.library.character import Character
from modules.library.remote_address import RemoteAddress, write_address
from modules.services.preferences import Preferences
from tests.fakes import EchoModel
from tests.field.test_undo import a_run
from tests.harness import evidence
from tests.in_process import ROOT, make_app, serving
from tests.library.test_characters import picture

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
]
PATIENCE = 30_000
"""Milliseconds: machines that run tests are busy."""


def chromium() -> str | None:
    """Where the browser is; None lets Playwright use its own."""
    return (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium-headless-shell")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ends with its module: while it lives, Playwright keeps an event loop running in this thread, and asyncio.run fails."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        evidence.keep(partial(keep_screenshots, launched))
        yield launched
        launched.close()


def keep_screenshots(browser: Browser, folder: Path) -> None:
    """Of every page that is open, as far as it still answers."""
    pages = [page for context in browser.contexts for page in context.pages]
    for number, page in enumerate(pages, 1):
        with contextlib.suppress(Error):
            page.screenshot(path=folder / f"page-{number}.png", timeout=5_000)


TABLES = ("chats", "preferences", "pictures")
"""What visitors leave in the store; messages go with their chats."""


class Site:
    """One server with a scripted model, and pages on it. `model.reply` may be changed at any time."""

    def __init__(self, app: App, model: EchoModel, url: str, browser: Browser) -> None:
        self.app, self.model, self.url = app, model, url
        self._browser = browser
        self.errors: list[str] = []
        self.elsewhere: list[str] = []

    def open(self, path: str = "", *, width: int = 1280, height: int = 800, locale: str = "en-US", **context: object) -> Page:
        """A new visitor's page, when the chat view is ready. Errors of the page and requests elsewhere are noted."""
        page = self.empty(viewport={"width": width, "height": height}, locale=locale, **context)
        page.goto(self.url + path)
        page.wait_for_selector(".tl-composer textarea")
        page.wait_for_function("document.querySelector('.tl-model').dataset.state")
        return page

    def empty(self, **context: object) -> Page:
        """A new visitor who has not gone anywhere yet."""
        page = self._browser.new_context(**context).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._noted(request.url))
        return page

    @contextmanager
    def all_wait(self, place: int) -> Iterator[list[EventStream]]:
        """Every reply asked for waits in line at this place; their streams, in the order in which they were asked for."""
        waiting: list[EventStream] = []

        def stream(request: GenerationRequest) -> EventStream:
            waiting.append(EventStream())
            waiting[-1].put(Queued(place))
            return waiting[-1]

        self.model.stream = stream  # type: ignore[method-assign]
        try:
            yield waiting
        finally:
            del self.model.stream

    def end(self) -> None:
        """Close all pages, end all replies and forget what visitors did: the next test finds the program as it was new.

        Fails where a page had an error or asked another host for anything.
        """
        for context in list(self._browser.contexts):
            context.close()
        self.app.replies.close()
        self.app.notebooks.close()
        with self.app.store.database.transaction() as db:
            for table in TABLES:
                db.execute(f"DELETE FROM {table}")
        for entry in self.app.characters.all("local"):
            self.app.characters.delete("local", entry.id)
        for folder in ("presets", "prompts"):
            shutil.rmtree(self.app.root / folder)
            shutil.copytree(ROOT / folder, self.app.root / folder)
        shutil.rmtree(self.app.data / "deleted", ignore_errors=True)
        self.app.downloads._jobs.clear()
        errors, elsewhere = self.errors[:], self.elsewhere[:]
        self.errors.clear()
        self.elsewhere.clear()
        assert errors == [] and elsewhere == []

    def _noted(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(url)


@contextmanager
def a_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, EchoModel, str]]:
    model = EchoModel(name="echo", reply=an_answer)
    app = make_app(tmp_path_factory.mktemp("site"), model)
    with serving(app) as url:
        yield app, model, url
    app.close()


@pytest.fixture(scope="session")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, EchoModel, str]]:
    """Takes seconds to build, so that all modules share it."""
    with a_server(tmp_path_factory) as served:
        yield served


@pytest.fixture
def site(_served: tuple[App, EchoModel, str], browser: Browser) -> Iterator[Site]:
    """The page; the test fails where the page had an error or asked another host for anything."""
    app, model, url = _served
    vars(model).update(vars(EchoModel(name="echo", reply=an_answer)))
    site = Site(app, model, url, browser)
    yield site
    site.end()


@pytest.fixture
def filled(site: Site) -> Iterator[Site]:
    """One thing of each kind on the page: a character, engines, settings of a model, a run, defaults."""
    app = site.app
    app.characters.save("local", Character("Zoe", "A pilot."), picture())
    write_address(app.models.folder, "far", RemoteAddress("http://127.0.0.1:9/v1", api_key="s3cret"))
    write_address(app.models.folder, "near", RemoteAddress("http://127.0.0.1:9/v1"))
    app.saved_options.save("far", app.loading.changed({"cpu": True}))
    a_run(app)
    Preferences(app, "local").save_as_default()
    yield site
    for path in ("models/far.yaml", "models/near.yaml", "models/config-user.yaml", "settings.yaml"):
        (app.root / path).unlink(missing_ok=True)
    for folder in ("training/runs", "data/deleted"):
        shutil.rmtree(app.root / folder, ignore_errors=True)
    app.sampling, app.page = type(app.sampling)(), type(app.page)()


def an_answer(request: GenerationRequest) -> str:
    return "An answer."


def type_and_send(page: Page, text: str) -> None:
    page.fill(".tl-composer textarea", text)
    page.press(".tl-composer textarea", "Enter")


def say(page: Page, text: str) -> None:
    """Type a message and send it, and wait until it stands there, or the page says why not: before, the last reply is another one."""
    before = page.locator(".tl-message").count()
    type_and_send(page, text)
    page.wait_for_function(
        "before => document.querySelectorAll('.tl-message').length > before || document.querySelector('.tl-toast.tl-wrong')",
        arg=before,
    )


def reply(page: Page, number: int = -1) -> str:
    """The text of the last (or another) reply, once it is finished."""
    replies = page.locator(".tl-message[data-role=assistant]")
    page.wait_for_function("[...document.querySelectorAll('.tl-message')].every(m => m.dataset.state !== 'streaming')")
    return (
        replies.nth(number).locator(".tl-body").inner_text() if number >= 0 else replies.last.locator(".tl-body").inner_text()
    )


def copied(page: Page, said: str = "Copied") -> str:
    """What was just put on the clipboard, which is empty then: what the page says of one copy stands there for seconds, after the next too."""
    expect(page.locator(".tl-toast", has_text=said).last).to_be_visible()
    text = ""

    def there() -> bool:
        # Not by `wait_for_function`, which takes a promise of an empty text for an answer.
        nonlocal text
        text = page.evaluate("navigator.clipboard.readText()")
        return bool(text)

    until(page, there)
    page.evaluate("navigator.clipboard.writeText('')")
    return text


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Wait for something that happens on the server."""
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not happen in time")


def message_menu(page: Page, item: str, message: str = ".tl-last") -> None:
    """Choose something from the menu of the last (or another) message."""
    page.locator(f"{message} .tl-tools").get_by_role("button", name="More for this message").click()
    page.get_by_role("menuitem", name=item).click()


def open_menu(page: Page, button: str, item: str) -> None:
    """Choose something from the menu under a button."""
    page.get_by_role("button", name=button, exact=True).click()
    page.locator(".tl-menu button").filter(has_text=item).click()
