"""Adapters are whole or refused: beside a model, trained further, and merged; a merged model answers as PEFT does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.library.loras import describe_adapter
from modules.training.worker.merge import merge
from tests.field.weights import (
    SINGLE,
    by_transformers,
    copied,
    edit,
    keep,
    loaded,
    of_logits,
    put,
    scores,
    tensors_of,
    write_json,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    return copied(tiny_llama_folder, tmp_path / "models" / "m")


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    return write_adapter(folder, tmp_path / "loras" / "a")


def write_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    values = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": ["q_proj", "down_proj"], **settings}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**values))
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return folder


def by_peft(base: Path, adapter: Path) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return of_logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)))


def without(adapter: Path, *parts: str) -> None:
    from safetensors.torch import load_file

    left = {key: tensor for key, tensor in load_file(adapter / WEIGHTS).items() if not any(part in key for part in parts)}
    keep(adapter, left, WEIGHTS)


def put_on(folder: Path, adapter: Path) -> torch.Tensor:
    model = loaded(folder)
    try:
        model.load_adapter("a", str(adapter))
        return scores(model, adapter="a", adapter_strength=1.0)
    finally:
        model.close()


def test_a_whole_one_changes_the_model_as_peft_does(folder, adapter):
    assert torch.allclose(put_on(folder, adapter), by_peft(folder, adapter), atol=1e-4)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ((".layers.1.",), r"layers\.1\."),
        (("layers.0.mlp.down_proj.lora_A",), r"layers\.0\.mlp\.down_proj"),
        (("layers.0.mlp.down_proj.lora_B",), r"layers\.0\.mlp\.down_proj"),
    ],
    ids=str,
)
def test_one_with_weights_missing_is_refused_with_their_names(folder, adapter, tmp_path, parts, named):
    without(adapter, *parts)
    with pytest.raises(UserError, match=rf"not whole.*{named}"):
        put_on(folder, adapter)
    with pytest.raises(UserError, match=rf"not whole.*{named}"):
        merge(folder, adapter, tmp_path / "models" / "merged")
    assert not (tmp_path / "models" / "merged").exists()


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_half_a_pair_is_told_in_the_list(adapter, half):
    without(adapter, f"layers.0.mlp.down_proj.{half}")
    spec = describe_adapter(adapter)
    assert spec is not None and "layers.0.mlp.down_proj" in str(spec.problem)


def test_one_for_some_layers_only_is_whole(folder, tmp_path):
    adapter = write_adapter(folder, tmp_path / "a", layers_to_transform=[1])
    assert torch.allclose(put_on(folder, adapter), by_peft(folder, adapter), atol=1e-4)
    adapter = write_adapter(folder, tmp_path / "b", target_modules=r".*layers\.0\.self_attn\.(q|v)_proj")
    assert torch.allclose(put_on(folder, adapter), by_peft(folder, adapter), atol=1e-4)
    adapter = write_adapter(folder, tmp_path / "c", exclude_modules=["model.layers.1.self_attn.q_proj"])
    assert torch.allclose(put_on(folder, adapter), by_peft(folder, adapter), atol=1e-4)


def test_one_for_a_wider_model_is_refused(folder, adapter, tmp_path):
    from safetensors.torch import load_file

    wider = {key: torch.cat([tensor, tensor], -1) for key, tensor in load_file(adapter / WEIGHTS).items() if "lora_A" in key}
    keep(adapter, {**load_file(adapter / WEIGHTS), **wider}, WEIGHTS)
    for use in (lambda: put_on(folder, adapter), lambda: merge(folder, adapter, tmp_path / "merged")):
        with pytest.raises(UserError, match="made for another model"):
            use()


# --- merging


def tie(folder: Path) -> None:
    put(folder / "config.json", tie_word_embeddings=True)
    tensors = tensors_of(folder)
    del tensors["lm_head.weight"]
    keep(folder, tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"]},
    ],
    ids=str,
)
def test_the_merged_model_of_a_tied_base_answers_as_peft_does(folder, tmp_path, settings):
    tie(folder)
    adapter = write_adapter(folder, tmp_path / "a", **settings)
    merge(folder, adapter, tmp_path / "merged")
    assert torch.allclose(by_transformers(tmp_path / "merged"), by_peft(folder, adapter), atol=1e-3)
    touched = bool({"lm_head", "embed_tokens"} & {*settings.get("target_modules", ()), *settings.get("modules_to_save", ())})
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] == (not touched)
    assert ("lm_head.weight" in tensors_of(tmp_path / "merged")) == touched


def test_a_base_that_is_not_whole_is_not_merged(folder, adapter, tmp_path):
    keep(folder, {key: tensor for key, tensor in tensors_of(folder).items() if key != "lm_head.weight"})
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        merge(folder, adapter, tmp_path / "merged")


GENERATION = [
    {"do_sample": False, "temperature": 0.7, "top_k": 5},
    {"unknown": [1], "eos_token_id": 259},
    {"max_new_tokens": -1},
    {"eos_token_id": [[5]]},
    [],
]


@pytest.mark.parametrize("values", GENERATION, ids=str)
def test_settings_for_generation_never_stop_a_merge_and_are_kept(folder, adapter, tmp_path, values):
    file = folder / "generation_config.json"
    write_json(file, values)
    merge(folder, adapter, tmp_path / "merged")
    kept = tmp_path / "merged" / "generation_config.json"
    assert not kept.exists() if isinstance(values, list) else json.loads(kept.read_text()) == values


@pytest.mark.parametrize("values", [GENERATION[0], GENERATION[1]], ids=str)
def test_nor_do_they_stop_the_saving_of_a_model_that_was_trained(folder, tmp_path, values):
    from modules.training.config import TrainingConfig
    from modules.training.worker.model import load_trainee, save_weights

    file = folder / "generation_config.json"
    write_json(file, values)
    config = TrainingConfig(name="n", model="m", method="full", dtype="float32")
    trainee = load_trainee(config, folder, None, torch.device("cpu"), None, ())
    # Whoever touches them makes transformers strict about what it writes.
    trainee.model.generation_config.temperature = 0.3
    trainee.model.generation_config.do_sample = False
    (tmp_path / "result").mkdir()
    save_weights(trainee, tmp_path / "result")
    assert json.loads((tmp_path / "result" / "generation_config.json").read_text()) == values
    assert torch.allclose(by_transformers(tmp_path / "result"), by_transformers(folder), atol=1e-5)


def test_a_base_whose_files_lie_oddly_is_trained_and_merged_all_the_same(folder, adapter, tmp_path):
    whole = by_peft(folder, adapter)
    (folder / SINGLE).rename(folder / "weights.safetensors")
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    merge(folder, adapter, tmp_path / "merged")
    assert torch.allclose(by_transformers(tmp_path / "merged"), whole, atol=1e-4)


def test_an_adapter_with_a_mark_of_byte_order_is_read(folder, adapter):
    before = put_on(folder, adapter)
    (adapter / "adapter_config.json").write_bytes(b"\xef\xbb\xbf" + (adapter / "adapter_config.json").read_bytes())
    spec = describe_adapter(adapter)
    assert spec is not None and spec.problem is None and spec.rank == 4
    assert torch.equal(put_on(folder, adapter), before)


def test_odd_values_in_an_adapters_config_never_break_the_list(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    for key in config:
        for value in (None, "x", 0, -1, 1.5, [], [[]], {}, True):
            write_json(adapter / "adapter_config.json", {**config, key: value})
            assert describe_adapter(adapter) is not None
    edit(adapter / "adapter_config.json", lambda values: values.clear())
    assert describe_adapter(adapter) is not None
