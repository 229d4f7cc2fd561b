"""Folders whose weights bitsandbytes quantises to 8 or 4 bits while they load, or has quantised already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modules.library.model_spec import ModelSpec
from modules.loaders.local import device_for, dtype_for, folder_problem, load_folder, processor_has_bfloat16
from modules.loaders.options import LoadOptions

if TYPE_CHECKING:
    from modules.generation.local.model import LocalModel
    from modules.loaders.choose import Report


def why_not(spec: ModelSpec, options: LoadOptions) -> str | None:
    if problem := folder_problem(spec, options):
        return problem
    method = spec.quantization.method if spec.quantization else None
    if method not in (None, "bitsandbytes"):
        return f"The weights of {spec.name} are quantised already ({method}). Leave out --load-in-8bit and --load-in-4bit."
    if options.load_in_8bit and options.load_in_4bit:
        return "Choose one of --load-in-8bit and --load-in-4bit."
    if method is None and not (options.load_in_8bit or options.load_in_4bit):
        return "Say how many bits the weights should have: --load-in-8bit or --load-in-4bit."
    return None


def load(spec: ModelSpec, options: LoadOptions, report: Report) -> LocalModel:
    quantised = spec.quantization is not None
    if quantised and (options.load_in_8bit or options.load_in_4bit):
        report(f"{spec.name} is quantised already: --load-in-8bit and --load-in-4bit have no effect.")
    more: dict[str, Any] = {} if quantised else {"quantization_config": _quantization(spec, options)}
    return load_folder(spec, options, report, prepare=_prepare, **more)


def _prepare(model: Any) -> None:
    from modules.loaders.int4_layout import choose_layout
    from modules.loaders.int8_linear import speed_up

    speed_up(model)
    choose_layout(model)


def _quantization(spec: ModelSpec, options: LoadOptions) -> Any:
    from transformers import BitsAndBytesConfig

    offload = options.auto_devices or bool(options.gpu_memory) or options.disk
    if options.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=offload)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.quant_type,
        bnb_4bit_use_double_quant=options.use_double_quant,
        bnb_4bit_compute_dtype=_compute_dtype(spec, options),
        llm_int8_enable_fp32_cpu_offload=offload,
    )


def _compute_dtype(spec: ModelSpec, options: LoadOptions) -> Any:
    """What 4-bit weights are turned into for each product: as asked for, else what this machine multiplies quickly."""
    import torch

    if options.compute_dtype != "auto":
        return getattr(torch, options.compute_dtype)
    if options.dtype == "auto" and device_for(options) == "cpu" and processor_has_bfloat16():
        return torch.bfloat16
    return dtype_for(spec, options)
