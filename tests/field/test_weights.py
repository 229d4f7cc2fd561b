"""Weights that are not there are never random numbers: a folder is whole, or it is refused with the names of what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modules.errors import UserError
from modules.library.models import describe
from modules.loaders import embedding
from modules.loaders.options import LoadOptions
from tests.field.weights import (
    INDEX,
    SHARDS,
    SINGLE,
    by_transformers,
    copied,
    edit,
    keep,
    keep_pickled,
    loaded,
    put,
    scores_of,
    sharded,
    tensors_of,
    write_json,
)
from tests.loaders.test_embedding import write_tiny_encoder
from tests.tiny import write_tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    return copied(tiny_llama_folder, tmp_path / "models" / "m")


# --- what headers tell before a load


def without(*parts: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        keep(folder, {key: tensor for key, tensor in tensors_of(folder).items() if not any(part in key for part in parts)})

    return damage


def index_lost_the_second_shard(folder: Path) -> None:
    sharded(folder)

    def forget(index: dict) -> None:
        index["weight_map"] = {key: file for key, file in index["weight_map"].items() if file == SHARDS[0]}

    edit(folder / INDEX, forget)


def of_another_size(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = tensors_of(folder)
        keep(folder, {**tensors, name: torch.zeros(tensors[name].shape[0] + 2, *tensors[name].shape[1:])})

    return damage


def more_layers_promised(folder: Path) -> None:
    put(folder / "config.json", num_hidden_layers=3)


DAMAGES = {
    "no output layer": (without("lm_head"), "lm_head.weight"),
    "no output layer, and nothing said of it": (
        lambda folder: (without("lm_head")(folder), edit(folder / "config.json", lambda c: c.pop("tie_word_embeddings"))),
        "lm_head.weight",
    ),
    "an index that lost a shard": (index_lost_the_second_shard, "model.layers.1.self_attn.q_proj.weight"),
    "no embedding": (without("embed_tokens"), "model.embed_tokens.weight"),
    "one matrix": (without("layers.1.mlp.up_proj"), "model.layers.1.mlp.up_proj.weight"),
    "one norm": (without("layers.0.input_layernorm"), "model.layers.0.input_layernorm.weight"),
    "a layer in the middle": (without("layers.0."), "model.layers.0."),
    "fewer layers than promised": (more_layers_promised, "model.layers.2."),
    "a smaller embedding": (of_another_size("model.embed_tokens.weight"), "model.embed_tokens.weight"),
    "another output layer": (of_another_size("lm_head.weight"), "lm_head.weight"),
    "another matrix": (of_another_size("model.layers.1.mlp.down_proj.weight"), "model.layers.1.mlp.down_proj.weight"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_missing_is_named_in_the_list_before_any_load(folder, what):
    damage, tensor = DAMAGES[what]
    damage(folder)
    assert tensor in str(describe(folder).problem)
    with pytest.raises(UserError, match=tensor.replace(".", r"\.")):
        loaded(folder)


def test_the_index_that_leaves_files_out_is_named(folder):
    index_lost_the_second_shard(folder)
    assert f"{INDEX} does not name {SHARDS[1]}" in str(describe(folder).problem)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt"])
def test_layers_are_counted_in_other_families_too(tmp_path, kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2},
        "gpt_neox": {"num_hidden_layers": 3},
        "opt": {"num_hidden_layers": 3},
    }
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "ffn_dim": 64, "word_embed_proj_dim": 32}
    config = AutoConfig.for_model(kind, vocab_size=50, **({} if kind == "gpt2" else small), **sizes[kind])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    assert describe(tmp_path / "m").problem is None
    without(".2.")(tmp_path / "m")
    assert ".2 " in str(describe(tmp_path / "m").problem).replace(".2.", ".2 ")


@pytest.mark.parametrize("kind", ["gemma", "qwen2", "qwen3", "mistral", "gemma2", "granite", "olmo2", "smollm3", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
def test_whole_models_of_the_known_families_pass(tmp_path, kind, tied):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, head_dim=16, tie_word_embeddings=tied, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    assert describe(tmp_path / "m").problem is None
    without("layers.1.self_attn.o_proj")(tmp_path / "m")
    assert "o_proj" in str(describe(tmp_path / "m").problem)


# --- what only loading tells


def test_what_no_header_tells_is_refused_when_it_is_loaded(folder):
    keep_pickled(folder, {key: tensor for key, tensor in tensors_of(folder).items() if key != "lm_head.weight"})
    assert describe(folder).problem is None
    with pytest.raises(UserError, match=r"its files lack lm_head\.weight"):
        loaded(folder)


def test_a_matrix_of_another_shape_is_refused_by_its_name(folder):
    tensors = tensors_of(folder)
    keep_pickled(folder, {**tensors, "model.norm.weight": torch.ones(48)})
    with pytest.raises(UserError, match=r"model\.norm\.weight is \[48\], where \[64\] is expected"):
        loaded(folder)


def test_weights_without_a_place_are_reported_and_the_rest_is_right(folder, tiny_llama_folder):
    keep(folder, {**tensors_of(folder), "model.extra.weight": torch.ones(3)})
    said: list[str] = []
    model = loaded(folder, said)
    model.close()
    assert any("model.extra.weight" in sentence for sentence in said)
    assert torch.allclose(scores_of(folder), by_transformers(tiny_llama_folder), atol=1e-4)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickled"])
def test_a_draft_that_is_not_whole_is_refused(folder, tiny_llama_folder, pickled):
    draft = copied(tiny_llama_folder, folder.parent / "draft")
    rest = {key: tensor for key, tensor in tensors_of(draft).items() if key != "lm_head.weight"}
    if pickled:
        keep_pickled(draft, rest)
    else:
        keep(draft, rest)
    with pytest.raises(UserError, match=r"draft.*lm_head\.weight"):
        loaded(folder, draft_model="draft")


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickled"])
def test_an_encoder_that_is_not_whole_is_refused(tmp_path, pickled):
    encoder = write_tiny_encoder(tmp_path / "encoder")
    rest = {key: tensor for key, tensor in tensors_of(encoder).items() if "encoder.layer.1." not in key}
    if pickled:
        keep_pickled(encoder, rest)
    else:
        keep(encoder, rest)
    with pytest.raises(UserError, match=r"encoder\.layer\.1"):
        embedding.load(describe(encoder), LoadOptions(cpu=True))


def test_an_encoder_without_the_pooler_that_nobody_uses_loads(tmp_path):
    encoder = write_tiny_encoder(tmp_path / "encoder")
    before = embedding.load(describe(encoder), LoadOptions(cpu=True)).embed(["hello"])
    keep(encoder, {key: tensor for key, tensor in tensors_of(encoder).items() if "pooler" not in key})
    assert embedding.load(describe(encoder), LoadOptions(cpu=True)).embed(["hello"]) == before


# --- which files are taken


def old_index_beside_one_file(folder: Path) -> None:
    places = dict.fromkeys(tensors_of(folder), "model-00001-of-00009.safetensors")
    write_json(folder / INDEX, {"weight_map": places})


def old_index_beside_a_renamed_set(folder: Path) -> None:
    sharded(folder, ("new-00001-of-00002.safetensors", "new-00002-of-00002.safetensors"))
    old_index = {"model.norm.weight": "model-00001-of-00009.safetensors"}
    write_json(folder / INDEX, {"weight_map": old_index})


def set_without_an_index(folder: Path) -> None:
    sharded(folder)
    (folder / INDEX).unlink()


def empty_index_beside_one_file(folder: Path) -> None:
    write_json(folder / INDEX, {"weight_map": {}})


def empty_index_beside_its_set(folder: Path) -> None:
    sharded(folder)
    write_json(folder / INDEX, {"weight_map": {}})


def stray_part_beside_a_set(folder: Path) -> None:
    tensors = tensors_of(folder)
    sharded(folder)
    keep(folder, {"model.norm.weight": tensors["model.norm.weight"]})


def stray_pointer_beside_a_set(folder: Path) -> None:
    sharded(folder)
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def another_name(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "weights.safetensors")


def mistrals_form_beside_it(folder: Path) -> None:
    keep(folder, {"layers.0.attention.wq.weight": torch.ones(2, 2)}, "consolidated.safetensors")


def adapter_beside_it(folder: Path) -> None:
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "/nowhere", "r": 2})
    keep(folder, {"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, "adapter_model.safetensors")


def broken_safetensors_beside_pickled(folder: Path) -> None:
    tensors = tensors_of(folder)
    keep_pickled(folder, tensors)
    write_json(folder / INDEX, {"weight_map": {"model.norm.weight": SHARDS[0]}})


@pytest.mark.parametrize(
    "change",
    [
        old_index_beside_one_file,
        old_index_beside_a_renamed_set,
        set_without_an_index,
        empty_index_beside_one_file,
        empty_index_beside_its_set,
        stray_part_beside_a_set,
        stray_pointer_beside_a_set,
        another_name,
        mistrals_form_beside_it,
        adapter_beside_it,
        broken_safetensors_beside_pickled,
    ],
)
def test_what_is_listed_is_what_is_loaded(folder, tiny_llama_folder, change):
    change(folder)
    spec, whole = describe(folder), describe(tiny_llama_folder)
    assert spec.problem is None
    if change is not broken_safetensors_beside_pickled:
        assert (spec.parameters, spec.dtype) == (whole.parameters, whole.dtype)
    assert torch.allclose(scores_of(folder), by_transformers(tiny_llama_folder), atol=1e-4)


def test_an_index_without_names_and_without_files_is_a_sentence(folder):
    (folder / SINGLE).unlink()
    write_json(folder / INDEX, {"weight_map": {}})
    assert f"{INDEX} in m names no weights" in str(describe(folder).problem)


def test_a_shard_that_is_missing_is_named_with_the_index_that_wants_it(folder):
    sharded(folder)
    (folder / SHARDS[1]).unlink()
    problem = str(describe(folder).problem)
    assert SHARDS[1] in problem and INDEX in problem


def test_several_files_that_may_all_be_the_model_are_told_apart_by_nobody(folder, tmp_path):
    other = write_tiny_llama(tmp_path / "other", seed=3)
    another_name(folder)
    (other / SINGLE).rename(folder / "other.safetensors")
    assert "several files with weights: other.safetensors, weights.safetensors" in str(describe(folder).problem)
