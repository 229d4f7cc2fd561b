"""The memory a model will need: agrees with what loaded models take, and says what would fit where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modules.library.hardware import Gpu, Machine, _container_limit, this_machine, visible_gpus
from modules.library.memory import LoadWish, Weights, memory_need, plan
from modules.library.model_spec import ModelShape, ModelSpec, Quantization
from modules.library.models import describe

GIB = 1 << 30
LLAMA_7B = ModelSpec(
    name="Llama-2-7b-hf",
    path=Path("Llama-2-7b-hf"),
    format="folder",
    size_bytes=2 * 6_738_415_616,
    parameters=6_738_415_616,
    dtype="float16",
    context_length=4096,
    shape=ModelShape(layers=32, hidden_size=4096, heads=32, kv_heads=32, head_dim=128, vocabulary=32000),
)


def loaded_bytes(folder: Path, **options: Any) -> int:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    states = (getattr(weight, "quant_state", None) for weight in model.parameters())
    # The footprint leaves out the scales of 4-bit weights.
    return model.get_memory_footprint() + sum(state.absmax.nbytes for state in states if state is not None)


@pytest.mark.parametrize(("weights", "dtype"), [("stored", "float32"), ("16-bit", "bfloat16"), ("float32", "float32")])
def test_weights_are_as_large_as_the_loaded_models(tiny_llama_folder: Path, weights: Weights, dtype: str) -> None:
    actual = loaded_bytes(tiny_llama_folder, dtype=dtype)
    need = memory_need(describe(tiny_llama_folder), LoadWish(weights=weights))
    assert need.weights == pytest.approx(actual, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["16-bit", "8-bit", "4-bit"])
def test_the_starters_weights_are_as_large_as_when_loaded(starter_folder: Path, weights: Weights) -> None:
    import torch
    from transformers import BitsAndBytesConfig

    form = {
        "16-bit": None,
        "8-bit": BitsAndBytesConfig(load_in_8bit=True),
        "4-bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    }[weights]
    actual = loaded_bytes(starter_folder, dtype=torch.bfloat16, **({"quantization_config": form} if form else {}))
    assert memory_need(describe(starter_folder), LoadWish(weights=weights)).weights == pytest.approx(actual, rel=0.02)


def test_the_cache_is_as_large_as_a_real_one(tiny_llama_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    tokens = 100
    cache = model(torch.zeros((3, tokens), dtype=torch.long), use_cache=True).past_key_values
    actual = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert memory_need(describe(tiny_llama_folder), LoadWish(context=tokens, slots=3, cache_bytes=4)).cache == actual


def test_llama_2_7b_needs_what_people_know_it_to_need() -> None:
    assert memory_need(LLAMA_7B, LoadWish("16-bit")).weights == pytest.approx(12.6 * GIB, rel=0.01)
    assert memory_need(LLAMA_7B, LoadWish("8-bit")).weights == pytest.approx(6.5 * GIB, rel=0.02)
    assert memory_need(LLAMA_7B, LoadWish("4-bit")).weights == pytest.approx(3.9 * GIB, rel=0.03)
    assert memory_need(LLAMA_7B, LoadWish(context=4096)).cache == 2 * GIB
    assert memory_need(LLAMA_7B, LoadWish(context=4096, slots=8, cache_bytes=1)).cache == 8 * GIB


def test_quantised_files_take_what_they_are() -> None:
    gguf = ModelSpec(
        "a.gguf", Path("a.gguf"), "gguf", 4 * GIB, parameters=7_000_000_000, quantization=Quantization("gguf", 4.8)
    )
    assert memory_need(gguf, LoadWish("4-bit")).weights == 4 * GIB


def test_what_fits_is_said_with_its_parts() -> None:
    found = plan(LLAMA_7B, LoadWish("16-bit"), Machine(64 * GIB, 32 * GIB))
    assert found.verdict == "fits" and found.where == "in main memory"
    assert "12.6 GiB of weights" in found.sentence and "2.0 GiB for the conversations" in found.sentence


def test_a_gpu_counts_before_main_memory_unless_it_is_not_wanted() -> None:
    machine = Machine(64 * GIB, 32 * GIB, (Gpu("Tesla T4", 16 * GIB, 15 * GIB),))
    assert plan(LLAMA_7B, LoadWish("16-bit"), machine).verdict == "too big"
    assert plan(LLAMA_7B, LoadWish("16-bit"), machine, on_gpu=False).verdict == "fits"
    assert plan(LLAMA_7B, LoadWish("16-bit", context=2048), machine).verdict == "tight"


def test_what_will_not_fit_comes_with_what_would() -> None:
    machine = Machine(16 * GIB, 2 * GIB, (Gpu("Tesla T4", 16 * GIB, 15 * GIB),))
    sentence = plan(LLAMA_7B, LoadWish("16-bit", slots=2), machine).sentence
    assert sentence.startswith("This will not fit: it needs about 17.")
    assert "with a context of" not in sentence.split("8-bit")[0]
    assert "with 8-bit weights (" in sentence and "with 4-bit weights (" in sentence
    small = plan(LLAMA_7B, LoadWish("16-bit"), Machine(16 * GIB, 6 * GIB)).sentence
    assert "8-bit weights" not in small and "with 4-bit weights and a context of 2048 tokens" in small


def test_every_way_that_is_named_does_fit() -> None:
    for free in range(1, 18):
        machine = Machine(64 * GIB, free * GIB)
        sentence = plan(LLAMA_7B, LoadWish("16-bit", slots=4), machine).sentence
        for form in ("8-bit", "4-bit"):
            if f"with {form} weights (" in sentence:
                assert plan(LLAMA_7B, LoadWish(form, slots=4), machine).verdict == "fits"


def test_what_cannot_fit_at_all_says_so() -> None:
    assert "choose a smaller model" in plan(LLAMA_7B, LoadWish("16-bit"), Machine(2 * GIB, GIB)).sentence


def test_memory_that_the_replaced_model_gives_back_counts() -> None:
    machine = Machine(32 * GIB, 8 * GIB)
    assert plan(LLAMA_7B, LoadWish("16-bit"), machine).verdict == "too big"
    assert plan(LLAMA_7B, LoadWish("16-bit"), machine, freed=12 * GIB).verdict == "fits"


def test_a_remote_model_takes_nothing() -> None:
    remote = ModelSpec("r", Path("r.yaml"), "remote", 0, endpoint="http://127.0.0.1/v1")
    assert plan(remote, LoadWish(), Machine(1, 1)).verdict == "fits"


def test_this_machine_has_some_memory() -> None:
    machine = this_machine()
    assert 0 < machine.memory_free <= machine.memory_total


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("8589934592\n")
    (tmp_path / "memory.current").write_text("3000000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000000\ninactive_file 1500000000\n")
    assert _container_limit(tmp_path) == (8 * GIB, 1_500_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_limit(tmp_path) == (None, 0)


NVIDIA_SMI = "0, GPU-aa, Tesla T4, 15360, 15109\n1, GPU-bb, NVIDIA H200, 143771, 143000\n"


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, ["Tesla T4", "NVIDIA H200"]), ("1", ["NVIDIA H200"]), ("1,0", ["NVIDIA H200", "Tesla T4"]), ("", []), ("-1", [])],
)
def test_only_visible_gpus_count(visible: str | None, names: list[str]) -> None:
    assert [gpu.name for gpu in visible_gpus(NVIDIA_SMI, visible)] == names
    assert visible_gpus("Failed to initialize NVML\n", None) == ()
