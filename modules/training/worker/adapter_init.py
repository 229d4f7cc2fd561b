"""How a new adapter begins, where that takes more than a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.errors import UserError
from modules.training.config import ASK_THE_DATA, TrainingConfig
from modules.training.samples import Sample

_LINE = 512  # tokens
_LINES = {"eva": 64, "corda": 64, "lora_ga": 8}
_ROUNDS = 20  # in which eva's directions have to settle


def peft_settings(config: TrainingConfig) -> dict[str, Any]:
    """What PEFT's LoraConfig is told about the beginning."""
    match config.init:
        case "default" | "loftq":
            return {"init_lora_weights": True}
        case "eva":
            from peft import EvaConfig

            return {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)}  # every layer keeps the rank asked for
        case "corda":
            from peft.tuners.lora.config import CordaConfig

            return {"init_lora_weights": "corda", "corda_config": CordaConfig()}
        case "lora_ga":
            from peft.tuners.lora.config import LoraGAConfig

            return {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}
        case name:
            return {"init_lora_weights": name}


def look_at_the_data(base: Any, lora: Any, config: TrainingConfig, samples: Sequence[Sample]) -> None:
    """Leave on the layers of `base` what corda and lora_ga need to know when the adapter is put on, also on the way back.

    The same samples give the same base again, so that a resumed run goes on exactly.
    """
    if config.init not in ("corda", "lora_ga"):
        return
    lines = make_lines(samples, config, base.device)

    def ask(*, learn: bool) -> None:
        for line in lines:
            if learn:
                base(**line, use_cache=False).loss.backward()
            else:
                base(input_ids=line["input_ids"], position_ids=line["position_ids"], use_cache=False)

    if config.init == "corda":
        from peft.tuners.lora.corda import preprocess_corda

        preprocess_corda(base, lora, run_model=lambda: ask(learn=False))
    else:
        from peft.tuners.lora.loraga import preprocess_loraga

        preprocess_loraga(base, lora, train_step=lambda: ask(learn=True))
    torch.manual_seed(config.seed)


def fill_new_adapter(model: Any, config: TrainingConfig, base: Path, samples: Sequence[Sample]) -> None:
    """Give the new adapter of `model` its first numbers, where that is done after the adapter is put on.

    base: the folder that the model came from.
    """
    if config.init == "loftq":
        make_good(model, base)
    if config.init != "eva":
        return
    from peft import initialize_lora_eva_weights

    lines = make_lines(samples, config, model.device)
    asked = 0

    def ask(model: Any, line: dict[str, Tensor]) -> None:
        nonlocal asked
        asked += 1
        if asked > _ROUNDS * len(lines) + 100:
            raise UserError("eva finds no stable directions in these rows: choose a lower rank, or another init.", param="init")
        model(input_ids=line["input_ids"], position_ids=line["position_ids"], use_cache=False)

    initialize_lora_eva_weights(model, lines, forward_fn=ask, show_progress_bar=False)


@torch.no_grad()
def make_good(model: Any, base: Path) -> None:
    """LoftQ (Li et al. 2023, arXiv:2310.08659) for a base in 4 bits: the adapter begins as the best that its rank can do about W − Q.

    PEFT's own function for this computes on GPUs only, and leaves out the adapter's scale. Raises UserError.
    """
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora.bnb import Linear4bit

    layers: list[tuple[str, Any]] = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear4bit)]
    for name, layer in layers:
        held = layer.get_base_layer().weight
        lost = _stored(base, name.removeprefix("base_model.model.") + ".weight").to(held.device, torch.float32)
        lost -= dequantize_4bit(held.data, held.quant_state).float()
        up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        left, sizes, right = torch.linalg.svd(lost, full_matrices=False)
        roots = (sizes[: len(down)] / layer.scaling["default"]).sqrt()
        up.copy_(left[:, : len(down)] * roots)
        down.copy_(roots[:, None] * right[: len(down)])


def _stored(folder: Path, name: str) -> Tensor:
    """A weight as the files have it. Raises UserError."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  # it is no mapping
                return tensors.get_tensor(name)
    raise UserError(f"loftq finds no {name} in {folder.name}: choose another init.", param="init")


def make_lines(samples: Sequence[Sample], config: TrainingConfig, device: torch.device) -> list[dict[str, Tensor]]:
    """The first samples as lines of about 512 tokens: input_ids, position_ids, labels; each [1, n]. Raises UserError."""
    assert config.init in ASK_THE_DATA
    lines: list[dict[str, Tensor]] = []
    tokens: list[int] = []
    places: list[int] = []
    labels: list[int] = []
    size = max(_LINE, 2 * config.rank)
    for sample in samples:
        read = [at for at in range(len(sample.tokens)) if at not in sample.unread]
        tokens += [sample.tokens[at] for at in read]
        places += range(len(read))
        labels += [sample.tokens[at] if at and sample.learnt[at] else -100 for at in read]
        if len(tokens) >= size:
            lines.append(_line(tokens, places, labels, device))
            tokens, places, labels = [], [], []
        if len(lines) == _LINES[config.init]:
            break
    if not lines and len(tokens) >= 2 * config.rank:
        lines.append(_line(tokens, places, labels, device))
    if not lines:
        raise UserError(
            f"{config.init} needs at least {2 * config.rank} tokens of data: lower the rank, or choose another init.",
            param="init",
        )
    return lines


def _line(tokens: list[int], places: list[int], labels: list[int], device: torch.device) -> dict[str, Tensor]:
    return {
        name: torch.tensor([values], device=device)
        for name, values in (("input_ids", tokens), ("position_ids", places), ("labels", labels))
    }
