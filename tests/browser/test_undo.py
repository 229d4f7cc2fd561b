"""Every control that deletes or overwrites: it says so, what it took is shown nowhere, and Undo brings it back by the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from fastapi.routing import iter_route_contexts
from playwright.sync_api import Locator, Page, Request, expect

from modules.api.page import chats
from modules.app import App
from modules.services.preferences import Preferences
from tests.browser.conftest import Site, a_server, open_menu, reply, say, until
from tests.browser.test_every_tab import open_tab
from tests.fakes import EchoModel
from tests.field.test_undo import everything_in

pytestmark = pytest.mark.browser


@dataclass(frozen=True)
class Control:
    """press: what a person does; says: what the page says then; gone: shown while it is gone, with the count of such places."""

    press: Callable[[], None]
    says: str
    gone: Callable[[], tuple[Locator, int]] | None = None


KEPT_ELSEWHERE = {
    "/chats/{chat_id}": "a chat stays in the store, marked as deleted",
    "/chats/messages/{message_id}": "so does a message",
    "/chats/model": "takes a model out of memory, and leaves its file",
    "/chats/adapters/{name}": "the same of an adapter",
    "/chats/downloads/{job_id}": "ends a download, and leaves what has come",
    "/chats/deleted/{id}": "asks first, and is what takes things away for good",
}
IN_TRASH = {"/chats/characters/{id}", "/chats/engines/{name}", "/chats/training/{id}", "/chats/writing/prompt"}


def test_every_address_that_deletes_is_accounted_for(site: Site):
    found = {
        context.path for context in iter_route_contexts(chats.router(site.app).routes) if "DELETE" in (context.methods or ())
    }
    assert found == IN_TRASH | set(KEPT_ELSEWHERE)


@pytest.fixture(scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, EchoModel, str]]:
    """A server of this module's own: every file of it is compared."""
    with a_server(tmp_path_factory) as served:
        yield served


@contextmanager
def answered(page: Page) -> Iterator[None]:
    """Until Gradio has answered all that the block began: the answer to an event that begins while its stream ends can be lost."""
    streams: set[Request] = set()

    def begun(request: Request) -> None:
        if "/queue/data" in request.url:
            streams.add(request)

    def ended(request: Request) -> None:
        streams.discard(request)

    handlers = {"request": begun, "requestfinished": ended, "requestfailed": ended}
    for event, handler in handlers.items():
        page.on(event, handler)  # type: ignore[call-overload]
    yield
    page.wait_for_timeout(100)  # for what the block did to be asked
    until(page, lambda: not streams)
    for event, handler in handlers.items():
        page.remove_listener(event, handler)


def test_every_control_that_deletes_or_overwrites_can_be_taken_back(filled: Site):
    site, app = filled, filled.app
    page = site.open()
    shown = page.locator("#tl-tabs")
    table = page.locator("#tab-parameters .tl-summary table")

    def button(name: str, within: Locator | None = None) -> None:
        (within or page).get_by_role("button", name=name, exact=True).locator("visible=true").first.click()

    def preset_of(name: str) -> None:
        box = page.locator("#tab-parameters").get_by_label("Preset").first
        box.fill(name)
        if name in app.presets.names():
            page.get_by_role("option", name=name, exact=True).click()
            expect(table).to_contain_text("top_p1.00.21")
        else:
            box.blur()

    def parameters() -> None:
        open_tab(page, "parameters")
        expect(table).to_be_attached()

    def delete_preset() -> None:
        parameters()
        preset_of("Yara")
        page.locator("#preset-delete").click()

    def temperature(value: str) -> None:
        number = page.locator("#setting-temperature input[type=number]")
        with answered(page):
            number.fill(value)
            number.blur()
        expect(table).to_contain_text(value)

    def overwrite_preset() -> None:
        parameters()
        preset_of("Yara")
        temperature("0.31")
        page.locator("#preset-save").click()

    def overwrite_defaults() -> None:
        parameters()
        temperature("0.42")
        page.locator("#parameters-default").click()

    def prompts(tab: str) -> Locator:
        open_tab(page, tab)
        return page.locator(f"#tab-{tab}")

    def delete_prompt(tab: str) -> Callable[[], None]:
        def press() -> None:
            at = prompts(tab)
            at.get_by_label("Prompts").select_option("QA")
            button("Delete prompt", at)

        return press

    def overwrite_prompt() -> None:
        at = prompts("default")
        at.get_by_label("Prompts").select_option("QA")
        expect(at.locator("textarea").first).to_have_value(app.prompts.read("QA"))
        at.locator("textarea").first.fill("Something else")
        button("Save prompt", at)
        page.locator("dialog[open]").get_by_role("button", name="Save").click()

    def gallery() -> None:
        open_tab(page, "chat")
        if not page.locator("dialog[open]").count():
            page.locator(".tl-character").click()
        expect(page.locator(".tl-who", has_text="Zoe")).to_be_visible()

    def delete_character() -> None:
        gallery()
        button("Delete Zoe")

    def edit_character(name: str) -> Callable[[], None]:
        def press() -> None:
            gallery()
            button("Edit Zoe")
            editor = page.get_by_role("dialog", name="Edit Zoe")
            editor.get_by_label("Name", exact=False).first.fill(name)
            editor.get_by_label("Context").fill("A captain.")
            editor.get_by_role("button", name="Save").click()

        return press

    def remove_engine() -> None:
        open_tab(page, "models")
        page.locator(".tl-card[data-name=far]").click()
        expect(page.locator(".tl-chosen h2").first).to_have_text("far")
        button("Remove far")

    def overwrite_loading() -> None:
        open_tab(page, "models")
        page.locator(".tl-card[data-name=far]").click()
        expect(page.locator("#setting-base_url")).to_be_visible()
        box = page.locator("#setting-base_url").locator("input, textarea")
        box.fill("http://127.0.0.1:10/v1")
        box.blur()
        page.locator("#model-save").click()

    def delete_run() -> None:
        open_tab(page, "training")
        button("Delete", page.locator(".tl-run-buttons"))
        page.locator("dialog[open]").get_by_role("button", name="Delete").click()

    controls: dict[str, Control] = {
        "delete a preset that came with the program": Control(
            delete_preset,
            "Deleted “Yara”",
            lambda: (page.locator("#tab-parameters input[value=Yara], .tl-preset:has-text('Yara')"), 0),
        ),
        "save over a preset": Control(overwrite_preset, "Saved “Yara” over"),
        "save over the defaults": Control(overwrite_defaults, "Saved in settings.yaml"),
        "delete a prompt": Control(
            delete_prompt("default"), "Deleted “QA”", lambda: (page.locator("select option[value=QA]"), 0)
        ),
        "delete a prompt on the other page": Control(
            delete_prompt("notebook"), "Deleted “QA”", lambda: (page.locator("select option[value=QA]"), 0)
        ),
        "save over a prompt": Control(overwrite_prompt, "Saved “QA” over"),
        "delete a character": Control(delete_character, "Deleted “Zoe”", lambda: (page.locator(".tl-who", has_text="Zoe"), 0)),
        "edit a character": Control(edit_character("Zoe"), "Saved “Zoe” over"),
        "rename a character": Control(edit_character("Zoey"), "Saved “Zoey” over"),
        "remove an engine with its key": Control(
            remove_engine,
            "far is no longer in the list",
            lambda: (shown.get_by_text("far", exact=True).locator("visible=true"), 0),
        ),
        "save over how a model is loaded": Control(overwrite_loading, "far is loaded with these settings"),
        "delete a run": Control(delete_run, "Deleted the run facts", lambda: (page.locator(".tl-card[data-id*=facts]"), 0)),
    }
    for name, control in controls.items():
        was = everything_in(app.root)
        control.press()
        undo = page.locator(".tl-toast", has_text=control.says).get_by_role("button", name="Undo")
        undo.hover()  # what is pointed at stays
        assert everything_in(app.root) != was, name
        if control.gone:
            places, count = control.gone()
            expect(places, name).to_have_count(count)
        undo.click()
        expect(page.locator(".tl-toast", has_text="Put back as it was."), name).to_be_visible()
        assert everything_in(app.root) == was, name
        page.evaluate("document.querySelectorAll('.tl-toast button[aria-label=Close]').forEach((one) => one.click())")
        while page.locator("dialog[open]").count():
            page.keyboard.press("Escape")


def test_chats_and_messages_and_replaced_settings_are_taken_back(site: Site):
    page = site.open()
    say(page, "hello")
    reply(page)
    undo = page.locator(".tl-toast").get_by_role("button", name="Undo")
    page.locator(".tl-last .tl-tools").get_by_role("button", name="More for this message").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.locator(".tl-message")).to_have_count(1)
    undo.click()
    expect(page.locator(".tl-message")).to_have_count(2)
    row = page.locator(".tl-row")
    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(row).to_have_count(0)
    undo.click()
    expect(row).to_have_count(1)
    own = Preferences(site.app, "local").sampling[0].changed({"temperature": 0.31})
    Preferences(site.app, "local").set_sampling(own, None)
    open_menu(page, "Preset", "Yara")
    undo.click()
    expect(page.locator(".tl-toast", has_text="Put back as it was.")).to_be_visible()
    assert Preferences(site.app, "local").sampling == (own, None)


def test_what_came_with_the_program_is_put_back_from_the_session_tab_and_the_rest_goes_for_good(site: Site):
    was = everything_in(site.app.root)
    for name in ("Yara", "mine"):
        if name == "mine":
            site.app.presets.save(name, site.app.sampling)
        with site.app.trash.undoable("local", "preset", name, [site.app.presets.file(name)]):
            site.app.presets.delete(name)
    page = site.open()
    open_tab(page, "session")
    rows = page.locator(".tl-deleted li")
    expect(rows).to_have_count(2)
    expect(rows.filter(has_text="Yara")).to_contain_text("came with Textloom")
    rows.filter(has_text="Yara").get_by_role("button", name="Put back").click()
    expect(rows.filter(has_text="Yara")).to_have_count(0)
    assert everything_in(site.app.root) == was
    page.get_by_role("button", name="Delete mine for good").click()
    page.locator("dialog[open]").get_by_role("button", name="Cancel").click()
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Delete mine for good").click()
    page.locator("dialog[open]").get_by_role("button", name="Delete for good").click()
    expect(page.locator(".tl-deleted")).to_contain_text("Nothing was deleted.")
    assert site.app.trash.all("local") == []
