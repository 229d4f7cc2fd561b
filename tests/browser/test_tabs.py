"""The other tabs: what is set there is kept, and what goes wrong is said."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from modules.services.preferences import Preferences
from tests.browser.conftest import Site, reply, say, until

pytestmark = pytest.mark.browser


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    if name == "Parameters":
        expect(page.locator(".tl-summary table")).to_be_attached()  # the user's own values have come


def test_a_parameter_is_kept_and_used_for_the_next_reply(site: Site):
    page = site.open()
    open_tab(page, "Parameters")
    temperature = page.locator("#setting-temperature input[type=number]")
    expect(temperature).to_have_value("0.7")
    temperature.fill("0.31")
    temperature.blur()
    expect(page.locator(".tl-summary table")).to_contain_text("temperature1.00.31")
    assert Preferences(site.app, "local").sampling == (Preferences(site.app, "local").sampling[0], None)
    open_tab(page, "Text generation")
    expect(page.locator(".tl-preset")).to_contain_text("Own settings")
    say(page, "hello")
    reply(page)
    assert site.model.requests[-1].sampling.temperature == 0.31
    page.reload()
    open_tab(page, "Parameters")
    expect(page.locator("#setting-temperature input[type=number]")).to_have_value("0.31")


def test_presets_are_chosen_saved_and_deleted(site: Site):
    page = site.open()
    open_tab(page, "Parameters")
    preset = page.get_by_label("Preset").last
    preset.fill("Yara")
    page.get_by_role("option", name="Yara").click()
    expect(page.locator(".tl-summary table")).to_contain_text("top_p1.00.21")
    preset.fill("My own")
    preset.blur()
    page.get_by_role("button", name="Save", exact=True).click()
    until(page, lambda: "My own" in site.app.presets.names())
    expect(preset).to_have_value("My own")
    assert site.app.presets.read("My own").top_p == 0.21
    page.get_by_role("button", name="Delete", exact=True).click()
    page.wait_for_function("!document.querySelector('[data-toast]')")
    page.get_by_role("button", name="Set to neutral").click()
    expect(page.locator(".tl-summary tr")).to_have_count(0)
    assert "My own" not in site.app.presets.names()


def test_a_list_that_cannot_be_read_is_said(site: Site):
    page = site.open()
    open_tab(page, "Parameters")
    bias = page.locator("#setting-logit_bias textarea")
    bias.press_sequentially("{nonsense")
    bias.blur()
    expect(page.get_by_text("write it as JSON")).to_be_visible()


def test_the_models_tab_lists_what_is_there_and_why_some_cannot_be_loaded(site: Site):
    broken = site.app.models.folder / "broken.gguf"
    broken.write_bytes(b"no model")
    page = site.open()
    open_tab(page, "Models")
    expect(page.locator(".tl-card", has_text="broken")).to_be_visible()
    expect(page.locator(".tl-card .tl-wrong-text")).to_be_visible()
    page.locator(".tl-card", has_text="broken").click()
    expect(page.locator(".tl-verdict[data-verdict=wrong]")).to_be_visible()
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator(".toast-body")).to_be_visible()
    broken.unlink()


def test_only_the_settings_of_the_loader_are_shown(site: Site):
    file = site.app.models.folder / "remote.yaml"
    file.write_text("base_url: http://127.0.0.1:9/v1\n", encoding="utf-8")
    page = site.open()
    open_tab(page, "Models")
    page.locator(".tl-card", has_text="remote").click()
    expect(page.locator("#setting-base_url")).to_be_visible()
    expect(page.locator("#setting-gpu_layers")).to_be_hidden()
    file.unlink()


def test_a_download_that_cannot_be_says_so(site: Site):
    page = site.open()
    open_tab(page, "Models")
    page.get_by_label("Model on Hugging Face").fill("not a name at all!")
    page.get_by_role("button", name="Download").click()
    expect(page.locator(".tl-toast.tl-wrong")).to_be_visible()


def test_language_and_theme_are_chosen_and_kept(site: Site):
    page = site.open()
    open_tab(page, "Session")
    page.get_by_label("Language").select_option("zh")
    expect(page.get_by_role("tab", name="参数")).to_be_visible()
    page.get_by_role("tab", name="参数").click()
    expect(page.get_by_text("大于 1 使概率更平均").first).to_be_visible()
    page.get_by_role("tab", name="会话").click()
    page.get_by_label("主题").select_option("dark")
    page.wait_for_function("document.querySelector('.dark')")
    page.reload()
    page.wait_for_function("document.querySelector('.dark')")
    expect(page.get_by_role("tab", name="文本生成")).to_be_visible()


def test_the_session_tab_says_what_the_server_runs(site: Site):
    page = site.open()
    open_tab(page, "Session")
    expect(page.locator(".tl-facts")).to_contain_text("gradio")
    expect(page.locator(".tl-facts")).to_contain_text("echo")


def test_no_event_of_the_page_is_a_public_endpoint(site: Site):
    page = site.open()
    names = page.evaluate(
        "fetch('gradio_api/info').then(answer => answer.json()).then(info => Object.keys(info.named_endpoints))"
    )
    assert names == []


HOLD = """
const ask = window.fetch;
window.fetch = async (...request) => {
  const reply = await ask(...request);
  if (!String(request[0].url ?? request[0]).includes("/queue/data")) return reply;
  const held = new TransformStream({async transform(part, controller) {
    const text = new TextDecoder().decode(part);
    if (!text.includes("close_stream")) return controller.enqueue(part);
    const at = text.lastIndexOf("data:", text.indexOf("close_stream"));
    controller.enqueue(new TextEncoder().encode(text.slice(0, at)));
    if (window.hold) await new Promise((done) => { window.release = done; });
    controller.enqueue(new TextEncoder().encode(text.slice(at)));
  }});
  return new Response(reply.body.pipeThrough(held), {headers: reply.headers});
};
"""
"""The end of Gradio's stream arrives when `release` is called, while `hold` is set."""


def test_an_answer_is_not_lost_though_its_button_was_pressed_while_the_stream_of_answers_ended(site: Site):
    page = site.empty()
    page.add_init_script(HOLD)
    page.goto(site.url)
    page.wait_for_selector(".tl-composer textarea")
    open_tab(page, "Parameters")
    page.evaluate("window.hold = true")
    button = page.locator("#parameters-neutral")
    button.click()
    page.wait_for_function("Boolean(window.release)")
    expect(button).not_to_have_attribute("aria-busy", "true")
    with page.expect_response(lambda answer: "/queue/join" in answer.url):
        button.click()
    expect(button).to_have_attribute("aria-busy", "true")
    page.evaluate("hold = false; release()")
    expect(button).not_to_have_attribute("aria-busy", "true")
