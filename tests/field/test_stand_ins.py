"""Files that only bear the name of what they should be are named as what they are, in the list, with the way to the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modules.errors import UserError
from modules.library import terminal
from modules.library.loras import describe_adapter
from modules.library.models import ModelLibrary, describe
from tests.field.weights import SINGLE, copied, keep, keep_pickled, loaded, scores_of, tensors_of, write_json

INPUTS = Path(__file__).parent / "inputs" / "stand_ins"
WHAT = {"pointer.txt": "a git-lfs pointer", "page.html": "a web page", "empty.txt": "empty", "refusal.txt": "a text"}


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    return copied(tiny_llama_folder, tmp_path / "models" / "m")


def fake(kind: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((INPUTS / kind).read_bytes())


@pytest.mark.parametrize("kind", ["pointer.txt", "page.html", "empty.txt"])
@pytest.mark.parametrize(
    "name", [SINGLE, "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"]
)
def test_a_model_with_one_says_which_and_how_to_get_the_file(folder, kind, name):
    if (kind, name) == ("empty.txt", "chat_template.jinja"):
        pytest.skip("an empty template is no template")
    fake(kind, folder / name)
    problem = str(describe(folder).problem)
    assert f"{name} in m is {WHAT[kind]}" in problem and "download-model.py ORG/NAME" in problem
    assert ("git lfs pull" in problem) == (kind == "pointer.txt")
    with pytest.raises(UserError, match=WHAT[kind]):
        loaded(folder)


@pytest.mark.parametrize("kind", WHAT)
def test_pickled_weights_are_looked_at_too(folder, kind):
    keep_pickled(folder, tensors_of(folder))
    fake(kind, folder / "pytorch_model.bin")
    assert f"pytorch_model.bin in m is {WHAT[kind]}" in str(describe(folder).problem)


@pytest.mark.parametrize("kind", WHAT)
def test_a_gguf_file_says_what_it_is(tmp_path, kind):
    fake(kind, tmp_path / "m.gguf")
    (spec,) = ModelLibrary(tmp_path).all()
    assert f"is {WHAT[kind]}" in str(spec.problem)


@pytest.mark.parametrize("kind", ["pointer.txt", "page.html", "empty.txt"])
def test_the_old_form_of_a_tokenizer_stands_in_only_where_it_is_read(folder, kind):
    fake(kind, folder / "tokenizer.model")
    spec = describe(folder)
    assert spec.problem is None and f"tokenizer.model in m is {WHAT[kind]}" in " ".join(spec.warnings)
    said: list[str] = []
    loaded(folder, said).close()
    assert any("tokenizer.model" in sentence for sentence in said)
    (folder / "tokenizer.json").unlink()
    assert f"tokenizer.model in m is {WHAT[kind]}" in str(describe(folder).problem)


@pytest.mark.parametrize("kind", ["pointer.txt", "page.html", "empty.txt"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"])
def test_an_adapter_with_one_says_which(tmp_path, kind, name):
    folder = tmp_path / "lora"
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]})
    if not name.endswith(".bin"):
        (folder / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    fake(kind, folder / name)
    spec = describe_adapter(folder)
    assert spec is not None and f"{name} in lora is {WHAT[kind]}" in str(spec.problem)


def test_a_gguf_adapter_says_what_it_is(tmp_path):
    fake("pointer.txt", tmp_path / "lora.gguf")
    spec = describe_adapter(tmp_path / "lora.gguf")
    assert spec is not None and "is a git-lfs pointer" in str(spec.problem)


def test_one_that_was_downloaded_names_the_repository(folder):
    manifest = {"repository": "org/name", "branch": "main", "commit": "c", "files": [{"path": SINGLE, "size": 9}]}
    write_json(folder / ".download.json", manifest)
    fake("page.html", folder / SINGLE)
    assert "`python download-model.py org/name`" in str(describe(folder).problem)


def test_check_names_them_beside_their_size(folder, capsys):
    manifest = {"repository": "m", "branch": "main", "commit": "c", "files": [{"path": SINGLE, "size": 4976698672}]}
    write_json(folder / ".download.json", manifest)
    fake("pointer.txt", folder / SINGLE)
    assert terminal.main(["m", "--check", "--model-dir", str(folder.parent)]) == 1
    said = capsys.readouterr()
    assert "instead of 4976698672" in said.out and f"{SINGLE} in m is a git-lfs pointer" in said.err


def test_check_tells_what_is_missing_from_files_that_are_those_of_the_hub(folder, capsys):
    tensors = tensors_of(folder)
    del tensors["lm_head.weight"]
    keep(folder, tensors)
    files = [{"path": SINGLE, "size": (folder / SINGLE).stat().st_size}]
    write_json(folder / ".download.json", {"repository": "m", "branch": "main", "commit": "c", "files": files})
    terminal.main(["m", "--check", "--model-dir", str(folder.parent)])
    assert "its files lack lm_head.weight" in capsys.readouterr().err


def test_check_names_them_where_the_hub_cannot_be_asked(folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake("page.html", folder / "tokenizer.json")
    assert terminal.main(["m", "--check", "--model-dir", str(folder.parent)]) == 1
    assert "tokenizer.json in m is a web page" in capsys.readouterr().err


def test_check_names_them_in_an_adapter(tmp_path, capsys):
    folder = tmp_path / "loras" / "a"
    folder.mkdir(parents=True)
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    fake("pointer.txt", folder / "adapter_model.safetensors")
    files = [{"path": "adapter_model.safetensors", "size": 9}]
    write_json(folder / ".download.json", {"repository": "a", "branch": "main", "commit": "c", "files": files})
    assert terminal.main(["a", "--check", "--lora-dir", str(folder.parent), "--model-dir", str(tmp_path / "models")]) == 1
    assert "a git-lfs pointer" in capsys.readouterr().err


def test_a_mark_of_byte_order_is_passed_over(folder, tiny_llama_folder):
    before = scores_of(tiny_llama_folder)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        path = folder / name
        assert path.exists()
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    template = describe(folder).chat_template
    assert template is not None and template == describe(tiny_llama_folder).chat_template
    model = loaded(folder)
    assert model.chat_template == template
    model.close()
    assert bool((scores_of(folder) == before).all())
    assert json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))["vocab_size"] == 260
