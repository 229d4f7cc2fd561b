"""What is deleted or overwritten comes back by the byte: presets, prompts, characters, keys, settings, runs, adapters; for whom it was, and for how long."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modules.api.page.views import pulse_view
from modules.app import App, Underway
from modules.errors import Conflict, DiskFull, NotFound, UserError
from modules.generation.model_manager import ManagerStatus
from modules.library import trash
from modules.library.character import Character
from modules.library.remote_address import RemoteAddress, write_address
from modules.library.trash import Trash, shipped
from modules.services.models import Models
from modules.services.preferences import Preferences, default_sampling
from modules.services.workspace import Workspace
from modules.training.config import TrainingConfig, write_config
from modules.training.folder import RunFolder
from tests.api.page.test_chats import Page
from tests.fakes import EchoModel
from tests.in_process import ROOT, make_app
from tests.library.test_characters import picture


@pytest.fixture(scope="module")
def _app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = make_app(tmp_path_factory.mktemp("undo"), EchoModel())
    yield app
    app.close()


@pytest.fixture(scope="module")
def page(_app: App) -> Page:
    return Page(_app)


@pytest.fixture
def app(_app: App) -> Iterator[App]:
    """One for all tests, as new for each."""
    yield _app
    for folder in ("presets", "prompts", "characters", "training", "models", "data/deleted"):
        shutil.rmtree(_app.root / folder, ignore_errors=True)
    (_app.root / "models").mkdir()
    for folder in ("presets", "prompts"):
        shutil.copytree(ROOT / folder, _app.root / folder)
    (_app.root / "settings.yaml").unlink(missing_ok=True)
    _app.sampling, _app.page = type(_app.sampling)(), type(_app.page)()
    with _app.store.database.transaction() as db:
        db.execute("DELETE FROM preferences")


def everything_in(root: Path) -> dict[str, tuple[int, bytes]]:
    """Each file below the program's folder, with who may read it and its bytes; what the store and the trash keep aside."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_relative_to(root / "data")
    }


def a_run(app: App, name: str = "facts", **settings: object) -> str:
    """The folder of a run that waits to be started by hand, with a checkpoint."""
    folder = RunFolder(app.training.runs / f"20260101-000000-{name}")
    (folder.path / "checkpoints" / "step-000003").mkdir(parents=True)
    config = TrainingConfig.read({"name": name, "model": "m", "dataset": "d.json", **settings})
    folder.path.joinpath("plan.json").write_text("{}")
    write_config(folder.config_file, config)
    (folder.path / "checkpoints" / "step-000003" / "weights").write_bytes(os.urandom(1000))
    return folder.path.name


# What each control asks the server for: (what there is before, the request).
CHANGES: dict[str, tuple[Callable[[App], object], Callable[[Page], Any]]] = {
    "a prompt is deleted": (lambda app: None, lambda page: page.ok("DELETE", "/writing/prompt?name=QA")),
    "a prompt is overwritten": (
        lambda app: None,
        lambda page: page.ok("POST", "/writing/prompts", {"name": "QA ", "text": "other"}),
    ),
    "a character is deleted": (
        lambda app: app.characters.save("local", Character("Zoe", "A pilot."), picture()),
        lambda page: page.ok("DELETE", "/characters/Zoe"),
    ),
    "a character is edited": (
        lambda app: app.characters.save("local", Character("Zoe", "A pilot."), picture()),
        lambda page: page.ok("POST", "/characters", {"name": "Zoe", "context": "A captain.", "replaces": "Zoe"}),
    ),
    "a character gets another name": (
        lambda app: app.characters.save("local", Character("Zoe", "A pilot."), picture()),
        lambda page: page.ok("POST", "/characters", {"name": "Zoey", "context": "A pilot.", "replaces": "Zoe"}),
    ),
    "an engine with its key is removed": (
        lambda app: write_address(app.models.folder, "far", RemoteAddress("http://10.0.0.5/v1", api_key="s3cret")),
        lambda page: page.ok("DELETE", "/engines/far"),
    ),
    "the defaults are overwritten": (
        lambda app: Preferences(app, "local").save_as_default(),
        lambda page: (
            Preferences(page.app, "local").set_sampling(page.app.presets.read("Yara"), "Yara"),
            page.ok("POST", "/defaults"),
        )[1],
    ),
    "a run is deleted": (a_run, lambda page: page.ok("DELETE", "/training/20260101-000000-facts")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_deleted_or_overwritten_comes_back_by_the_byte_and_goes_again(app: App, page: Page, name: str):
    before, change = CHANGES[name]
    before(app)
    was = everything_in(app.root)
    note = change(page)
    changed = everything_in(app.root)
    assert changed != was
    assert note["undo"] and note["words"]
    (kept,) = page.ok("GET", "/deleted")
    assert kept["id"] == note["undo"]
    page.ok("POST", f"/deleted/{note['undo']}/restore")
    assert everything_in(app.root) == was
    status, said = page.refused("POST", f"/deleted/{note['undo']}/restore")
    assert status == 404 and "put back already" in said
    again = page.ok("GET", "/deleted")
    if again:  # something had taken its place: that is kept now
        page.ok("POST", f"/deleted/{again[0]['id']}/restore")
        assert everything_in(app.root) == changed


def test_defaults_that_come_back_are_those_of_new_users_at_once(app: App, page: Page):
    Preferences(app, "local").save_as_default()
    before = default_sampling(app)
    Preferences(app, "local").set_sampling(app.presets.read("Yara"), "Yara")
    note = page.ok("POST", "/defaults")
    assert default_sampling(app) != before
    page.ok("POST", f"/deleted/{note['undo']}/restore")
    assert default_sampling(app) == before


def test_settings_of_one_model_come_back_without_those_that_others_got_since(app: App, page: Page):
    for name in ("one", "other"):
        write_address(app.models.folder, name, RemoteAddress("http://127.0.0.1:9/v1"))
        app.saved_options.save(name, app.loading.changed({"ctx_size": 512}))
    note = Models(app, "local").save_options("one", app.loading.changed({"ctx_size": 1024}))
    app.saved_options.save("other", app.loading.changed({"ctx_size": 4096}))
    page.ok("POST", f"/deleted/{note.id}/restore")
    assert [app.saved_options.for_model(name).ctx_size for name in ("one", "other")] == [512, 4096]
    (again,) = page.ok("GET", "/deleted")
    page.ok("POST", f"/deleted/{again['id']}/restore")
    assert [app.saved_options.for_model(name).ctx_size for name in ("one", "other")] == [1024, 4096]


def test_chats_follow_a_character_to_its_old_name(app: App, page: Page):
    app.characters.save("local", Character("Zoe", "A pilot."))
    chat = app.store.for_owner("local").chats.create(settings={"character": "Zoe"})
    note = page.ok("POST", "/characters", {"name": "Zoey", "replaces": "Zoe"})
    assert app.store.for_owner("local").chats.get(chat.id).settings["character"] == "Zoey"
    page.ok("POST", f"/deleted/{note['undo']}/restore")
    assert app.store.for_owner("local").chats.get(chat.id).settings["character"] == "Zoe"


def test_a_character_of_the_same_id_that_came_meanwhile_is_kept_too(app: App, page: Page):
    app.characters.save("local", Character("Zoe", "The first."))
    undo = page.ok("DELETE", "/characters/Zoe")["undo"]
    app.characters.save(
        "local", Character("Zoe", "The second.", others={"creator": "ann"}), picture()
    )  # in a file of another form
    page.ok("POST", f"/deleted/{undo}/restore")
    assert app.characters.read("local", "Zoe").context == "The first."
    assert [path.name for path in app.characters.folder.iterdir()] == ["Zoe.yaml"]
    (again,) = page.ok("GET", "/deleted")
    page.ok("POST", f"/deleted/{again['id']}/restore")
    assert app.characters.read("local", "Zoe").context == "The second." and app.characters.picture("local", "Zoe")
    assert sorted(path.name for path in app.characters.folder.iterdir()) == ["Zoe.json", "Zoe.png"]


def test_a_deleted_preset_is_shown_nowhere_and_its_settings_stay(app: App, page: Page):
    page.ok("POST", "/preset", {"name": "Yara"})
    yara = app.presets.read("Yara")
    with app.trash.undoable("local", "preset", "Yara", [app.presets.file("Yara")]) as undo:
        app.presets.delete("Yara")
    assert Preferences(app, "local").sampling == (yara, None)
    assert page.ok("GET", "/pulse")["preset"] is None
    assert "Yara" not in page.ok("GET", "/menus")["presets"]
    page.ok("POST", f"/deleted/{undo.id}/restore")
    assert Preferences(app, "local").sampling == (yara, "Yara")


def test_settings_that_a_preset_replaces_can_be_had_back(app: App, page: Page):
    own = app.presets.read("Yara").changed({"temperature": 0.31})
    Preferences(app, "local").set_sampling(own, None)
    note = page.ok("POST", "/preset", {"name": "Yara"})
    page.ok("PUT", "/sampling", note["settings"])
    assert Preferences(app, "local").sampling == (own, None)
    page.ok("POST", "/preset", {"name": "Yara"})
    assert page.ok("POST", "/preset", {"name": "simple-1"}) is None  # a preset is kept as such


def test_a_run_that_waits_is_not_started_once_it_is_deleted_and_waits_again_when_it_is_back(
    app: App, page: Page, monkeypatch: pytest.MonkeyPatch
):
    id_ = a_run(app)
    app.training.runs.joinpath(id_, "queued").write_text("1")
    launched = threading.Event()
    monkeypatch.setattr(app.training, "_launch", lambda folder, config: (folder.queued.unlink(), launched.set()))
    with trash_on_another_disk(monkeypatch):
        note = page.ok("DELETE", f"/training/{id_}")
    assert [path.name for path in app.training.runs.iterdir()] == [f".{note['undo']}.deleted"]
    assert app.training._queued() == [] and not launched.is_set()
    page.ok("POST", f"/deleted/{note['undo']}/restore")
    assert launched.wait(10)


# --- the trash itself


def test_a_change_that_fails_leaves_everything_as_it_was(tmp_path: Path):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    paths = [tmp_path / "file", tmp_path / "folder"]
    with pytest.raises(Conflict), bin_.undoable("ann", "preset", "x", paths):
        (tmp_path / "file").write_text("half")
        raise Conflict("no")
    assert (tmp_path / "file").read_text() == "old" and (tmp_path / "folder" / "a").read_text() == "a"
    assert bin_.all("ann") == [] and not any((tmp_path / "deleted").iterdir())


def test_half_a_copy_takes_the_place_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()

    def full(source: Path, target: Path, **_: object) -> None:
        target.write_text("o")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trash.shutil, "copy2", full)
    with pytest.raises(DiskFull), bin_.undoable("ann", "preset", "x", [tmp_path / "folder", tmp_path / "file"]):
        raise AssertionError("nothing may be overwritten")
    assert (tmp_path / "file").read_text() == "old" and (tmp_path / "folder").is_dir()
    assert not any((tmp_path / "deleted").iterdir())


def test_what_cannot_be_put_back_leaves_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "file").write_text("old")
    with bin_.undoable("ann", "preset", "x", [tmp_path / "file"]) as undo:
        (tmp_path / "file").write_text("new")
    real = shutil.copy2

    def full(source: Path, target: Path, **more: Any) -> None:
        if target.suffix == ".back":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target, **more)

    with monkeypatch.context() as patch:
        patch.setattr(trash.shutil, "copy2", full)
        with pytest.raises(OSError, match="No space left"):
            bin_.restore("ann", str(undo.id))
    assert (tmp_path / "file").read_text() == "new" and [kept.id for kept in bin_.all("ann")] == [undo.id]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deleted", "file"]
    bin_.restore("ann", str(undo.id))
    assert (tmp_path / "file").read_text() == "old"


def test_an_entry_whose_files_are_gone_is_told(tmp_path: Path):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "file").write_text("old")
    with bin_.undoable("ann", "preset", "x", [tmp_path / "file"]) as undo:
        (tmp_path / "file").write_text("new")
    (tmp_path / "deleted" / str(undo.id) / "0").unlink()
    with pytest.raises(NotFound, match="gone for good"):
        bin_.restore("ann", str(undo.id))
    assert (tmp_path / "file").read_text() == "new"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    with pytest.raises(UserError, match="named pipe"), bin_.undoable("ann", "preset", "x", [tmp_path / "pipe"]):
        raise AssertionError("it cannot be kept")


def test_what_changes_nothing_is_no_entry(tmp_path: Path):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "file").write_text("same")
    with bin_.undoable("ann", "preset", "x", [tmp_path / "file", tmp_path / "none"]) as undo:
        (tmp_path / "file").write_text("same")
    assert undo.id is None and bin_.all("ann") == []


def test_others_neither_see_nor_get_it(tmp_path: Path):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "file").write_text("ann's")
    with bin_.undoable("ann", "preset", "x", [tmp_path / "file"]) as undo:
        (tmp_path / "file").unlink()
    assert undo.id and bin_.all("bob") == []
    for id_ in (undo.id, "../deleted", "", ".", f"{undo.id}/..", "0-00000000"):
        with pytest.raises(NotFound):
            bin_.restore("bob", id_)
    assert not (tmp_path / "file").exists()


def test_only_administrators_put_back_what_is_theirs(tmp_path: Path):
    app = make_app(tmp_path, EchoModel(), gradio_auth="ann:ann-password,bob:bob-password")
    path = write_address(app.models.folder, "far", RemoteAddress("http://10.0.0.5/v1"))
    with app.trash.undoable("bob", "engine", "far", [path]) as undo:  # he was one then
        path.unlink()
    status, _ = Page(app, "bob").refused("POST", f"/deleted/{undo.id}/restore")
    assert status == 403 and not path.exists()
    app.close()


def test_it_goes_after_its_time_and_what_came_with_the_program_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bin_ = Trash(tmp_path / "data" / "deleted", tmp_path)
    monkeypatch.setattr(trash, "LARGE", 1000)
    files = {"presets/Yara.yaml": 10, "presets/mine.yaml": 10, "runs/one": 2000}
    for name, size in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
        with bin_.undoable("ann", "x", name, [path]):
            path.unlink()
    (tmp_path / "presets/Yara.yaml").write_text("mine of the same name")
    with bin_.undoable("ann", "x", "second", [tmp_path / "presets/Yara.yaml"]):
        (tmp_path / "presets/Yara.yaml").unlink()
    assert len(bin_.all("ann")) == 4
    now = time.time()
    monkeypatch.setattr(trash.time, "time", lambda: now + 2 * trash.DAY)
    bin_.sweep()
    assert [kept.name for kept in bin_.all("ann")] == ["second", "presets/mine.yaml", "presets/Yara.yaml"]
    monkeypatch.setattr(trash.time, "time", lambda: now + 400 * trash.DAY)
    bin_.sweep()
    (left,) = bin_.all("ann")
    assert left.shipped
    bin_.restore("ann", left.id)
    assert (tmp_path / "presets/Yara.yaml").read_bytes() == b"x" * 10
    bin_.close()


def test_what_is_large_goes_by_itself_and_nothing_is_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trash, "LARGE", 1000)
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights").write_bytes(b"x" * 2000)
    with bin_.undoable("ann", "run", "run", [tmp_path / "run"]):
        pass
    assert not (tmp_path / "run").exists()
    assert bin_._timer is not None and bin_._timer.interval > trash.KEPT_LARGE_SECONDS - 60
    bin_.close()
    bin_._timer.join(5)
    assert not bin_._timer.is_alive()


@contextmanager
def trash_on_another_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = Path.stat

    def stat(self: Path, **more: Any) -> Any:
        facts = real(self, **more)
        return facts if "deleted" not in self.parts else os.stat_result([*facts[:2], facts.st_dev + 1, *facts[3:10]])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        yield


def test_a_folder_on_another_disk_is_renamed_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "weights").write_bytes(b"w")
    inode = (run / "weights").stat().st_ino
    with trash_on_another_disk(monkeypatch), bin_.undoable("ann", "run", "one", [run]) as undo:
        pass
    assert [path.name for path in run.parent.iterdir()] == [f".{undo.id}.deleted"]
    assert undo.id
    bin_.restore("ann", undo.id)
    assert (run / "weights").stat().st_ino == inode and [path.name for path in run.parent.iterdir()] == ["one"]


def test_a_full_disk_refuses_to_overwrite_and_lets_a_folder_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "file").write_text("old")
    (tmp_path / "run").mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trash, "write_text", full)
    with pytest.raises(DiskFull), bin_.undoable("ann", "preset", "x", [tmp_path / "file"]):
        raise AssertionError("nothing may be overwritten")
    with bin_.undoable("ann", "run", "run", [tmp_path / "run"]) as undo:
        pass
    assert undo.id is None and not (tmp_path / "run").exists() and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pieces": [[1]]}', "\udcff", '{"owner": "ann", "pieces": 3}'])
def test_a_damaged_entry_hides_no_other(tmp_path: Path, text: str):
    bin_ = Trash(tmp_path / "deleted", tmp_path)
    (tmp_path / "file").write_text("x")
    with bin_.undoable("ann", "preset", "x", [tmp_path / "file"]):
        (tmp_path / "file").unlink()
    odd = tmp_path / "deleted" / "ff-00000000"
    odd.mkdir()
    (odd / "entry.json").write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "deleted" / "1-README").write_text("not an entry")
    bin_.sweep()
    assert [kept.name for kept in bin_.all("ann")] == ["x"]


def test_the_list_of_what_came_with_the_program_is_whole():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    patterns = ("presets/*.yaml", "prompts/*.txt", "characters/*.yaml")
    found = subprocess.run(
        ["git", "-c", "core.quotepath=off", "ls-files", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert shipped() == set(found.stdout.split("\n")) - {""}


# --- nothing starts twice


def test_a_second_identical_load_is_refused_and_another_is_not(app: App, monkeypatch: pytest.MonkeyPatch):
    loads, go = [], threading.Event()

    def load(name: str, options: object = None, **_: object) -> None:
        loads.append((name, options))
        go.wait(10)

    monkeypatch.setattr(app, "load_model", load)
    write_address(app.models.folder, "far", RemoteAddress("http://127.0.0.1:9/v1"))
    Models(app, "local").begin_load("far")
    with pytest.raises(Conflict, match="already"):
        Models(app, "local").begin_load("far")
    monkeypatch.setattr(app.manager, "_status", ManagerStatus("empty"))  # it does not know of the load yet: the page does
    engine = pulse_view(Workspace(app, "local"), None)["engine"]
    assert (engine.state, engine.name) == ("loading", "far")
    Models(app, "local").begin_load("far", app.loading.changed({"ctx_size": 512}))
    go.set()
    for thread in [one for one in threading.enumerate() if one.name == "load"]:
        thread.join(10)
    assert len(loads) == 2
    Models(app, "local").begin_load("far")  # it is over


def test_a_second_identical_run_is_refused(app: App, monkeypatch: pytest.MonkeyPatch):
    id_ = a_run(app)
    monkeypatch.setattr(app.training, "check", lambda config: config)
    for queue in (False, True):
        with pytest.raises(Conflict, match="just these settings"):
            app.training.start(app.training.get(id_).config, queue=queue)
    assert [job.id for job in app.training.list()] == [id_]


def test_what_is_under_way_is_noted_once_by_however_many_ask():
    underway, first = Underway(), []
    threads = [threading.Thread(target=lambda: first.append(underway.begin(("x", None)))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(first) == [False] * 19 + [True]


def test_the_entry_keeps_its_paths_below_the_program_so_that_both_may_move(tmp_path: Path):
    root = tmp_path / "here"
    (root / "presets").mkdir(parents=True)
    (root / "presets" / "x.yaml").write_text("x")
    bin_ = Trash(root / "data" / "deleted", root)
    with bin_.undoable("ann", "preset", "x", [root / "presets" / "x.yaml"]) as undo:
        (root / "presets" / "x.yaml").unlink()
    assert json.loads((root / "data" / "deleted" / str(undo.id) / "entry.json").read_text())["pieces"][0][0] == "presets/x.yaml"
    root.rename(tmp_path / "there")
    Trash(tmp_path / "there" / "data" / "deleted", tmp_path / "there").restore("ann", str(undo.id))
    assert (tmp_path / "there" / "presets" / "x.yaml").read_text() == "x"
