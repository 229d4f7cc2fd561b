"""What users set is theirs, across restarts; what an administrator saves as default is everybody's beginning."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modules.app import App
from modules.errors import Forbidden, NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.services import preferences
from modules.settings import command_line
from modules.settings.page import PageSettings
from modules.settings.server import ServerOptions
from tests.in_process import make_app

LOGINS = "ann:a,bob:b"


@pytest.fixture
def app(tmp_path: Path):
    made = make_app(tmp_path, gradio_auth=LOGINS)
    yield made
    made.close()


def restarted(app: App) -> App:
    """Another App in the same folder, started as server.py does: with settings.yaml as defaults."""
    app.store.close()
    defaults = command_line.read_settings_file(app.root / "settings.yaml", required=False)
    parsed = command_line.parse(["--gradio-auth", LOGINS], (ServerOptions, SamplingParams, PageSettings), defaults=defaults)
    server, sampling, page = parsed.settings.values()
    return App(app.root, server, sampling=sampling, page=page)  # type: ignore[arg-type]


def test_settings_are_kept_for_each_user_across_a_restart(app: App):
    preferences.set_sampling(app, "bob", SamplingParams(temperature=0.3), None)
    preferences.set_page(app, "bob", {"first_tab": "notebook", "stream": False})
    again = restarted(app)
    assert preferences.sampling_of(again, "bob")[0].temperature == 0.3
    assert preferences.page_of(again, "bob") == PageSettings(first_tab="notebook", stream=False)
    assert preferences.sampling_of(again, "ann")[1] == "simple-1" and preferences.page_of(again, "ann") == PageSettings()
    again.close()


def test_what_an_administrator_saves_as_default_is_where_others_begin(app: App):
    path = app.root / "settings.yaml"
    path.write_text("listen_port: 7861\ntop_k: 3\n", encoding="utf-8")
    preferences.choose_preset(app, "ann", "Yara")
    preferences.set_sampling(app, "ann", preferences.sampling_of(app, "ann")[0].changed({"top_p": 1.0}), None)
    preferences.set_page(app, "ann", {"theme": "dark"})
    assert preferences.save_as_default(app, "ann") == "settings.yaml"
    wanted = preferences.sampling_of(app, "ann")[0]
    assert preferences.sampling_of(app, "bob")[0] == wanted
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["listen_port"] == 7861
    again = restarted(app)
    assert preferences.sampling_of(again, "bob")[0] == wanted
    assert preferences.page_of(again, "bob").theme == "dark"
    again.close()


def test_a_preset_as_default_is_kept_by_its_name(app: App):
    preferences.choose_preset(app, "ann", "Yara")
    preferences.save_as_default(app, "ann")
    assert preferences.sampling_of(app, "bob") == (app.presets.read("Yara"), "Yara")


def test_only_administrators_save_for_all(app: App):
    with pytest.raises(Forbidden):
        preferences.save_as_default(app, "bob")
    app.presets.of("bob").save("Bob's", SamplingParams(top_k=7))
    app.prompts.of("bob").save("Yes", "text")
    assert "Bob's" in app.presets.of("bob").names() and "Bob's" not in app.presets.of("ann").names()
    assert preferences.choose_preset(app, "bob", "Bob's").top_k == 7
    assert preferences.sampling_of(app, "bob")[1] == "Bob's"
    with pytest.raises(NotFound):
        preferences.choose_preset(app, "ann", "Bob's")
    with pytest.raises(Forbidden):
        app.presets.of("bob").delete("Yara")
    with pytest.raises(UserError):
        app.prompts.of("bob").save("../x", "text")
    app.presets.of("bob").delete("Bob's")
    assert "Bob's" not in app.presets.of("bob").names()


def test_the_notebook_flag_opens_the_notebook(tmp_path: Path):
    app = make_app(tmp_path, notebook=True)
    assert preferences.page_of(app, "local").first_tab == "notebook"
    preferences.set_page(app, "local", {"first_tab": "chat"})
    assert preferences.page_of(app, "local").first_tab == "chat"
    app.close()
    both = make_app(tmp_path / "both", notebook=True, chat=True)
    assert preferences.page_of(both, "local").first_tab == "chat"
    both.close()
