"""Characters: every form that their files have, names that cannot leave the folder, and whose is whose."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from modules.errors import Forbidden, NotFound, UserError
from modules.generation.types import Message
from modules.library.character import Character
from modules.library.character_files import portrait, read_character, written
from modules.library.characters import CharacterLibrary
from modules.library.modes import staged
from tests.fakes import CHATML

ROOT = Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60).map(str.strip)


def card(values: object, chunk: str = "chara", size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG with a character in it, as TavernAI writes them."""
    info = PngImagePlugin.PngInfo()
    info.add_text(chunk, base64.b64encode(json.dumps(values).encode()).decode())
    made = io.BytesIO()
    Image.new("RGB", size, "teal").save(made, "PNG", pnginfo=info)
    return made.getvalue()


def picture(kind: str = "JPEG", size: tuple[int, int] = (900, 600)) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, "orange").save(made, kind)
    return made.getvalue()


def test_the_shipped_characters_are_read():
    library = CharacterLibrary(ROOT / "characters")
    shipped = {entry.id: library.read("local", entry.id) for entry in library.all("local")}
    assert {"Mira", "老周"} <= set(shipped)
    assert shipped["Mira"].greetings("Ann")[0].startswith("*The door") and "Ann" in shipped["Mira"].greetings("Ann")[0]


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("old.yaml", {"bot": "Zoe", "user": "Ann", "context": "A pilot.", "greeting": "Hi.", "example_dialogue": "Zoe: Up!"}),
        (
            "new.json",
            {"name": "Zoe", "your_name": "Ann", "context": "A pilot.", "greeting": "Hi.", "example_dialogue": "Zoe: Up!"},
        ),
        (
            "pygmalion.json",
            {
                "char_name": "Zoe",
                "char_persona": "A pilot.",
                "char_greeting": "Hi.",
                "world_scenario": "",
                "example_dialogue": "Zoe: Up!",
                "user": "Ann",
            },
        ),
    ],
)
def test_the_forms_of_2023_say_the_same(file: str, values: dict[str, str]):
    text = yaml.safe_dump(values) if file.endswith("yaml") else json.dumps(values)
    assert read_character(text.encode(), file) == Character("Zoe", "A pilot.", "Hi.", "Zoe: Up!", "Ann")


@pytest.mark.parametrize("chunk", ["chara", "ccv3"])
@pytest.mark.parametrize("nested", [False, True])
def test_tavern_cards_are_read(chunk: str, nested: bool):
    values = {
        "name": "Zoe",
        "description": "A pilot.",
        "personality": "Calm",
        "scenario": "A cockpit.",
        "first_mes": "Hello {{user}}.",
        "mes_example": "<START>\n{{char}}: Up!",
        "alternate_greetings": ["Again you."],
    }
    whole = {"spec": "chara_card_v2", "name": "wrong", "data": values} if nested else values
    read = read_character(card(whole, chunk), "zoe.png")
    assert read.name == "Zoe" and read.greetings("Ann") == ["Hello Ann.", "Again you."]
    assert (read.context, read.personality, read.scenario) == ("A pilot.", "Calm", "A cockpit.")
    told = staged((Message("user", "Hi."),), "instruct", read, own_template=CHATML).messages[0].content
    assert told == "A pilot.\nZoe's personality: Calm\nScenario: A cockpit.\n\nZoe: Up!"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no character"),
        (b"[1, 2]", "no character"),
        (b"context: nobody", "no name"),
        (b"name: [a, b]", "must be a text"),
        (b"{bad json", "not valid JSON"),
        (b"a: b: c", "not valid YAML"),
        (b"\xff\xfe\x00", "no character file"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (picture("PNG"), "without a character"),
        (b"\x89PNG\r\n\x1a\nbroken", "without a character"),
        (b"{" + b'"a":{' * 5000 + b"}" * 5001, "not valid JSON"),
    ],
)
def test_a_bad_file_is_one_sentence(data: bytes, says: str):
    with pytest.raises(UserError, match=says):
        read_character(data, "it")


@given(
    st.builds(Character, TEXT.filter(bool), TEXT, TEXT, TEXT, TEXT, TEXT, st.lists(TEXT.filter(bool), max_size=3).map(tuple))
)
def test_what_is_written_is_read_again(character: Character):
    kept = read_character(written(character).encode(), "x.yaml")
    assert kept.context == character.context and kept.greeting == character.greeting
    assert kept.name == " ".join(character.name.split()) and kept.more_greetings == character.more_greetings


def test_names_are_put_in_whatever_their_form():
    zoe = Character("Zoe", "")
    assert zoe.filled("{{char}} {{CHAR}} <BOT> {{user}} <USER> {{other}}", "Ann") == "Zoe Zoe Zoe Ann Ann {{other}}"
    assert zoe.filled("{{user}}", r"\1 {{char}}") == r"\1 {{char}}"


def test_a_character_is_saved_renamed_pictured_and_deleted(tmp_path: Path):
    library = CharacterLibrary(tmp_path / "characters")
    assert library.all("local") == []
    library.save("local", Character("Zoe", "A pilot."), picture())
    file = library.picture("local", "Zoe")
    assert file is not None
    with Image.open(file) as image:
        assert image.format == "PNG" and max(image.size) == 512
    library.save("local", Character("Zoë", "A pilot."), replaces="Zoe")
    assert [entry.id for entry in library.all("local")] == ["Zoë"] and library.picture("local", "Zoë") is not None
    library.delete("local", "Zoë")
    assert list((tmp_path / "characters").iterdir()) == []
    with pytest.raises(NotFound):
        library.read("local", "Zoë")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "con", "x" * 200, "a\\b"])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str):
    library = CharacterLibrary(tmp_path / "characters")
    for ask in (library.read, library.picture, library.delete):
        with pytest.raises(NotFound):
            ask("local", name)
    id_ = library.save("local", Character(name, "A pilot."))
    assert [path.name for path in (tmp_path / "characters").iterdir()] == [f"{id_}.yaml"]
    assert library.named("local", name) == library.read("local", id_) == Character(name, "A pilot.")


def test_with_logins_people_have_their_own_beside_the_shared_ones(tmp_path: Path):
    CharacterLibrary(tmp_path / "characters").save("", Character("Zoe", "shared"), picture())
    library = CharacterLibrary(tmp_path / "characters", tmp_path / "own")
    library.save("../ann", Character("Max", "hers"))
    assert [(entry.id, entry.own) for entry in library.all("../ann")] == [("Max", True), ("Zoe", False)]
    assert [entry.id for entry in library.all("bob")] == ["Zoe"]
    with pytest.raises(NotFound):
        library.read("bob", "Max")
    with pytest.raises(Forbidden, match="everybody"):
        library.delete("bob", "Zoe")
    library.save("bob", Character("Zoe", "his version"), replaces="Zoe")
    assert library.read("bob", "Zoe").context == "his version" and library.read("../ann", "Zoe").context == "shared"
    assert library.picture("bob", "Zoe") is not None
    assert {path.parent for path in tmp_path.rglob("*.yaml")} <= {*(tmp_path / "own").iterdir(), tmp_path / "characters"}


def test_a_card_in_the_folder_is_a_character_and_its_own_picture(tmp_path: Path):
    (tmp_path / "Zoe.png").write_bytes(card({"name": "Zoe", "description": "A pilot."}))
    (tmp_path / "plain.png").write_bytes(picture("PNG"))
    library = CharacterLibrary(tmp_path)
    assert [(entry.id, entry.pictured) for entry in library.all("local")] == [("Zoe", True)]
    assert library.read("local", "Zoe").context == "A pilot."
    library.save("local", Character("Zoe", "A captain."), replaces="Zoe")
    assert library.read("local", "Zoe").context == "A captain." and library.picture("local", "Zoe") is not None


def test_pictures_lose_what_else_was_in_them_and_other_files_are_refused():
    clean = portrait(card({"name": "secret"}))
    with Image.open(io.BytesIO(clean)) as image:
        assert "chara" not in image.info
    for data in (b"<svg onload='x'/>", b"", b"%PDF-1.4", picture("BMP")):
        with pytest.raises(UserError, match="cannot be read"):
            portrait(data)
