"""Pickled files that are damaged, or bring code: a sentence, and the code does not run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.training.worker.merge import merge
from tests.field.weights import SINGLE, copied, loaded, tensors_of, write_json

Write = Callable[[Path, Path], object]


class Payload:
    """Makes the file `mark` where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def cut(path: Path, mark: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:300])


WAYS: dict[str, Write] = {
    "a payload in the old form": lambda path, mark: path.write_bytes(pickle.dumps({"model.norm.weight": Payload(mark)})),
    "a payload in a zip": lambda path, mark: torch.save({"model.norm.weight": Payload(mark)}, path),
    "cut off": cut,
    "noise": lambda path, mark: path.write_bytes(bytes(range(256)) * 9),
    "a list": lambda path, mark: torch.save([torch.ones(2)], path),
    "text for a tensor": lambda path, mark: torch.save({"model.norm.weight": "x"}, path),
}


@pytest.fixture(scope="module")
def base(tiny_llama_folder):
    model = loaded(tiny_llama_folder)
    yield model
    model.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_model(tiny_llama_folder, tmp_path, way):
    folder = copied(tiny_llama_folder, tmp_path / "models" / "m")
    tensors_of(folder)
    (folder / SINGLE).unlink()
    WAYS[way](folder / "pytorch_model.bin", tmp_path / "ran")
    with pytest.raises(UserError) as told:
        loaded(folder)
    assert not (tmp_path / "ran").exists()
    assert told.value.message.startswith("A file with weights of m is damaged, or holds something else")
    assert "weights_only" not in told.value.message


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter(base, tiny_llama_folder, tmp_path, way):
    folder = tmp_path / "a"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    write_json(folder / "adapter_config.json", settings)
    WAYS[way](folder / "adapter_model.bin", tmp_path / "ran")
    for use in (lambda: base.load_adapter("a", str(folder)), lambda: merge(tiny_llama_folder, folder, tmp_path / "merged")):
        with pytest.raises(UserError, match="The file with the weights of the adapter a is damaged") as told:
            use()
        assert "weights_only" not in told.value.message
    assert not (tmp_path / "ran").exists() and not (tmp_path / "merged").exists()


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()
