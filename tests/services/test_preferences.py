"""What users set is theirs, across restarts; what an administrator saves as default is everybody's beginning."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modules.app import App
from modules.errors import Forbidden, NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.services.preferences import Preferences
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
    Preferences(app, "bob").set_sampling(SamplingParams(temperature=0.3), None)
    Preferences(app, "bob").set_page({"first_tab": "notebook", "stream": False})
    again = restarted(app)
    assert Preferences(again, "bob").sampling[0].temperature == 0.3
    assert Preferences(again, "bob").page == PageSettings(first_tab="notebook", stream=False)
    assert Preferences(again, "ann").sampling[1] == "simple-1" and Preferences(again, "ann").page == PageSettings()
    again.close()


def test_what_an_administrator_saves_as_default_is_where_others_begin(app: App):
    path = app.root / "settings.yaml"
    path.write_text("listen_port: 7861\ntop_k: 3\n", encoding="utf-8")
    Preferences(app, "ann").choose_preset("Yara")
    Preferences(app, "ann").set_sampling(Preferences(app, "ann").sampling[0].changed({"top_p": 1.0}), None)
    Preferences(app, "ann").set_page({"theme": "dark"})
    assert Preferences(app, "ann").save_as_default() == "settings.yaml"
    wanted = Preferences(app, "ann").sampling[0]
    assert Preferences(app, "bob").sampling[0] == wanted
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["listen_port"] == 7861
    again = restarted(app)
    assert Preferences(again, "bob").sampling[0] == wanted
    assert Preferences(again, "bob").page.theme == "dark"
    again.close()


def test_a_preset_as_default_is_kept_by_its_name(app: App):
    Preferences(app, "ann").choose_preset("Yara")
    Preferences(app, "ann").save_as_default()
    assert Preferences(app, "bob").sampling == (app.presets.read("Yara"), "Yara")


def test_only_administrators_save_for_all(app: App):
    with pytest.raises(Forbidden):
        Preferences(app, "bob").save_as_default()
    app.presets.of("bob").save("Bob's", SamplingParams(top_k=7))
    app.prompts.of("bob").save("Yes", "text")
    assert "Bob's" in app.presets.of("bob").names() and "Bob's" not in app.presets.of("ann").names()
    assert Preferences(app, "bob").choose_preset("Bob's").top_k == 7
    assert Preferences(app, "bob").sampling[1] == "Bob's"
    with pytest.raises(NotFound):
        Preferences(app, "ann").choose_preset("Bob's")
    with pytest.raises(Forbidden):
        app.presets.of("bob").delete("Yara")
    with pytest.raises(UserError):
        app.prompts.of("bob").save("../x", "text")
    app.presets.of("bob").delete("Bob's")
    assert "Bob's" not in app.presets.of("bob").names()


def test_the_notebook_flag_opens_the_notebook(tmp_path: Path):
    app = make_app(tmp_path, notebook=True)
    assert Preferences(app, "local").page.first_tab == "notebook"
    Preferences(app, "local").set_page({"first_tab": "chat"})
    assert Preferences(app, "local").page.first_tab == "chat"
    app.close()
    both = make_app(tmp_path / "both", notebook=True, chat=True)
    assert Preferences(both, "local").page.first_tab == "chat"
    both.close()
