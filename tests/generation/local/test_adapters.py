"""LoRAs beside each other in one batch give what PEFT gives for each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import Conflict, NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, TextDelta
from tests.generation.local.conftest import generated, greedy, tokens_of
from tests.generation.local.test_rows import reply_of, some_prompt

# PEFT asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def make_lora(tiny_model: Any, folder: Path, seed: int, **more: Any) -> tuple[Path, Any]:
    """A PEFT folder with random weights, and PEFT's own model with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj", "down_proj", "gate_proj"], **more)
    model = get_peft_model(tiny_model(), config).double()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(str(folder))
    return folder, model.eval()


@pytest.mark.parametrize("ours", [True, False], ids=["our layers", "transformers' layers"])
def test_rows_with_different_adapters_share_a_batch(make_local, tiny_model, generate, tmp_path, ours, monkeypatch) -> None:
    if not ours:
        monkeypatch.setattr("modules.generation.local.model_runner._quicken", lambda *arguments: None)
    model = make_local(prefill_chunk=16)
    assert (model._runner.decoder is not None) == ours
    prompt = some_prompt(60)
    truths: dict[str | None, list[int]] = {None: generate(prompt, 25)}
    for seed, more in ((1, {}), (2, {"use_rslora": True, "alpha_pattern": {"down_proj": 3}})):
        folder, reference = make_lora(tiny_model, tmp_path / str(seed), seed, **more)
        model.load_adapter(f"lora{seed}", str(folder))
        truths[f"lora{seed}"] = generated(reference, prompt, 25)
    assert model.adapters == ("lora1", "lora2")
    streams = {name: model.stream(greedy(prompt, 25, adapter=name)) for name in truths}
    made = {name: tokens_of(stream) for name, stream in streams.items()}
    assert made == {name: reply_of(tokens) for name, tokens in truths.items()}
    assert len({tuple(tokens) for tokens in made.values()}) == 3
    # Cached prefixes belong to one adapter: a second round must not mix them up.
    assert {name: tokens_of(model.stream(greedy(prompt, 25, adapter=name))) for name in truths} == made


def test_strength_nought_is_the_base_and_two_is_twice_the_change(make_local, tiny_model, generate, tmp_path) -> None:
    model = make_local()
    folder, reference = make_lora(tiny_model, tmp_path / "lora", 3)
    model.load_adapter("lora", str(folder))
    prompt = some_prompt(40)
    assert tokens_of(model.stream(greedy(prompt, 20, adapter="lora", adapter_strength=0.0))) == reply_of(generate(prompt, 20))
    for name, weight in reference.named_parameters():
        if "lora_B" in name:
            weight.data *= 2
    twice = tokens_of(model.stream(greedy(prompt, 20, adapter="lora", adapter_strength=2.0)))
    assert twice == reply_of(generated(reference, prompt, 20))


def test_an_adapter_of_another_model_is_refused_with_the_reason(make_local, tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    model = make_local()
    wide, _ = make_lora(lambda: LlamaForCausalLM(small), tmp_path / "other", 4)
    with pytest.raises(UserError, match=r"q_proj has 64 inputs and 64 outputs here, and the adapter's 32 and 32|down_proj"):
        model.load_adapter("other", str(wide))
    assert model.adapters == ()


def test_what_cannot_run_beside_others_is_refused(make_local, tiny_model, tmp_path) -> None:
    model = make_local()
    folder, _ = make_lora(tiny_model, tmp_path / "dora", 5, use_dora=True)
    with pytest.raises(UserError, match="DoRA"):
        model.load_adapter("dora", str(folder))
    with pytest.raises(UserError, match="adapter_config"):
        model.load_adapter("nothing", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match="no weights"):
        model.load_adapter("hollow", str(tmp_path))
    with pytest.raises(NotFound):
        model.stream(GenerationRequest("x", adapter="dora"))


def test_an_adapter_in_use_is_not_unloaded(make_local, tiny_model, generate, tmp_path) -> None:
    model = make_local()
    folder, _ = make_lora(tiny_model, tmp_path / "lora", 6)
    model.load_adapter("lora", str(folder))
    with pytest.raises(Conflict):
        model.load_adapter("lora", str(folder))
    endless = GenerationRequest("on", SamplingParams(max_tokens=3000, ban_eos=True), adapter="lora")
    with model.stream(endless) as running:
        next(event for event in running if isinstance(event, TextDelta))
        with pytest.raises(Conflict, match="in use by 1"):
            model.unload_adapter("lora")
    list(model.stream(greedy(some_prompt(5), 2)))
    model.unload_adapter("lora")
    assert model.adapters == ()
    assert tokens_of(model.stream(greedy(some_prompt(30), 9))) == reply_of(generate(some_prompt(30), 9))


def test_embeddings_have_unit_length_and_follow_the_text(make_local) -> None:
    model = make_local()
    one, same, other = model.embed(["a text", "a text", "something else"])
    assert one == pytest.approx(same) and one != pytest.approx(other, abs=1e-3)
    assert sum(value * value for value in other) == pytest.approx(1)
    with pytest.raises(UserError, match="context"):
        model.embed(["x" * 5000])
