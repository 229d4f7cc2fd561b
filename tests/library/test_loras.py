"""Adapters on disk: described from their files, with a reason where they cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modules.errors import NotFound
from modules.library.loras import LoraLibrary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    good = tmp_path / "tloen_alpaca-lora-7b"
    good.mkdir()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "decapoda-research/llama-7b-hf",
        "r": 16,
        "lora_alpha": 32,
        "target_modules": ["v_proj", "q_proj"],
    }
    (good / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a.lora_A.weight": torch.zeros(16, 8)}, good / "adapter_model.safetensors")
    half = tmp_path / "half"
    half.mkdir()
    (half / "adapter_config.json").write_text(json.dumps(config))
    whole = tmp_path / "whole-model"
    whole.mkdir()
    (whole / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "running.part").mkdir()
    return tmp_path


def test_an_adapter_is_described(folder: Path) -> None:
    lora = LoraLibrary(folder).find("tloen/alpaca-lora-7b")
    assert (lora.name, lora.format, lora.rank, lora.alpha, lora.kind) == ("tloen_alpaca-lora-7b", "peft", 16, 32, "LORA")
    assert lora.target_modules == ("q_proj", "v_proj")
    assert lora.base_model == "decapoda-research/llama-7b-hf" and lora.problem is None
    assert lora.size_bytes == (folder / lora.name / "adapter_model.safetensors").stat().st_size


def test_what_cannot_be_used_is_listed_with_its_reason(folder: Path) -> None:
    problems = {lora.name: lora.problem for lora in LoraLibrary(folder).all()}
    assert set(problems) == {"tloen_alpaca-lora-7b", "half", "whole-model"}
    assert "no weights" in str(problems["half"]) and "whole model" in str(problems["whole-model"])


def test_a_cut_off_file_is_noticed(folder: Path) -> None:
    weights = folder / "tloen_alpaca-lora-7b" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "cut off" in str(LoraLibrary(folder).find("tloen_alpaca-lora-7b").problem)


def test_a_gguf_adapter_is_described(tmp_path: Path) -> None:
    import numpy
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "style.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", numpy.zeros((8, 64), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lora = LoraLibrary(tmp_path).find("style")
    assert (lora.format, lora.kind, lora.alpha, lora.problem) == ("gguf", "LORA", 16.0, None)


def test_a_missing_adapter_names_those_that_exist(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(NotFound, match="tloen_alpaca-lora-7b"):
        LoraLibrary(folder).find("alpaca-lora")
    with pytest.raises(NotFound, match="empty"):
        LoraLibrary(tmp_path_factory.mktemp("none")).find("alpaca-lora")
    with pytest.raises(NotFound):
        LoraLibrary(folder).find("../" + folder.name + "/half")
