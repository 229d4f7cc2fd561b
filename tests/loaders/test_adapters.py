"""Adapters beside weights of every kind: the same change at every strength, in one batch with the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel
from tests.loaders.gptq_folder import write_gptq
from tests.loaders.test_quantised import PROMPT, loaded, reply
from tests.tiny import write_tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
WAYS: dict[str, dict[str, Any]] = {
    "32-bit": {"dtype": "float32"},
    "16-bit": {"bf16": True},
    "8-bit": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True},
    "fp4": {"load_in_4bit": True, "quant_type": "fp4"},
    "GPTQ": {},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """plain: a model; GPTQ: the same, packed; adapter: a LoRA for it; wide: a LoRA for a wider one."""
    root = tmp_path_factory.mktemp("adapters")
    plain = write_tiny_llama(root / "plain", hidden=128)
    packed = root / "packed"
    write_gptq(plain, packed)
    write_lora(root / "adapter", plain)
    write_lora(root / "wide", write_tiny_llama(root / "wider", hidden=256))
    return {"plain": plain, "GPTQ": packed, "adapter": root / "adapter", "wide": root / "wide"}


def write_lora(folder: Path, base: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(str(folder))


def by_peft(folders: dict[str, Path], strength: float) -> torch.Tensor:
    """[vocabulary]: what PEFT's adapter changes in the log-probabilities after the prompt, on the full weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folders["plain"], dtype=torch.float32)
    with torch.no_grad():
        before = torch.log_softmax(base(torch.tensor([PROMPT])).logits[0, -1], -1)
        model = PeftModel.from_pretrained(base, str(folders["adapter"])).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.mul_(strength)
        return torch.log_softmax(model(torch.tensor([PROMPT])).logits[0, -1], -1) - before


def scores(model: LoadedModel, **adapter: Any) -> torch.Tensor:
    """[vocabulary]: log-probabilities after the prompt."""
    request = GenerationRequest(PROMPT, SamplingParams(temperature=0), **adapter)
    found = {token.id: token.logprob for token in model.next_tokens(request, 260).model}
    return torch.tensor([found[token] for token in sorted(found)])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_changes_quantised_weights_as_it_does_full_ones(folders: dict[str, Path], way: str) -> None:
    with loaded(folders.get(way, folders["plain"]), cpu=True, **WAYS[way]) as model:
        base, plain = scores(model), reply(model)
        with pytest.raises(
            UserError,
            match=r"made for another model: model\.layers\.\d\.mlp\.down_proj has 256 inputs and 128 outputs here, and the adapter's 512 and 256",
        ):
            model.load_adapter("wide", str(folders["wide"]))
        model.load_adapter("adapter", str(folders["adapter"]))
        for strength in (0.5, 1.0, 2.0):
            change = scores(model, adapter="adapter", adapter_strength=strength) - base
            wanted = by_peft(folders, strength)
            assert torch.corrcoef(torch.stack([change, wanted]))[0, 1] > 0.97, strength
            assert 0.85 < change.norm() / wanted.norm() < 1.15, strength
        assert torch.allclose(scores(model, adapter="adapter", adapter_strength=0.0), base, atol=1e-5)
        assert reply(model) == plain
        model.unload_adapter("adapter")
        assert model.adapters == ()
