"""Folders as people have them: pipes, links to nowhere, no permission. Every good entry is listed, and every odd one has a reason."""

from __future__ import annotations

import codecs
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from modules import web
from modules.app import App
from modules.errors import ReadOnly, UserError
from modules.generation.sampling import SamplingParams
from modules.library.characters import CharacterLibrary
from modules.library.entries import Patience
from modules.library.loras import LoraLibrary
from modules.library.models import ModelLibrary, describe
from modules.library.presets import PresetLibrary
from modules.library.prompts import PromptLibrary
from modules.library.templates import TemplateLibrary
from modules.services.backup import Backup
from modules.settings.server import ServerOptions
from modules.training.formats import guess_format, list_formats, read_format
from modules.training.recipes import list_recipes, read_recipe
from modules.training.rows import list_datasets, read_rows
from tests.fakes import EchoModel
from tests.field.mutations import damaged, how_many
from tests.field.weights import copied, put
from tests.in_process import make_app
from tests.serving import ROOT, SCRIPTED, Server

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, which passes over permissions."""
    if os.geteuid() != 0:
        yield
        return
    for encoding in ("utf-8-sig", "utf-16", "cp437"):  # Python's own files may be root's alone
        codecs.lookup(encoding)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def names_of(answer: Any) -> list[str]:
    return [entry["name"] for entry in answer.json()["models"]]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can go into, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="textloom-test-", dir="/tmp") as name:  # that of a test run is its owner's alone
        Path(name).chmod(0o755)
        yield Path(name)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def without_rights(make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: (make(path), path.chmod(0))


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "is a named pipe, not a file"),
    "a socket": (bound_socket, "is a socket, not a file"),
    "a file without rights": (without_rights(Path.touch), "cannot be read: no permission"),
    "a folder without rights": (without_rights(Path.mkdir), "cannot be read: no permission"),
    "a link to nowhere": (lambda path: path.symlink_to("/nowhere/x"), "is a link to /nowhere/x, which is not there"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "is a link that leads back to itself"),
}
FOLDERS = {kind: how for kind, how in KINDS.items() if "folder" in kind or "link" in kind}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_file_that_cannot_be_read_says_why(place, kind):
    make, reason = KINDS[kind]
    make(place / "x.gguf")
    with as_nobody():
        (spec,) = ModelLibrary(place).all()
    assert spec.name == "x.gguf" and reason in str(spec.problem)


@pytest.mark.parametrize("library", [ModelLibrary, LoraLibrary])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_cannot_be_read_says_why_and_hides_no_other(place, kind, library):
    make, reason = FOLDERS[kind]
    (place / "good").mkdir()
    make(place / "odd")
    with as_nobody():
        good, odd = library(place).all()
    assert (good.name, odd.name) == ("good", "odd") and reason in str(odd.problem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_part_of_a_model_that_cannot_be_read_is_named(place, tiny_llama_folder, kind, file):
    make, reason = KINDS[kind]
    folder = copied(tiny_llama_folder, place / "m")
    for part in folder.iterdir():
        part.chmod(0o644)
    (folder / file).unlink()
    make(folder / file)
    with as_nobody():
        spec = describe(folder)
    told = f"{spec.problem} {' '.join(spec.warnings)}"
    assert f"{file} {reason}" in told
    assert spec.problem if file != "tokenizer.json" else True


def test_an_odd_file_beside_a_whole_model_stops_nothing(place, tiny_llama_folder):
    folder = copied(tiny_llama_folder, place / "m")
    os.mkfifo(folder / "other.safetensors")
    spec = describe(folder)
    assert spec.problem is None and spec.warnings == ("other.safetensors is a named pipe, not a file. Remove it.",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_an_adapter_that_cannot_be_read_is_named(place, kind):
    make, reason = KINDS[kind]
    folder = place / "a"
    folder.mkdir()
    put_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 8, "lora_alpha": 16})
    make(folder / "adapter_model.safetensors")
    with as_nobody():
        (spec,) = LoraLibrary(place).all()
    assert f"adapter_model.safetensors {reason}" in str(spec.problem)


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_that_cannot_be_read_is_listed_and_says_why(place, kind):
    make, reason = KINDS[kind]
    (place / "good.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    make(place / "x.json")
    with as_nobody():
        assert list_datasets(place) == ["good.jsonl", "x.json"]
        with pytest.raises(UserError, match=reason):
            read_rows(place, "x.json")


def test_a_data_set_may_be_a_link_to_another_disk_and_its_name_leads_nowhere_else(place):
    (place / "disk").mkdir()
    (place / "datasets").mkdir()
    (place / "disk" / "far.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (place / "datasets" / "near.jsonl").symlink_to(place / "disk" / "far.jsonl")
    assert len(read_rows(place / "datasets", "near").rows) == 1
    for name in ("../disk/far.jsonl", str(place / "disk" / "far.jsonl"), ".", "x/../../disk/far"):
        with pytest.raises(UserError, match="There is no data set"):
            read_rows(place / "datasets", name)


def test_a_file_that_cannot_be_read_costs_a_folder_of_data_one_row(place):
    folder = place / "set"
    folder.mkdir()
    (folder / "good.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    os.mkfifo(folder / "x.json")
    rows = read_rows(place, "set")
    assert len(rows.rows) == 1 and [problem.reason for problem in rows.problems] == [
        "x.json is a named pipe, not a file. Remove it."
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_format_that_cannot_be_read_is_listed_and_stops_no_other(place, kind):
    make, reason = KINDS[kind]
    shutil.copy(ROOT / "training" / "formats" / "sharegpt.yaml", place / "good.yaml")
    make(place / "bad.yaml")
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    with as_nobody():
        assert list_formats(place) == ["bad", "good"]
        assert guess_format(place, row, row) == "good"
        with pytest.raises(UserError, match=reason):
            read_format(place, "bad")


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".png"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "folder" not in kind])
def test_a_character_that_cannot_be_read_is_listed_and_says_why(place, kind, suffix):
    make, reason = KINDS[kind]
    make(place / f"x{suffix}")
    (place / "good.json").write_text('{"name": "Good"}')
    library = CharacterLibrary(place)
    with as_nobody():
        assert [entry.id for entry in library.all("local")] == ["good", "x"]
        for read in (library.read, library.file):
            with pytest.raises(UserError, match=reason):
                read("local", "x")
        assert library.named("local", "Good").name == "Good"


def test_a_name_that_is_no_text_hides_no_other(place):
    for name in (b"/\xb0\xa1.yaml", b"/x.yaml", b"/\xb0\xa1.jsonl"):
        Path(os.fsdecode(os.fsencode(place) + name)).write_text("name: x")
    assert PresetLibrary(place).names() == list_recipes(place) == list_formats(place) == ["x"]
    assert list_datasets(place) == []
    assert [entry.id for entry in CharacterLibrary(place).all("local")] == ["x"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_listed_and_reading_one_says_why_not(place, kind):
    make, reason = KINDS[kind]
    readers = {
        ".yaml": [
            (lambda: PresetLibrary(place).names(), lambda: PresetLibrary(place).read("x")),
            (lambda: list_recipes(place), lambda: read_recipe(place, "x")),
        ],
        ".txt": [(lambda: PromptLibrary(place).names(), lambda: PromptLibrary(place).read("x"))],
        ".jinja": [(lambda: TemplateLibrary(place).names(), lambda: TemplateLibrary(place).read("x"))],
    }
    for suffix, pairs in readers.items():
        make(place / f"x{suffix}")
        for names, read in pairs:
            with as_nobody():
                assert names() == ["x"]
                with pytest.raises(UserError, match=reason):
                    read()


def test_a_link_to_nowhere_can_be_deleted_from_its_list(place):
    for library, suffix in ((PresetLibrary(place), ".yaml"), (PromptLibrary(place), ".txt")):
        (place / f"x{suffix}").symlink_to("/nowhere/x")
        assert library.names() == ["x"]
        library.delete("x")
        assert library.names() == []


def test_a_folder_that_cannot_be_read_at_all_is_named(place):
    (place / "models").mkdir(mode=0)
    with as_nobody(), pytest.raises(UserError, match="models cannot be read: no permission"):
        ModelLibrary(place / "models").all()


def test_a_name_that_is_no_text_is_listed(place):
    os.mkdir(os.fsencode(place) + b"/\xb0\xa1")
    for library in (ModelLibrary, LoraLibrary):
        (spec,) = library(place).all()
        assert spec.name.isprintable() and "has a name that is not UTF-8" in str(spec.problem)
        spec.name.encode()


def test_a_disk_that_does_not_answer_is_told_and_asked_no_second_time(place):
    answer = threading.Event()
    asked = []

    def hang() -> str:
        asked.append(1)
        answer.wait()
        return "there"

    patience: Patience[str] = Patience(seconds=0.02)
    for _ in range(3):
        with pytest.raises(UserError, match="x does not answer"):
            patience.ask(place / "x", hang)
    assert patience.ask(place / "y", lambda: "other") == "other"
    answer.set()
    patience.seconds = 10
    with pytest.raises(RuntimeError):
        patience.ask(place / "z", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert len(asked) == 1


# --- the hub's cache, as other programs leave it


def cached(folder: Path, model: Path, repository: str, commits: dict[str, str]) -> Path:
    """models--ORG--NAME with `model` under each commit. commits: commit → branch, "" for none."""
    place = folder / f"models--{repository.replace('/', '--')}"
    (place / "blobs").mkdir(parents=True)
    for file in model.iterdir():
        shutil.copy(file, place / "blobs" / f"blob-of-{file.name}")
    for commit, branch in commits.items():
        snapshot = place / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in model.iterdir():
            (snapshot / file.name).symlink_to(f"../../blobs/blob-of-{file.name}")
        if branch:
            (place / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
            (place / "refs" / branch).write_text(commit)
    return place


def test_the_hubs_cache_is_read_as_the_models_it_holds(place, tiny_llama_folder):
    commits = {"a" * 40: "main", "b" * 40: "pr/1", "c" * 40: ""}
    cached(place, tiny_llama_folder, "org/name", commits)
    cached(place, tiny_llama_folder, "gpt2", {"d" * 40: ""})
    (place / "datasets--org--rows" / "snapshots").mkdir(parents=True)
    (place / "version.txt").write_text("1")
    library = ModelLibrary(place)
    assert [spec.name for spec in library.all()] == ["gpt2", "org_name", "org_name_cccccccc", "org_name_pr_1"]
    assert all(spec.problem is None and spec.parameters for spec in library.all())
    assert library.find("org/name").path.name == "a" * 40
    assert library.find("org/name:pr/1").path.name == "b" * 40


def test_a_file_that_left_the_cache_is_named(place, tiny_llama_folder):
    folder = cached(place, tiny_llama_folder, "org/name", {"a" * 40: "main"})
    (folder / "blobs" / "blob-of-model.safetensors").unlink()
    (spec,) = ModelLibrary(place).all()
    assert spec.name == "org_name" and "model.safetensors is a link to ../../blobs/blob-of-model" in str(spec.problem)


def test_a_folder_of_its_own_keeps_its_name_beside_a_cached_one(place, tiny_llama_folder):
    cached(place, tiny_llama_folder, "org/name", {"a" * 40: "main"})
    copied(tiny_llama_folder, place / "org_name")
    first, second = ModelLibrary(place).all()
    assert (first.name, first.path.parent.name) == (f"models--org--name/{'a' * 40}", "snapshots")
    assert (second.name, second.path) == ("org_name", place / "org_name")


def test_gguf_files_and_adapters_in_the_cache_are_found(place, tiny_gguf):
    source = place / "source"
    source.mkdir()
    shutil.copy(tiny_gguf, source / "small.Q8.gguf")
    cached(place / "models", source, "org/name-GGUF", {"a" * 40: "main"})
    (spec,) = ModelLibrary(place / "models").all()
    assert (spec.name, spec.format, spec.problem) == ("org_name-GGUF", "gguf", None)
    (source / "small.Q8.gguf").unlink()
    put_json(source / "adapter_config.json", {"r": 8, "lora_alpha": None})
    (source / "adapter_model.bin").write_bytes(b"PK\3\4")
    cached(place / "loras", source, "org/lora", {"a" * 40: "main"})
    (adapter,) = LoraLibrary(place / "loras").all()
    assert adapter.name == "org_lora" and "lora_alpha" in str(adapter.problem)


# --- numbers in files


def put_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("key", "value"),
    [("lora_alpha", None), ("r", 0), ("r", None), ("r", "8"), ("r", 2.5), ("lora_alpha", "16"), ("lora_dropout", 2)],
)
def test_a_number_of_an_adapter_that_is_none_is_told(tmp_path, key, value):
    folder = tmp_path / "a"
    folder.mkdir()
    put_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 8, "lora_alpha": 16, key: value})
    (folder / "adapter_model.bin").write_bytes(b"PK\3\4")
    (spec,) = LoraLibrary(tmp_path).all()
    assert str(spec.problem).startswith(f'adapter_config.json in a has {json.dumps(value)} as "{key}"')


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        (
            "config.json",
            {"hidden_size": "64"},
            'config.json in m has "64" as "hidden_size", where a whole number from 1 to',
        ),
        ("config.json", {"num_hidden_layers": 0}, 'config.json in m has 0 as "num_hidden_layers"'),
        ("config.json", {"num_hidden_layers": 10**30}, "where a whole number from 1 to 10000 is expected"),
        ("config.json", {"text_config": {"num_hidden_layers": 10**30}}, 'as "num_hidden_layers", where'),
        ("config.json", {"vocab_size": 12.5}, 'config.json in m has 12.5 as "vocab_size"'),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": "4"}}, '"4" as "bits", where a whole number'),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "group_size": "x"}}, '"x" as "group_size"'),
        ("config.json", {"quantization_config": "gptq"}, "quantization_config of config.json in m is no object"),
        ("quantize_config.json", {"bits": 0}, 'quantize_config.json in m has 0 as "bits"'),
        ("generation_config.json", {"max_new_tokens": "a"}, 'generation_config.json in m has "a" as "max_new_tokens"'),
    ],
    ids=str,
)
def test_a_number_of_a_model_that_is_none_is_told(tiny_llama_folder, tmp_path, file, values, told):
    folder = copied(tiny_llama_folder, tmp_path / "m")
    if (folder / file).exists():
        put(folder / file, **values)
    else:
        put_json(folder / file, values)
    assert told in str(describe(folder).problem)


# --- damaged files and folders of all kinds


GOOD = {
    "model": ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"),
}


@pytest.mark.parametrize("file", GOOD["model"])
def test_a_damaged_file_of_a_model_never_breaks_the_list(tiny_llama_folder, tmp_path, file):
    folder = copied(tiny_llama_folder, tmp_path / "models" / "m")
    library = ModelLibrary(tmp_path / "models")
    data = (folder / file).read_bytes()
    for text in damaged(data, how_many(30)):
        (folder / file).write_bytes(text)
        (spec,) = library.all()
        json.dumps(spec.problem).encode()


@pytest.mark.parametrize("file", ["adapter_config.json"])
def test_a_damaged_file_of_an_adapter_never_breaks_the_list(tmp_path, file):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter_model.bin").write_bytes(b"PK\3\4")
    values = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "base_model_name_or_path": "m"}
    for text in damaged(json.dumps(values).encode(), how_many(100)):
        (folder / file).write_bytes(text)
        (spec,) = LoraLibrary(tmp_path).all()
        assert spec.problem is None or spec.problem.isprintable()


@pytest.mark.parametrize("seed", range(3))
def test_folders_of_all_kinds_of_entries_are_listed_on_the_page_and_in_the_api(place, tiny_gguf, seed):
    chance = random.Random(seed)
    folders = ("recipes", "runs", "datasets", "formats")
    for folder in ("models", "loras", "presets", "prompts", "characters", *(f"training/{name}" for name in folders)):
        (place / folder).mkdir(parents=True)
        for number in range(8):
            make, _ = chance.choice(list(KINDS.values()))
            make(place / folder / f"x{number}{chance.choice(['', '.gguf', '.yaml', '.txt', '.json', '.jinja', '.png'])}")
    shutil.copy(tiny_gguf, place / "models" / "good.gguf")
    (place / "presets" / "good.yaml").write_text("temperature: 0.5\n")
    (place / "training" / "datasets" / "good.jsonl").write_text("{}")
    (place / "training" / "formats" / "good.yaml").write_text("kind: text")
    (place / "characters" / "good.yaml").write_text("name: Good\n")
    app = make_app(place, EchoModel(lambda request: "x"))
    try:
        client = TestClient(web.build(app), base_url="http://127.0.0.1", raise_server_exceptions=False)
        with as_nobody():
            for path in ("/v1/internal/model/list", "/v1/internal/adapters/list", "/v1/models", "/health", "/chats/characters"):
                assert client.get(path).status_code == 200, path
            names = names_of(client.get("/v1/internal/model/list"))
            assert "good" in app.presets.names() and app.training.list() == []
            assert "good.jsonl" in list_datasets(app.training.places.datasets) and list_formats(app.training.places.formats)
            rows = client.get("/chats/characters").json()["characters"]
            assert "Good" in [row["name"] for row in rows if "problem" not in row]
            packed = Backup(app, "local").export()
            assert {"presets/good.yaml", "characters/good.yaml"} <= set(zipfile.ZipFile(io.BytesIO(packed)).namelist())
        assert "good.gguf" in names
    finally:
        app.close()


# --- folders that may not be written, and terminals that know only ASCII


def test_a_data_folder_that_cannot_be_written_is_one_sentence(place):
    (place / "data").mkdir(mode=0o555)
    with as_nobody(), pytest.raises(UserError, match=r"data cannot be written .* choose another folder with --data-dir"):
        App(place)
    (place / "file").touch()
    with pytest.raises(ReadOnly, match=r"file.data cannot be written"):
        App(place, ServerOptions(data_dir="file/data"))


def test_every_folder_that_cannot_be_written_is_named_and_a_models_folder_works_all_the_same(place, tiny_gguf, caplog):
    App(place).close()  # its database: SQLite makes one with files in a folder that it chose long ago
    folders = ["models", "loras", "characters", "presets", "prompts", "training"]
    for folder in folders:
        (place / folder).mkdir(exist_ok=True)
    shutil.copy(tiny_gguf, place / "models" / "small.gguf")
    for folder in folders:
        (place / folder).chmod(0o555)
    if os.geteuid() == 0:
        for path in (place / "data", *(place / "data").iterdir()):
            shutil.chown(path, NOBODY)
    import gradio  # noqa: F401  # as above: Python's own files

    with as_nobody(), caplog.at_level("WARNING"):
        app = App(place)
        try:
            for folder in folders:
                told = [line for line in caplog.messages if f"/{folder} cannot be written" in line]
                assert len(told) == 1, folder
            assert app.models.find("small").problem is None
            assert [spec.name for spec in app.models.all()] == ["small.gguf"]
            for save in (
                lambda: app.presets.save("mine", SamplingParams(temperature=0.5)),
                lambda: app.prompts.save("mine", "text"),
                lambda: app.templates.save("mine", "{{ messages }}"),
            ):
                with pytest.raises(ReadOnly, match="cannot be written"):
                    save()
        finally:
            app.close()


PLAIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}


@pytest.mark.slow
def test_an_ascii_terminal_ends_no_server(place, tiny_llama_folder):
    (place / "models").mkdir()
    copied(tiny_llama_folder, place / "models" / "千问")
    arguments = ["--verbose", "--model-dir", str(place / "models"), "--model", "千问", "--nowebui"]
    with Server(arguments, data=place / "data", environment=PLAIN, program=["-c", SCRIPTED]) as server:
        names = names_of(httpx.get(f"{server.url}/v1/internal/model/list"))
    assert len(names) == 1


def test_an_ascii_terminal_ends_no_download(place):
    words = [sys.executable, str(ROOT / "download-model.py"), "千问/千问", "--model-dir", str(place)]
    done = subprocess.run(words, env={**os.environ, **PLAIN}, capture_output=True, timeout=60)
    assert done.returncode == 1 and b"is not the name of a model" in done.stderr and b"Traceback" not in done.stderr
