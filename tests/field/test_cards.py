"""Character cards as people have them: both chunks, odd fields, any name; lore reaches the prompt; what is left out is told."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from modules.app import App
from modules.errors import UserError
from modules.generation.template import render_chat
from modules.generation.types import Message
from modules.library.card_images import card_in, with_card
from modules.library.cards import LeftOut, as_card, from_card
from modules.library.character import Character
from modules.library.character_files import card_picture, kept_form, read_character, read_file, written
from modules.library.characters import CharacterLibrary
from modules.library.lore import LoreBook, LoreEntry, entered
from modules.library.modes import lore_of, staged
from modules.library.presets import read_preset
from modules.library.templates import TemplateLibrary
from modules.services.charx import is_charx, read_charx
from tests.api.page.test_files import client_of
from tests.fakes import CHATML, EchoModel
from tests.field.mutations import damaged, how_many
from tests.in_process import make_app
from tests.library.test_characters import card, picture

INPUTS = Path(__file__).parent / "inputs" / "cards"
MIRA = (INPUTS / "mira.v3.json").read_bytes()
ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = TemplateLibrary(ROOT / "prompts" / "templates")
ASKED = (Message("assistant", "Welcome, Ann."), Message("user", "Is the HARBOUR open?"))


def pictured(chunks: dict[str, Any]) -> bytes:
    """A PNG with texts in it: values as base64 of their JSON, texts as they are."""
    info = PngImagePlugin.PngInfo()
    for name, value in chunks.items():
        info.add_text(name, value if isinstance(value, str) else base64.b64encode(json.dumps(value).encode()).decode())
    made = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(made, "PNG", pnginfo=info)
    return made.getvalue()


def mira() -> Character:
    return read_character(MIRA, "mira.json")


# --- which card of a file


@pytest.mark.parametrize("order", [("chara", "ccv3"), ("ccv3", "chara")])
def test_of_two_cards_in_one_picture_the_newer_one_wins(order: tuple[str, str]):
    cards = {"chara": {"name": "Old", "description": "V2"}, "ccv3": {"data": {"name": "New", "description": "V3"}}}
    assert read_character(pictured({name: cards[name] for name in order}), "two.png").name == "New"


def test_where_the_newer_card_is_damaged_the_older_one_comes_in_and_that_is_told():
    read = read_file(pictured({"ccv3": "bm8ganNvbg==", "chara": {"name": "Old"}}), "two.png")
    assert (read.character.name, read.left_out) == ("Old", (LeftOut("ccv3"),))


def test_a_picture_that_is_cut_off_still_has_its_card():
    data = card({"name": "Zoe", "description": "A pilot."}, size=(400, 400))
    assert read_character(data[:-60], "zoe.png").context == "A pilot."


def webp(comment: bytes) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    made = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(made, "WEBP", exif=exif.tobytes())
    return made.getvalue()


@pytest.mark.parametrize(
    "comment",
    [
        b'ASCII\0\0\0{"name": "Zoe"}',
        b"\0" * 8 + base64.b64encode(b'{"name": "Zoe"}'),
        ",".join(map(str, b'{"name":"Zoe"}')).encode(),
    ],
)
def test_webp_cards_are_read(comment: bytes):
    assert read_character(webp(comment), "zoe.webp").name == "Zoe"


def charx(**files: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return made.getvalue()


def test_charx_is_read_with_its_picture_also_behind_a_jpeg():
    assets = [
        {"type": "icon", "uri": f"embeded://assets/icon/{name}.png", "name": name, "ext": "png"} for name in ("other", "main")
    ]
    values = json.dumps({"spec": "chara_card_v3", "data": {"name": "Zoe", "assets": assets}}).encode()
    data = charx(card_dot_json=values, assets__icon__main_dot_png=picture("PNG"), assets__icon__other_dot_png=b"other")
    for file in (data, picture("JPEG") + data):
        assert is_charx(file)
        read, image = read_charx(file, "zoe.charx")
        assert read.character.name == "Zoe" and image == picture("PNG")
    for bad in (charx(other=b""), data[:200], charx(card_dot_json=b"{")):
        with pytest.raises(UserError, match=r"bad\.charx"):
            read_charx(bad, "bad.charx")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_an_editor_with_a_mark_are_read(encoding: str):
    assert read_character('{"name": "老周"}'.encode(encoding), "a.json").name == "老周"
    assert read_character("name: 老周".encode(encoding), "a.yaml").name == "老周"
    with pytest.raises(UserError, match="UTF-8"):
        read_character("name: 老周".encode("gbk"), "a.yaml")


# --- odd fields


def test_odd_optional_fields_count_as_absent_and_are_told():
    read = read_file((INPUTS / "odd.v2.json").read_bytes(), "odd.json")
    assert read.character == Character(
        "Odd",
        "A card as people have it.",
        "12",
        more_greetings=("Hi.",),
        book=LoreBook((LoreEntry("The sea.", ("sea", "coast")),)),
        others={"tags": "a, b"},
    )
    told = {one.kind: one.what for one in read.left_out}
    assert told["entry"] == "1, 3, 4"
    assert set(told["odd"].split(", ")) == {"scenario", "mes_example", "alternate_greetings", "extensions"}


def test_a_book_that_is_none_is_told():
    read = read_file(b'{"name": "A", "character_book": "no book"}', "a.json")
    assert (read.character, read.left_out) == (Character("A"), (LeftOut("odd", "character_book", 1),))


def test_a_field_of_yaml_that_json_cannot_hold_does_no_harm():
    text = "name: A\nextensions: {when: 2024-01-01, 3: !!binary aGk=, n: .nan}\ncreation_date: 2024-01-01\n"
    character = read_character(text.encode(), "a.yaml")
    assert character.others == {"extensions": {"when": "2024-01-01", "3": None, "n": None}, "creation_date": "2024-01-01"}
    assert read_character(kept_form(character)[1].encode(), "a.json") == character


def test_a_lore_book_alone_is_named_as_one():
    with pytest.raises(UserError, match="lore book"):
        read_file(b'{"spec": "lorebook_v3", "data": {"entries": []}}', "world.json")


def test_what_is_left_out_of_a_card_is_told():
    values = json.loads(MIRA)
    values["spec_version"] = "4.0"
    values["data"]["description"] += " {{random:a,b}}"
    values["data"]["assets"].append({"type": "emotion", "uri": "data:image/png;base64,AAAA", "name": "happy", "ext": "png"})
    entries = values["data"]["character_book"]["entries"]
    entries[0]["content"] = "@@is_greeting 2\n" + entries[0]["content"]
    entries[1]["extensions"] = {"probability": 50, "sticky": 3}
    entries[5]["keys"] = ["(", "a{1,2}"]
    told = {one.kind: (one.what, one.count) for one in read_file(json.dumps(values).encode(), "mira.json").left_out}
    assert told == {
        "newer": ("4.0", 0),
        "assets": ("", 2),
        "data": ("", 1),
        "group": ("", 1),
        "extensions": ("other/voice", 1),
        "off": ("", 1),
        "decorators": ("@@is_greeting", 1),
        "options": ("probability, sticky", 2),
        "patterns": ("(", 1),
        "macros": ("{{random}}", 1),
    }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_kind_of_what_is_left_out_has_its_sentence_on_the_page(language: str):
    sources = [*(ROOT / "modules" / "library").glob("*.py"), *(ROOT / "modules" / "services").glob("*.py")]
    kinds = {kind for path in sources for kind in re.findall(r'LeftOut\("(\w+)"', path.read_text())}
    words = json.loads((ROOT / "modules" / "i18n" / "locales" / f"{language}.json").read_text())
    assert len(kinds) > 10 and {f"character.left.{kind}" for kind in kinds} <= words.keys()


# --- the prompt


def prompt(character: Character, turns: tuple[Message, ...] = ASKED, mode: Any = "instruct", **more: Any) -> str:
    stage = staged(turns, mode, character, user="Ann", own_template=CHATML, **more)
    return render_chat(stage.template or CHATML, stage.messages)


def test_all_that_a_card_says_reaches_the_prompt_in_its_place():
    assert prompt(mira(), system="Be brief.") == (
        "<|im_start|>system\n"
        "Write as Mira. Be brief.\n\n"
        "It is always night here.\n\n"
        "Mira keeps a lighthouse.\nMira's personality: calm\nScenario: A storm.\n\n"
        "The harbour of Mira freezes in January.\n\n"
        "Ann: Storm?\nMira: Soon.<|im_end|>\n"
        "<|im_start|>assistant\nWelcome, Ann.<|im_end|>\n"
        "<|im_start|>system\nIn January Mira is alone.<|im_end|>\n"
        "<|im_start|>system\nMira is tired.<|im_end|>\n"
        "<|im_start|>user\nIs the HARBOUR open?<|im_end|>\n"
        "<|im_start|>system\nStay in character.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", TEMPLATES.names())
@pytest.mark.parametrize("mode", ["instruct", "chat-instruct", "chat"])
def test_every_shipped_template_shows_lore_and_instructions(name: str, mode: Any):
    source = TEMPLATES.read(name)
    stage = staged(ASKED, mode, mira(), user="Ann", system="Be brief.", template=source)
    text = render_chat(stage.template or source, stage.messages, variables={"bos_token": "<s>", "eos_token": "</s>"})
    for told in ("Be brief.", "always night", "freezes in January", "Mira is tired", "HARBOUR open?", "Stay in character."):
        assert text.count(told) == 1, told
    assert "{{" not in text


def test_instructions_stand_before_a_reply_that_has_begun_and_not_before_the_persons_words():
    begun = (*ASKED, Message("assistant", "The harbour"))
    assert "Stay in character.<|im_end|>\n<|im_start|>assistant\nThe harbour" in prompt(mira(), begun)
    asked = prompt(mira(), (*ASKED, Message("assistant", "No.")), "chat", speaker="user")
    assert "Stay in character" not in asked and asked.endswith("\nAnn:")


def test_what_a_reply_says_does_not_change_the_prompt_that_it_goes_on_from():
    said = (Message("user", "Good evening."),)
    first = prompt(mira(), said)
    assert prompt(mira(), (*said, Message("assistant", "The harbour"))).startswith(
        first.removesuffix("<|im_start|>assistant\n")
    )


def test_the_system_prompt_of_a_card_without_a_place_for_that_of_the_chat_loses_neither():
    character = replace(mira(), system_prompt="Write as {{char}}.")
    assert prompt(character, system="Be brief.").startswith("<|im_start|>system\nBe brief.\n\nWrite as Mira.\n\n")


# --- lore


def titles(book: LoreBook, *said: str, replies: int = 0) -> list[str]:
    return [one.title for one in entered(book, said, replies, str, len)]


def entry(name: str, *keys: str, content: str = "", order: float = 0, **more: Any) -> LoreEntry:
    extensions = more.pop("extensions", {})
    return LoreEntry(content or name, keys, order=order, others={"name": name, "extensions": extensions}, **more)


def test_a_key_counts_in_the_last_messages_alone():
    sea = (entry("sea", "sea"),)
    assert titles(LoreBook(sea), "the sea", "b", "c", "d") == ["sea"]
    assert titles(LoreBook(sea), "the sea", "b", "c", "d", "e") == []
    assert titles(LoreBook(sea, scan_depth=2), "the sea", "b", "c") == []
    assert titles(LoreBook(sea, scan_depth=0), "the sea") == []
    assert titles(LoreBook((entry("sea", "sea", content="@@scan_depth 9\nx"),), scan_depth=1), "sea", "b") == ["sea"]
    assert titles(LoreBook((entry("sea", "sea", extensions={"scan_depth": 3}),), scan_depth=1), "sea", "b") == ["sea"]


def test_keys_are_found_as_the_card_says():
    assert titles(LoreBook((entry("a", "Sea"), entry("b", "Sea", case_sensitive=True))), "the sea") == ["a"]
    words = LoreBook((entry("part", "art"), entry("word", "art", extensions={"match_whole_words": True})))
    assert titles(words, "start") == ["part"] and titles(words, "art!") == ["part", "word"]
    assert titles(LoreBook((entry("cjk", "灯塔"),)), "我们去灯塔吧") == ["cjk"]
    assert titles(LoreBook((entry("never"), entry("off", "sea", enabled=False))), "sea") == []


@pytest.mark.parametrize(
    ("logic", "said", "comes"),
    [
        (0, "key", False), (0, "key one", True), (1, "key one", True), (1, "key one two", False),
        (2, "key", True), (2, "key two", False), (3, "key one", False), (3, "key two one", True), ("odd", "key one", True),
    ],
)  # fmt: skip
def test_secondary_keys_select(logic: object, said: str, comes: bool):
    one = entry("x", "key", secondary_keys=("one", "two"), selective=True, extensions={"selectiveLogic": logic})
    assert (titles(LoreBook((one,)), said) == ["x"]) is comes
    assert titles(LoreBook((replace(one, selective=False),)), "key") == ["x"]


def test_lore_is_told_by_order_and_what_is_over_the_budget_goes_by_priority():
    three = (
        entry("b", "x", order=2, priority=1),
        entry("a", "x", order=1, priority=9),
        entry("c", order=3, constant=True, priority=5),
    )
    assert titles(LoreBook(three), "x") == ["a", "b", "c"]
    assert titles(LoreBook(three, token_budget=2), "x") == ["a", "c"]
    assert titles(LoreBook(three, token_budget=1), "x") == ["a"]
    plain = tuple(replace(one, priority=None) for one in three)
    assert titles(LoreBook(plain, token_budget=2), "x") == ["b", "c"]


def test_lore_lets_lore_in_only_where_the_book_says_so():
    chain = (entry("a", "sea", content="a storm"), entry("b", "storm", content="a wreck"), entry("c", "wreck"))
    assert titles(LoreBook(chain), "sea") == ["a"]
    assert titles(LoreBook(chain, recursive=True), "sea") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("marks", "said", "replies", "comes"),
    [
        ("@@activate", "", 0, True),
        ("@@dont_activate", "key", 0, False),
        ("@@activate_only_after 2", "key", 1, False),
        ("@@activate_only_after 2", "key", 2, True),
        ("@@activate_only_every 2", "key", 3, False),
        ("@@additional_keys one,two", "key", 0, False),
        ("@@additional_keys one,two", "key two", 0, True),
        ("@@exclude_keys one", "key one", 0, False),
        ("@@other 3\n@@@nobody\n@@@dont_activate", "key", 0, False),
        ("@@activate_only_after many", "key", 0, True),
        ("@@activate_only_after 0\n@@activate_only_after 9", "key", 1, True),
    ],
)
def test_decorators_decide(marks: str, said: str, replies: int, comes: bool):
    found = entered(LoreBook((entry("x", "key", content=f"{marks}\n\nThe text."),)), [said], replies, str, len)
    assert [one.text for one in found] == (["The text."] if comes else [])


@pytest.mark.parametrize(
    ("content", "extensions", "place"),
    [
        ("x", {}, "after"), ("@@position before_desc\nx", {}, "before"), ("@@depth 3\n@@position after_desc\nx", {}, "after"),
        ("@@depth 3\nx", {}, 3), ("x", {"position": 4, "depth": 2}, 2), ("@@position nowhere\nx", {}, "after"),
    ],
)  # fmt: skip
def test_lore_has_its_place(content: str, extensions: dict[str, Any], place: object):
    (one,) = entered(LoreBook((entry("x", "key", content=content, extensions=extensions),)), ["key"], 0, str, len)
    assert (one.place, one.text) == (place, "x")


def test_a_pattern_that_never_ends_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("modules.library.lore.SECONDS", 0.4)  # a busy machine, too, reads the quick one in it
    slow = tuple(entry(str(at), "(a|a|aa)+$", use_regex=True) for at in range(200))
    assert titles(LoreBook((entry("quick", "/A{3}/i", use_regex=True), *slow)), "a" * 40 + "b") == ["quick"]


# --- there and back


@pytest.mark.parametrize("form", ["v2", "v3"])
def test_a_card_that_is_exported_is_the_same_when_it_is_read_again(form: Any):
    assert read_character(written(mira(), form).encode(), "mira.json") == mira()
    assert json.loads(written(mira(), form))["spec"] == f"chara_card_{form}"


def test_nothing_of_a_card_is_destroyed():
    data, again = json.loads(MIRA)["data"], as_card(mira())["data"]
    entries, back = data.pop("character_book"), again.pop("character_book")
    assert {key: again[key] for key in data} == data
    assert {key: back[key] for key in entries if key != "entries"} == {key: entries[key] for key in entries if key != "entries"}
    for one, other in zip(entries["entries"], back["entries"], strict=True):
        assert {key: other[key] for key in one} == one


def test_a_picture_holds_the_card_in_both_forms(tmp_path: Path):
    data = card_picture(mira(), picture())
    assert read_character(data, "mira.png") == mira()
    with Image.open(io.BytesIO(data)) as image:
        older = json.loads(base64.b64decode(image.info["chara"]))
    assert older["spec"] == "chara_card_v2" and older["data"]["creator_notes"].endswith("For long evenings.")
    assert read_character(card_picture(Character("Plain"), None), "plain.png") == Character("Plain")


# --- names


NAMES = [
    'a/b\\c:d*e?f"g<h>i|j', "Dr. No.", "...", "CON", "名" * 200, "x" * 200, "👩‍🚀🚀", " padded  name ", "../../etc/passwd", "e\u0301",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_comes_in_keeps_its_letters_and_lies_under_a_safe_one(tmp_path: Path, name: str):
    library = CharacterLibrary(tmp_path / "characters")
    character = read_character(json.dumps({"name": name, "description": "Somebody."}).encode(), "a.json")
    ids = [library.save("local", character, picture()) for _ in range(3)]
    assert len(set(ids)) == 3 and {path.parent for path in tmp_path.rglob("*.*")} == {tmp_path / "characters"}
    spoken = " ".join(name.split())
    for id_ in ids:
        assert library.read("local", id_).name == spoken
        library.save("local", replace(library.read("local", id_), context="Edited."), replaces=id_)
        assert library.read("local", id_) == Character(spoken, "Edited.") and library.picture("local", id_)
    assert library.named("local", spoken).name == spoken
    with pytest.raises(UserError):
        library.save("local", Character("\x00 "))
    library.delete("local", ids[1])
    assert [entry.id for entry in library.all("local")] == sorted((ids[0], ids[2]), key=str.lower)


def test_characters_of_one_name_that_come_at_once_are_all_kept(tmp_path: Path):
    library = CharacterLibrary(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda at: library.save("local", Character("Zoe", str(at))), range(16)))
    assert {library.read("local", id_).context for id_ in ids} == {str(at) for at in range(16)}


def test_a_file_with_a_name_of_its_own_is_edited_where_it_lies(tmp_path: Path):
    (tmp_path / "hero.yaml").write_text("name: Zoe\ncontext: A pilot.\n")
    (tmp_path / "who?.yaml").write_text("name: Max\n")
    library = CharacterLibrary(tmp_path)
    assert library.save("local", Character("Zoe", "A captain."), replaces="hero") == "hero"
    assert library.save("local", Character("Max", "A cook."), replaces="who?") == "Max"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["Max.yaml", "hero.yaml"]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    made = make_app(tmp_path_factory.mktemp("cards"), EchoModel())
    yield made
    made.close()


@pytest.fixture
def page(app: App) -> TestClient:
    for one in app.characters.all("local"):
        app.characters.delete("local", one.id)
    return client_of(app)


def test_two_of_one_name_speak_by_it_everywhere(app: App, page: TestClient):
    ids = [page.post("/chats/characters/import?file=m.json", content=MIRA).json()["id"] for _ in range(2)]
    assert ids == ["Mira_ keeper of the light", "Mira_ keeper of the light 2"]
    rows = page.get("/chats/characters").json()["characters"]
    assert [(row["id"], row["name"]) for row in rows] == [(id_, "Mira: keeper of the light") for id_ in ids]
    form = page.get(f"/chats/characters/{ids[1]}").json()
    assert [one["title"] for one in form["lore"]][:2] == ["Harbour", "Night"] and form["notes"] == "For long evenings."
    saved = page.post("/chats/characters", json={"name": form["name"], "context": "Edited.", "replaces": ids[1]}).json()
    assert saved["id"] == ids[1] and saved["undo"] and saved["values"] == {"name": "Mira: keeper of the light"}
    kept = app.characters.read("local", ids[1])
    assert kept.context == "Edited." and kept.book == mira().book and kept.others == mira().others
    renamed = page.post("/chats/characters", json={"name": "Mira/2", "replaces": ids[1]}).json()["id"]
    assert (
        app.characters.read("local", renamed).name == "Mira/2" and app.characters.named("local", "Mira/2").book == mira().book
    )
    chat = page.post(f"/chats/characters/{ids[0]}/chat", json={"mode": "chat"}).json()["chat"]
    assert page.post(f"/chats/{chat}/view", json={}).json()["speakers"]["name"] == "Mira"


def test_the_import_tells_what_came_in_and_what_was_left_out(page: TestClient):
    came = page.post("/chats/characters/import?file=mira.json", content=MIRA).json()
    left = came.pop("left_out")
    assert came == {
        "id": "Mira_ keeper of the light", "name": "Mira: keeper of the light", "pictured": False, "greetings": 2, "lore": 6, "constant": 1,
    }  # fmt: skip
    assert [one["kind"] for one in left] == ["assets", "group", "extensions", "off"]
    cut = card({"name": "Cut"}, size=(400, 400))[:-60]
    came = page.post("/chats/characters/import?file=cut.png", content=cut).json()
    assert came["left_out"] == [{"kind": "picture", "what": "", "count": 0}] and not came["pictured"]


@pytest.mark.parametrize("form", ["png", "v2", "v3", None])
def test_what_the_page_exports_comes_in_again_as_it_was(app: App, page: TestClient, form: str | None):
    id_ = page.post("/chats/characters/import?file=mira.json", content=MIRA).json()["id"]
    out = page.get(f"/chats/characters/{id_}/file", params={"form": form} if form else {})
    again = page.post("/chats/characters/import?file=again", content=out.content).json()["id"]
    assert again != id_ and app.characters.read("local", again) == app.characters.read("local", id_)


def test_the_prompt_as_sent_shows_the_lore_that_entered(app: App, page: TestClient):
    id_ = page.post("/chats/characters/import?file=mira.json", content=MIRA).json()["id"]
    draft = {"content": "Is the harbour open?", "settings": {"character": id_, "mode": "chat"}}
    shown = page.post("/chats/prompt", json=draft).json()
    assert [(one["title"], one["key"]) for one in shown["lore"]] == [
        ("Night", ""), ("Harbour", "harbour"), ("january", "january"), ("depth_prompt", ""),
    ]  # fmt: skip
    text = "".join(words for _, words in shown["pieces"])
    assert all(one["text"] in text for one in shown["lore"])
    shown = page.post("/chats/prompt", json={**draft, "content": "Good evening."}).json()
    assert [one["title"] for one in shown["lore"]] == ["Night", "depth_prompt"]


def test_a_deleted_character_comes_back_under_the_id_that_its_chats_have(app: App, page: TestClient):
    ids = [page.post("/chats/characters/import?file=m.json", content=MIRA).json()["id"] for _ in range(2)]
    undo = [page.delete(f"/chats/characters/{id_}").json()["undo"] for id_ in ids][1]
    assert {kept["name"] for kept in page.get("/chats/deleted").json()[:2]} == {"Mira: keeper of the light"}
    assert page.post(f"/chats/deleted/{undo}/restore").status_code == 200
    assert [entry.id for entry in app.characters.all("local")] == [ids[1]]
    assert app.characters.read("local", ids[1]).name == "Mira: keeper of the light"


def test_one_file_that_cannot_be_read_does_not_end_the_list(app: App, page: TestClient):
    folder = app.characters.folder
    app.characters.save("local", Character("Good"))
    (folder / "folder.yaml").mkdir()
    (folder / "gone.json").symlink_to(folder / "nowhere")
    (folder / "bad.json").write_bytes(b"\xff")
    rows = page.get("/chats/characters").json()["characters"]
    assert [(row["id"], "problem" in row) for row in rows] == [("bad", True), ("gone", True), ("Good", False)]
    assert page.delete("/chats/characters/gone").json()["undo"]  # also where its name is none that we would give
    (folder / "Zoe..yaml").write_text("name: Zoe")
    assert page.delete("/chats/characters/Zoe.").json()["undo"]
    assert {path.name for path in folder.iterdir()} == {"Good.yaml", "bad.json", "folder.yaml"}
    (folder / "folder.yaml").rmdir()


# --- damaged files


def copies(number: int, usual: int) -> Iterator[bytes]:
    """Damaged cards of one kind: JSON, YAML, PNG, PNG around damaged JSON, WebP, CHARX."""
    whole = mira()
    good = [
        MIRA,
        yaml.safe_dump(json.loads(MIRA)["data"], allow_unicode=True).encode(),
        card_picture(whole, None),
        MIRA,
        webp(b"ASCII\0\0\0" + MIRA),
        charx(card_dot_json=MIRA, assets__main_dot_png=picture("PNG", (20, 20))),
    ][number]
    for data in damaged(good, how_many(usual), seed=number):
        if number == 3:
            text = base64.b64encode(data).decode()
            yield pictured({"ccv3": text, "chara": {"name": "Older"}})
        else:
            yield data


@pytest.mark.parametrize("number", range(6))
def test_damaged_cards_are_read_or_refused_in_a_sentence(number: int):
    came = 0
    for data in copies(number, 60):
        try:
            read = read_charx(data, "it.charx")[0] if is_charx(data) else read_file(data, "it")
        except UserError as error:
            assert "it" in error.message and "Traceback" not in error.message
            continue
        came += 1
        character = read.character
        again, _ = from_card(json.loads(written(character, "v3")), "again")
        assert again == character
        for mode in ("instruct", "chat"):
            stage = staged(ASKED, mode, character, user="Ann", own_template=CHATML)
            assert character.name and len(stage.messages) >= len(ASKED)
        lore_of(character, ASKED)
        json.dumps([one.__dict__ for one in read.left_out]).encode()
    assert came


def test_damaged_cards_of_the_page_are_answered(page: TestClient):
    for at, data in enumerate(damaged(MIRA, how_many(40), seed=7)):
        reply = page.post(f"/chats/characters/import?file={at}.json", content=data)
        assert reply.status_code in (200, 400), reply.text
        assert reply.status_code == 200 or reply.json()["error"]["message"]
    assert page.get("/chats/characters").status_code == 200


PRESET = b"temperature: 0.7\ntop_p: 0.9\nstop: ['\\nUser:', \"</s>\"]\ndry_multiplier: 0.8\nseed: -1\n"


def test_damaged_presets_are_read_or_refused_in_a_sentence(app: App):
    presets = app.presets.of("local")
    presets.folder.mkdir(parents=True, exist_ok=True)
    came = 0
    for data in damaged(PRESET, how_many(60), seed=8):
        (presets.folder / "it.yaml").write_bytes(data)
        try:
            read_preset(data, "it.yaml")
            presets.read("it")
            came += 1
        except UserError as error:
            assert error.message
        assert "it" in presets.names()
    assert came


def test_damaged_prompts_are_shown(app: App):
    prompts = app.prompts.of("local")
    prompts.folder.mkdir(parents=True, exist_ok=True)
    for data in damaged("Once upon a time, 灯塔 …\n".encode(), how_many(60), seed=9):
        (prompts.folder / "it.txt").write_bytes(data)
        prompts.read("it").encode()


def test_the_card_of_a_picture_is_the_first_that_can_be_read():
    assert card_in(with_card(picture("PNG"), {"ccv3": {"name": "A"}})) == ({"name": "A"}, False)
    assert card_in(picture("PNG")) == (None, False)
