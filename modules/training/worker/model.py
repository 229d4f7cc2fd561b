"""The model that a run trains: loaded as the method asks, with its adapter, and how it is written down."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules.errors import UserError
from modules.library.config_files import GENERATION
from modules.library.models import describe
from modules.loaders.pretrained import as_listed, explained, load_whole, with_adapter
from modules.loaders.quiet_imports import hush_imports, import_gptqmodel, keep_peft_from_gptqmodel
from modules.training.config import CHANGE_THE_BASE, TrainingConfig
from modules.training.layers import choose_targets
from modules.training.samples import Sample, load_tokenizer
from modules.training.worker.adapter_init import fill_new_adapter, look_at_the_data, peft_settings
from modules.training.worker.writing import write_model

_NEEDS = {"qlora": "bitsandbytes", "lora-8bit": "bitsandbytes", "gptq-lora": "gptqmodel"}


@dataclass(frozen=True)
class Trainee:
    """model: what is trained (a PeftModel, except for full training); autocast: the format to compute in, None for the model's own.

    base: the folder that it came from.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    autocast: torch.dtype | None
    base: Path

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that change, always in the same order."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")

    @property
    def dtype(self) -> str:
        """The number format of the computation, for people."""
        return str(self.autocast or self.model.dtype).removeprefix("torch.")


def load_trainee(
    config: TrainingConfig,
    base: Path,
    adapter: Path | None,
    device: torch.device,
    resume: Path | None,
    samples: Sequence[Sample],
) -> Trainee:
    """Load `base` and put the adapter on it: a new one, `adapter` to train further, or the one of the checkpoint `resume`.

    samples: those to train on, which some adapters look at to begin.
    """
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(base)
    weights, autocast = _formats(config, device)
    source = resume if resume is not None and config.method == "full" else base
    model = _load_base(config, source, device, weights)
    model.config.use_cache = False
    if config.method != "full":
        model.requires_grad_(False)
        model = _with_adapter(model, config, base, adapter, resume, samples)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    return Trainee(model, tokenizer, device, autocast, base)


def _formats(config: TrainingConfig, device: torch.device) -> tuple[torch.dtype, torch.dtype | None]:
    """(format of the weights, format to compute in where it differs)."""
    match config.dtype:
        case "bfloat16":
            return torch.bfloat16, None
        case "float32":
            return torch.float32, None
        case "mixed":
            return torch.float32, torch.bfloat16
    if not bfloat16_is_fast(device):
        return torch.float32, None
    # Changes of a full training are smaller than bfloat16 can show: its weights stay in float32.
    return (torch.float32, torch.bfloat16) if config.method == "full" else (torch.bfloat16, None)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Measured on processors: without instructions for it a backward pass is twenty times slower than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def seconds(dtype: torch.dtype) -> float:
        rows, weights = torch.ones(64, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(torch.mm(rows, weights.t()), weights)
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < seconds(torch.float32)


def _load_base(config: TrainingConfig, path: Path, device: torch.device, weights: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    hush_imports()
    if config.method == "gptq-lora" and importlib.util.find_spec("gptqmodel"):
        import_gptqmodel()
    else:
        keep_peft_from_gptqmodel()
    options: dict[str, Any] = {"dtype": weights, "attn_implementation": _attention(config, device, weights)}
    if package := _NEEDS.get(config.method):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{config.method} needs the package {package}: pip install {package}.", param="method")
        options["device_map"] = {"": str(device)}
    if config.method in ("qlora", "lora-8bit"):
        options["quantization_config"] = _bitsandbytes(config, weights)
    spec = describe(path)
    with explained(spec), as_listed(spec, without=(GENERATION,) if spec.problem else ()) as folder:
        model = load_whole(AutoModelForCausalLM, spec.name, folder, **options)
    if config.method == "qlora":
        from modules.loaders.int4_layout import choose_layout

        choose_layout(model, training=True)
    if config.method not in _NEEDS:
        model.to(device)
    if config.kernels == "auto" and device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import _apply_liger_kernel_to_instance  # type: ignore[import-not-found]

        _apply_liger_kernel_to_instance(model=model)
    return model


def _attention(config: TrainingConfig, device: torch.device, weights: torch.dtype) -> str:
    flash = device.type == "cuda" and weights == torch.bfloat16 and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash and config.kernels == "auto" else "sdpa"


def _bitsandbytes(config: TrainingConfig, weights: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if config.method == "lora-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=weights
    )


def _with_adapter(
    model: Any, config: TrainingConfig, base: Path, adapter: Path | None, resume: Path | None, samples: Sequence[Sample]
) -> Any:
    from peft import LoraConfig, get_peft_model

    if adapter and not resume:
        return with_adapter(model, adapter, is_trainable=True)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # fractions work
        lora_dropout=config.dropout,
        target_modules=choose_targets(config.target_modules, linear_layers(model)),
        use_rslora=config.rslora,
        use_dora=config.dora,
        base_model_name_or_path=str(base),
        **peft_settings(config),
    )
    look_at_the_data(model, lora, config, samples)
    if resume:
        return with_adapter(model, resume, is_trainable=True)
    model = get_peft_model(model, lora)
    fill_new_adapter(model, config, base, samples)
    return model


def linear_layers(model: nn.Module) -> list[str]:
    """Full names of the layers that multiply by a matrix, quantised ones and GPT-2's Conv1D too."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or type(layer).__name__.endswith(("Linear", "QuantLinear", "Conv1D"))
    ]


def save_weights(trainee: Trainee, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """The adapter (or the whole model) in its usual files, and the tokenizer beside a whole model.

    weights: those of the whole model by name, where it is divided between processes.
    """
    options = {} if weights is None else {"state_dict": weights}
    if trainee.has_adapter:
        trainee.model.save_pretrained(str(folder), **options)
    else:
        write_model(trainee.model, folder, trainee.base, **options)
        trainee.tokenizer.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)


def keep_beginning(trainee: Trainee, config: TrainingConfig, folder: Path) -> None:
    """What changed the base is kept as it began, so that the result can be told for the plain base."""
    if config.init in CHANGE_THE_BASE and not folder.exists():
        lora = trainee.model.peft_config["default"]
        init, lora.init_lora_weights = lora.init_lora_weights, True
        trainee.model.save_pretrained(str(folder))
        lora.init_lora_weights = init


def save_result(
    trainee: Trainee, config: TrainingConfig, folder: Path, beginning: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """What people use: an adapter for the plain base, or a whole model."""
    if config.init in CHANGE_THE_BASE and beginning.exists():
        lora = trainee.model.peft_config["default"]
        lora.corda_config = lora.lora_ga_config = None  # they are about the beginning, of which nothing is left
        trainee.model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(beginning))
        (folder / "README.md").unlink(missing_ok=True)
    else:
        save_weights(trainee, folder, weights)
