"""The Session tab and what is new on Parameters: choices that last, the live plot, everything as one file."""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Page, expect

from modules.api.page import views
from modules.services.preferences import Preferences
from modules.services.workspace import Workspace
from tests.browser.conftest import Site, copied, reply, say

pytestmark = pytest.mark.browser


def open_tab(page: Page, name: str) -> None:
    page.locator(f"#tab-{name}-button").click()
    expect(page.locator(f"#tab-{name}")).to_be_visible()


def bring_in(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import a file").click()
    chooser.value.set_files(path)


def test_everything_goes_into_a_file_and_comes_back(site: Site, tmp_path: Path):
    page = site.open()
    say(page, "a question to keep")
    reply(page)
    open_tab(page, "session")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export everything").click()
    path = tmp_path / "all.zip"
    download.value.save_as(path)
    before = len(site.app.store.for_owner("local").chats.page())
    bring_in(page, path)
    expect(page.locator(".tl-toast")).to_contain_text(f"Chats: {before}")
    assert len(site.app.store.for_owner("local").chats.page()) == 2 * before
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"no zip")
    bring_in(page, bad)
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("no zip")


def test_what_the_page_opens_on_is_chosen_and_saved_for_all(site: Site):
    page = site.open()
    open_tab(page, "session")
    page.get_by_label("The tab that opens first").select_option("notebook")
    expect(page.locator(".tl-toast")).to_contain_text("Kept")
    assert Preferences(site.app, "local").page.first_tab == "notebook"
    page.locator("#tab-session").get_by_role("button", name="Save as default").click()
    expect(page.locator(".tl-toast").last).to_contain_text("settings.yaml")
    path = site.app.root / "settings.yaml"
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["first_tab"] == "notebook"
    path.unlink()
    site.app.page = type(site.app.page)()


def test_nothing_moves_when_the_server_has_told_of_itself(site: Site, monkeypatch: pytest.MonkeyPatch):
    told, view = threading.Event(), views.server_view

    def when_told(workspace: Workspace) -> dict[str, Any]:
        told.wait(60)
        return view(workspace)

    monkeypatch.setattr(views, "server_view", when_told)
    page = site.open()
    open_tab(page, "session")
    button = page.get_by_role("button", name="Import a file")
    before = button.bounding_box()
    defaults = page.locator("#tab-session").get_by_role("button", name="Save as default")
    expect(defaults).to_be_hidden()
    told.set()
    expect(defaults).to_be_visible()
    assert button.bounding_box() == before


def test_the_report_of_the_server_is_copied(site: Site):
    page = site.open(permissions=["clipboard-read", "clipboard-write"])
    open_tab(page, "session")
    expect(page.locator(".tl-facts")).to_contain_text("gradio")
    page.get_by_role("button", name="Copy for a report").click()
    assert re.search(r"Python: 3\.", copied(page))


def test_the_plot_shows_what_the_settings_do_to_the_next_token(site: Site):
    page = site.open()
    open_tab(page, "parameters")
    plot = page.locator(".tl-live-plot")
    expect(plot.locator(".tl-distribution li")).to_have_count(20)
    expect(plot.locator(".tl-distribution-head strong")).to_have_text("Tokens kept: 1")
    expect(plot.locator("li.tl-dropped")).to_have_count(19)
    before = len(site.model.requests)
    temperature = page.locator("#setting-temperature input[type=number]")
    temperature.fill("0.42")
    temperature.blur()
    for _ in range(200):
        if any(request.sampling.temperature == 0.42 for request in site.model.requests[before:]):
            break
        page.wait_for_timeout(50)
    else:
        raise AssertionError("the plot did not ask again")
    plot.get_by_label("After this text").fill("zebra")
    page.wait_for_timeout(800)
    assert site.model.requests[-1].prompt == "zebra"


def test_what_the_loader_does_not_take_is_greyed_out_with_the_reason(site: Site):
    every = site.model.capabilities
    site.model.capabilities = dataclasses.replace(every, samplers=every.samplers - {"top_a"})
    page = site.open()
    open_tab(page, "parameters")
    expect(page.locator("#setting-top_a input[type=number]")).to_be_disabled()
    expect(page.locator("#setting-top_a")).to_contain_text("does not take this setting")
    expect(page.locator("#setting-top_k input[type=number]")).to_be_enabled()
    site.model.capabilities = every


def test_streaming_is_switched_off_and_parameters_are_saved_for_all(site: Site):
    page = site.open()
    open_tab(page, "parameters")
    expect(page.locator(".tl-summary table")).to_be_attached()
    page.locator("#page-setting-stream input").click()
    preset = page.locator("#tab-parameters").get_by_label("Preset").first
    preset.fill("Yara")
    page.get_by_role("option", name="Yara").click()
    expect(page.locator(".tl-summary table")).to_contain_text("top_p1.00.21")
    page.locator("#tab-parameters").get_by_role("button", name="Save as default").click()
    expect(page.locator(".tl-toast")).to_contain_text("settings.yaml")
    assert Preferences(site.app, "somebody new").sampling[1] == "Yara"
    assert Preferences(site.app, "somebody new").page.stream is False
    (site.app.root / "settings.yaml").unlink()
    site.app.page, site.app.sampling = type(site.app.page)(), type(site.app.sampling)()
