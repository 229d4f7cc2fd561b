"""Everything a user has goes into one file and comes back, on this server or another."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from modules.app import App
from modules.chats import transfer
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.library.character import Character
from modules.services.backup import Backup
from modules.services.preferences import Preferences
from tests.in_process import make_app


@pytest.fixture
def apps(tmp_path: Path):
    made: list[App] = []

    def make(name: str, **options: str) -> App:
        made.append(make_app(tmp_path / name, None, **options))
        return made[-1]

    yield make
    for app in made:
        app.close()


def fill(app: App, owner: str) -> None:
    chat = app.store.for_owner(owner).chats.create(title="Trees")
    question = app.store.for_owner(owner).messages.add(chat.id, None, "user", "one or two?")
    for answer in ("one", "two"):
        app.store.for_owner(owner).messages.add(chat.id, question.id, "assistant", answer)
    app.characters.save(owner, Character("Zoe", context="A sailor."))
    app.presets.of(owner).save("Mine", SamplingParams(top_p=0.3))
    app.prompts.of(owner).save("Mine", "Once upon\n")
    Preferences(app, owner).set_sampling(SamplingParams(temperature=0.4), None)
    Preferences(app, owner).set_page({"theme": "dark"})
    app.notebooks.for_owner(owner).change("notebook", 0, text="a page")


def having(app: App, owner: str) -> object:
    chats = [transfer.export_chat(app.store.for_owner(owner), entry.id) for entry in app.store.for_owner(owner).chats.page()]
    return (
        [(chat.title, [(message.content, message.parent) for message in chat.messages]) for chat in chats],
        app.characters.read(owner, "Zoe"),
        app.presets.of(owner).read("Mine"),
        app.prompts.of(owner).read("Mine"),
        Preferences(app, owner).sampling,
        Preferences(app, owner).page,
        app.notebooks.for_owner(owner).read("notebook").text,
    )


def test_what_is_exported_comes_back_on_another_server(apps):
    here, there = apps("here"), apps("there", gradio_auth="ann:a,bob:b")
    fill(here, "local")
    done = Backup(there, "bob").read(io.BytesIO(Backup(here, "local").export()))
    assert having(there, "bob") == having(here, "local")
    assert done["problems"] == [] and (done["chats"], done["characters"]) == (1, 1)
    assert "Mine" not in there.presets.names() and there.presets.of("ann").names() == there.presets.names()
    assert there.store.for_owner("ann").chats.page() == []


def test_importing_again_replaces_nothing_and_doubles_no_preset(apps):
    app = apps("here")
    fill(app, "local")
    packed = Backup(app, "local").export()
    app.presets.of("local").save("Mine", SamplingParams(top_p=0.9))
    done = Backup(app, "local").read(io.BytesIO(packed))
    assert (done["presets"], done["prompts"], done["characters"]) == (1, 0, 0)
    assert app.presets.read("Mine").top_p == 0.9 and app.presets.read("Mine (2)").top_p == 0.3


def test_what_cannot_be_read_goes_out_as_it_is_and_stops_nothing(apps):
    app, there = apps("broken"), apps("beyond")
    fill(app, "local")
    (app.characters.folder / "Bad.yaml").write_bytes(b"name: [")
    (app.presets.of("local").folder / "Bad.yaml").write_bytes(b"temperature: 99999")
    (app.characters.folder / "Zoe.png").write_bytes(b"no picture")
    app.characters.save("local", Character("Zoe", "Another of that name."))
    packed = Backup(app, "local").export()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.read("characters/Bad.yaml") == b"name: [" and archive.read("presets/Bad.yaml") == b"temperature: 99999"
    done = Backup(there, "local").read(io.BytesIO(packed))
    assert len(done["problems"]) == 2 and (done["characters"], done["presets"]) == (2, 1)
    assert [there.characters.read("local", id_).name for id_ in ("Zoe", "Zoe 2")] == ["Zoe", "Zoe"]


def test_files_that_are_not_ours_are_refused_or_named(apps):
    app = apps("here")
    with pytest.raises(UserError, match="no zip"):
        Backup(app, "local").read(io.BytesIO(b"nonsense"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../presets/evil.yaml", "temperature: 99")
        archive.writestr("prompts/..txt", "x")
        archive.writestr("chats/broken.json", "{")
        archive.writestr("settings.json", "[]")
        archive.writestr("/etc/passwd", "x")
    done = Backup(app, "local").read(packed)
    assert len(done["problems"]) >= 3 and done["chats"] == 0
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(UserError, match="nothing of Textloom"):
        Backup(app, "local").read(empty)
