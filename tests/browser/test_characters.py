"""Characters and files of chats, driven in a real browser: choose, write, upload, export, import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from modules.library.character import Character
from tests.browser.conftest import Site, message_menu, reply, say
from tests.library.test_characters import card, picture

pytestmark = pytest.mark.browser
CARDS = Path(__file__).parents[1] / "field" / "inputs" / "cards"


@pytest.fixture(autouse=True)
def characters(site: Site) -> None:
    """Two characters."""
    library = site.app.characters
    library.save(
        "local", Character("Mira", "{{char}} keeps a lighthouse.", "Welcome, {{user}}.", more_greetings=("Ahoy!",)), picture()
    )
    library.save("local", Character("老周", "{{char}}开茶馆。"))


def gallery(page: Page) -> None:
    page.locator(".tl-character").click()
    expect(page.locator("dialog .tl-who")).not_to_have_count(0)


def test_a_chat_with_a_character_begins_with_its_greeting_and_shows_who_speaks(site: Site):
    page = site.open()
    gallery(page)
    expect(page.locator("dialog .tl-who")).to_have_count(2)
    page.get_by_label("Your name").fill("Ann")
    page.get_by_label("Your name").press("Tab")
    page.get_by_label("Mode", exact=True).select_option("chat")
    page.get_by_role("button", name="Begin a chat with Mira").click()
    expect(page.locator(".tl-message .tl-body")).to_have_text("Welcome, Ann.")
    expect(page.locator(".tl-versions")).to_contain_text("1/2")
    site.model.reply = lambda request: " Sit down.\nAnn: I will"
    say(page, "Good evening.")
    expect(page.locator(".tl-message")).to_have_count(3)
    assert reply(page) == "Sit down."
    expect(page.locator(".tl-speaker span:last-child")).to_have_text(["Mira", "Ann", "Mira"])
    assert page.locator(".tl-speaker img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    request = site.model.requests[-1]
    assert site.model.render(request).text == "Mira keeps a lighthouse.\n\nMira: Welcome, Ann.\nAnn: Good evening.\nMira:"
    expect(page.locator(".tl-character")).to_contain_text("Mira")
    page.get_by_role("button", name="Chat settings").click()
    expect(page.locator("dialog select[name=mode]")).to_have_value("chat")
    page.locator("dialog select[name=mode]").select_option("chat-instruct")
    page.locator("dialog").get_by_role("button", name="Save").click()
    say(page, "And now?")
    expect(page.locator(".tl-message")).to_have_count(5)
    reply(page)
    assert site.model.render(site.model.requests[-1]).text.endswith("<|im_start|>assistant\nMira:")


def test_a_character_is_written_pictured_edited_and_deleted_with_undo(site: Site, tmp_path: Path):
    (tmp_path / "face.jpg").write_bytes(picture())
    page = site.open()
    gallery(page)
    page.get_by_role("button", name="New", exact=True).click()
    editor = page.get_by_role("dialog", name="New character")
    editor.get_by_label("Name", exact=False).first.fill("Zoe")
    editor.get_by_label("Context").fill("A pilot.")
    editor.get_by_label("Greeting").fill("Ready, {{user}}?")
    with page.expect_file_chooser() as chooser:
        editor.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(tmp_path / "face.jpg")
    editor.get_by_role("button", name="Save").click()
    expect(page.locator(".tl-who", has_text="Zoe").locator("img")).to_be_visible()
    assert site.app.characters.read("local", "Zoe") == Character("Zoe", "A pilot.", "Ready, {{user}}?")
    page.get_by_role("button", name="Edit Zoe").click()
    page.get_by_role("dialog", name="Edit Zoe").get_by_label("Context").fill("A captain.")
    page.get_by_role("dialog", name="Edit Zoe").get_by_role("button", name="Save").click()
    expect(page.locator(".tl-who", has_text="A captain.")).to_be_visible()
    page.get_by_role("button", name="Delete Zoe").click()
    expect(page.locator(".tl-who", has_text="Zoe")).to_have_count(0)
    page.locator(".tl-toast", has_text="Deleted").get_by_role("button", name="Undo").click()
    expect(page.locator(".tl-who", has_text="A captain.").locator("img")).to_be_visible()


def test_a_chat_follows_its_character_to_a_new_name(site: Site):
    page = site.open()
    gallery(page)
    page.get_by_role("button", name="Begin a chat with Mira").click()
    expect(page.locator(".tl-character")).to_contain_text("Mira")
    gallery(page)
    page.get_by_role("button", name="Edit Mira").click()
    editor = page.get_by_role("dialog", name="Edit Mira")
    editor.get_by_label("Name", exact=False).first.fill("Mirabel")
    editor.get_by_role("button", name="Save").click()
    expect(page.locator("dialog .tl-who", has_text="Mirabel")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".tl-character")).to_contain_text("Mirabel")
    expect(page.locator(".tl-speaker img")).to_be_visible()
    say(page, "Who are you?")
    expect(page.locator(".tl-message")).to_have_count(3)
    reply(page)
    expect(page.locator(".tl-speaker span:last-child")).to_have_text(["Mirabel", "You", "Mirabel"])
    assert "Mirabel keeps a lighthouse." in site.model.render(site.model.requests[-1]).text


def test_cards_are_uploaded_and_saved_and_bad_ones_say_why(site: Site, tmp_path: Path):
    (tmp_path / "leo.png").write_bytes(card({"name": "Leo", "description": "A baker.", "first_mes": "Bread?"}))
    (tmp_path / "bad.json").write_text("{}")
    page = site.open()
    gallery(page)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload").click()
    chooser.value.set_files([tmp_path / "leo.png", tmp_path / "bad.json"])
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("bad.json holds no character")
    expect(page.locator(".tl-who", has_text="A baker.").locator("img")).to_be_visible()
    page.get_by_role("button", name="Save Leo as a file").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="YAML").click()
    assert download.value.suggested_filename == "Leo.yaml" and "A baker." in download.value.path().read_text()


def test_a_card_with_lore_is_uploaded_told_shown_in_the_prompt_and_comes_back_whole(site: Site):
    page = site.open()
    gallery(page)
    for _ in range(2):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Upload").click()
        chooser.value.set_files(CARDS / "mira.v3.json")
        report = page.get_by_role("dialog", name="What came in")
        expect(report).to_contain_text("lore: 6 (always told: 1)")
        expect(report).to_contain_text("Lore that the card has switched off: 1")
        report.get_by_role("button", name="Close").click()
    cards = page.locator(".tl-who", has_text="Mira: keeper of the light")
    expect(cards).to_have_count(2)
    expect(cards.last).to_contain_text("Mira_ keeper of the light 2")
    kept = site.app.characters.read("local", "Mira_ keeper of the light 2")
    cards.last.get_by_role("button", name="Delete").click()
    expect(cards).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(cards).to_have_count(2)
    assert site.app.characters.read("local", "Mira_ keeper of the light 2") == kept
    cards.first.get_by_role("button", name="Edit").click()
    editor = page.get_by_role("dialog", name="Edit Mira: keeper of the light")
    expect(editor.get_by_label("Instructions after the chat")).to_have_value("Stay in character. {{original}}")
    editor.get_by_label("Personality").fill("stern")
    editor.get_by_text("Lore: 6").click()
    expect(editor.locator(".tl-lore li").first).to_contain_text("harbour, port")
    editor.get_by_role("button", name="Save").click()
    expect(editor).to_have_count(0)
    cards.first.get_by_role("button", name="Begin a chat").click()
    expect(page.locator(".tl-message .tl-body")).to_have_text("Welcome, You.")
    say(page, "Is the harbour open?")
    expect(page.locator(".tl-message")).to_have_count(3)
    reply(page)
    expect(page.locator(".tl-speaker span:last-child").first).to_have_text("Mira")
    message_menu(page, "What the model saw")
    shown = page.locator("dialog")
    shown.get_by_text("Lore in this prompt: 4").click()
    expect(shown.locator(".tl-lore")).to_contain_text("by “harbour”")
    expect(shown.locator(".tl-prompt")).to_contain_text("The harbour of Mira freezes in January.")
    expect(shown.locator(".tl-prompt")).to_contain_text("Mira's personality: stern")


def test_a_chat_is_exported_in_every_form_and_imported_again(site: Site, tmp_path: Path):
    site.model.reply = lambda request: "An answer with `code`."
    page = site.open()
    say(page, "A question about 灯塔")
    reply(page)
    files = []
    for name in ("Textloom JSON", "Markdown", "OpenAI messages", "ShareGPT", "Question and reply pairs"):
        page.locator(".tl-row.tl-current").hover()
        page.locator(".tl-row.tl-current").get_by_role("button").click()
        page.get_by_role("menuitem", name="Export").click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name=name).click()
        files.append(tmp_path / download.value.suggested_filename.replace(".", f"-{len(files)}."))
        download.value.save_as(files[-1])
        assert download.value.suggested_filename.startswith("A question about 灯塔")
    assert json.loads(files[-1].read_text())["internal"] == [["A question about 灯塔", "An answer with `code`."]]
    before = len(site.app.store.for_owner("local").chats.page())
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import chats from files").click()
    chooser.value.set_files(files)
    expect(page.locator(".tl-toast")).to_contain_text("5 chats are imported.")
    expect(page.locator(".tl-message")).to_have_count(2)
    expect(page.locator(".tl-message code")).to_have_text("code")
    assert len(site.app.store.for_owner("local").chats.page()) == before + 5


def test_a_file_is_dropped_on_the_list_and_a_bad_one_is_one_sentence(site: Site):
    page = site.open()

    def drop(name: str, text: str) -> None:
        data = page.evaluate_handle(
            "([name, text]) => { const data = new DataTransfer(); data.items.add(new File([text], name)); return data; }",
            [name, text],
        )
        page.dispatch_event(".tl-side", "drop", {"dataTransfer": data})

    drop(
        "chat.json", json.dumps({"conversations": [{"from": "human", "value": "Dropped"}, {"from": "gpt", "value": "Caught"}]})
    )
    expect(page.locator(".tl-message .tl-body")).to_have_text(["Dropped", "Caught"])
    drop("bad.json", "{}")
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("The file is in no form that is known")


def test_on_a_phone_in_chinese_characters_fit(site: Site):
    page = site.open(width=390, height=844, locale="zh-CN", has_touch=True)
    page.get_by_role("button", name="角色").click()
    expect(page.get_by_role("dialog", name="角色")).to_be_visible()
    expect(page.locator(".tl-who")).to_have_count(2)
    assert page.evaluate("document.querySelector('dialog').scrollWidth <= 390")
    page.get_by_role("button", name="与老周开始对话").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    say(page, "你好")
    reply(page)
    expect(page.locator(".tl-speaker span:last-child")).to_have_text(["你", "老周"])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
