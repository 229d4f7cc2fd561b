"""The addresses for files: pictures, characters and chats of one person are nobody else's, and are served as what they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from modules.access import COOKIE
from modules.api import errors
from modules.api.page import chats
from modules.app import App
from modules.library.character import Character
from tests.chats.test_transfer import png
from tests.fakes import EVERYTHING, EchoModel, loaded_in
from tests.in_process import make_app
from tests.library.test_characters import card


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    root = tmp_path_factory.mktemp("files")
    made = make_app(root, EchoModel(), gradio_auth="ann:ann,bob:bob")
    yield made
    made.close()


def client_of(app: App, user: str | None = None) -> TestClient:
    """A browser of `user`."""
    site = FastAPI()
    errors.install(site)
    site.include_router(chats.router(app))
    client = TestClient(site)
    if user:
        client.cookies[COOKIE] = app.access.log_in(user, user, "test")
    return client


@pytest.fixture
def people(app: App) -> tuple[TestClient, TestClient]:
    return client_of(app, "ann"), client_of(app, "bob")


def test_a_picture_is_its_owners_and_can_be_nothing_but_a_picture(people):
    ann, bob = people
    id_ = ann.post("/chats/pictures", content=png()).json()["id"]
    shown = ann.get(f"/chats/pictures/{id_}")
    assert shown.content == png() and shown.headers["content-type"] == "image/png"
    assert shown.headers["x-content-type-options"] == "nosniff" and "sandbox" in shown.headers["content-security-policy"]
    assert ann.get(f"/chats/pictures/{id_}?small=true").headers["content-type"] == "image/webp"
    assert bob.get(f"/chats/pictures/{id_}").status_code == 404
    refused = bob.post("/chats/send", json={"content": "look", "pictures": [id_]})
    assert refused.status_code == 404 and "attach it again" in refused.json()["error"]["message"]
    assert ann.post("/chats/pictures", content=b"<svg onload='x'/>").status_code == 400


def test_a_blind_model_gets_no_picture_but_the_chat_goes_on(app: App, people):
    ann, _ = people
    model = loaded_in(app.manager)
    assert isinstance(model, EchoModel)
    model.chat_template = "{% for m in messages %}{{ m.content if m.content is string else m.content[-1].text }}{% endfor %}"
    id_ = ann.post("/chats/pictures", content=png()).json()["id"]
    sent = ann.post("/chats/send", json={"content": "", "pictures": [id_]}).json()
    app.replies.for_owner("local").stop(sent["reply"])
    assert len(model.requests[-1].prompt[0].images) == 1  # type: ignore[union-attr]
    model.capabilities = dataclasses.replace(EVERYTHING, images=False)
    refused = ann.post("/chats/send", json={"content": "look", "pictures": [id_]})
    assert refused.status_code == 400 and "cannot see" in refused.json()["error"]["message"]
    ann.post("/chats/send", json={"content": "and?", "chat": sent["chat"], "after": sent["reply"]})
    first = model.requests[-1].prompt[0]
    assert first.content == "[picture]" and not first.images  # type: ignore[union-attr]
    model.capabilities = EVERYTHING


def test_chats_come_in_and_go_out_for_their_owner_alone(people):
    ann, bob = people
    (id_,) = ann.post("/chats/import", content=b"# Tea\n\n## User\n\nHi\n\n## Assistant\n\nHo\n").json()["chats"]
    out = ann.get(f"/chats/{id_}/export/markdown")
    assert out.text == "# Tea\n\n## User\n\nHi\n\n## Assistant\n\nHo\n"
    assert out.headers["content-disposition"] == "attachment; filename*=UTF-8''Tea.md"
    assert bob.get(f"/chats/{id_}/export/markdown").status_code == 404
    assert ann.get(f"/chats/{id_}/export/word").status_code == 404
    bad = ann.post("/chats/import", content=b"{}")
    assert bad.status_code == 400 and bad.json()["error"]["message"].startswith("The file is in no form that is known")


def test_characters_are_made_by_people_for_themselves(app: App, people):
    ann, bob = people
    app.characters.folder.mkdir(exist_ok=True)
    (app.characters.folder / "Shared.yaml").write_text("name: Shared\ncontext: Everybody's.")
    came = ann.post("/chats/characters/import?file=zoe.png", content=card({"name": "Zoe", "first_mes": "Hi {{user}}."})).json()
    assert came == {
        "id": "Zoe", "name": "Zoe", "pictured": True, "greetings": 1, "lore": 0, "constant": 0, "left_out": [],
    }  # fmt: skip
    again = ann.post("/chats/characters/import?file=zoe.png", content=card({"name": "Zoe"})).json()
    assert (again["id"], again["name"]) == ("Zoe 2", "Zoe")
    assert [row["id"] for row in ann.get("/chats/characters").json()["characters"]] == ["Shared", "Zoe", "Zoe 2"]
    assert [row["id"] for row in bob.get("/chats/characters").json()["characters"]] == ["Shared"]
    assert ann.get("/chats/characters/Zoe/picture").headers["content-type"] == "image/png"
    for path in ("/chats/characters/Zoe", "/chats/characters/Zoe/picture", "/chats/characters/Zoe/file"):
        assert bob.get(path).status_code == 404
    assert bob.delete("/chats/characters/Shared").status_code == 403
    assert ann.put("/chats/name", json={"name": "Ann"}).status_code == 200
    chat = ann.post("/chats/characters/Zoe/chat", json={"mode": "chat"}).json()["chat"]
    view = ann.post(f"/chats/{chat}/view", json={}).json()
    assert view["speakers"] == {"user": "Ann", "name": "Zoe", "character": "Zoe"}
    assert "Hi Ann." in view["messages"][0]["blocks"][0][2]
    ann.delete("/chats/characters/Zoe")
    assert ann.post(f"/chats/{chat}/view", json={}).json()["speakers"] == {"user": "Ann", "name": "Zoe", "character": None}
    gone = ann.post("/chats/send", json={"content": "x", "chat": chat, "after": view["messages"][0]["id"]})
    assert gone.status_code == 404
    assert gone.json()["error"]["message"] == "There is no character called Zoe. There are: Shared, Zoe 2."


def test_a_name_that_is_no_name_is_refused(people):
    ann, _ = people
    for name in ("", "   ", "\x00", "a" * 501):
        refused = ann.post("/chats/characters", json={"name": name})
        assert refused.status_code == 400, name
    assert ann.put("/chats/name", json={"name": "x" * 100}).status_code == 400
    assert ann.post("/chats/characters/none/chat", json={}).status_code == 404


def test_broken_files_in_the_folder_are_named_in_the_list(tmp_path: Path):
    app = make_app(tmp_path, EchoModel())
    app.characters.save("local", Character("Good"))
    (app.characters.folder / "Bad.yaml").write_text("name: [")
    rows = {row["id"]: row.get("problem") for row in client_of(app).get("/chats/characters").json()["characters"]}
    assert rows == {"Bad": "Bad.yaml is not valid YAML.", "Good": None}
    app.close()
