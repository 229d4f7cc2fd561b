"""Folders with 16- or 32-bit weights, through transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules.library.model_spec import ModelSpec
from modules.loaders.local import folder_problem, load_folder
from modules.loaders.options import LoadOptions

if TYPE_CHECKING:
    from modules.generation.local.model import LocalModel
    from modules.loaders.choose import Report


def why_not(spec: ModelSpec, options: LoadOptions) -> str | None:
    if problem := folder_problem(spec, options):
        return problem
    method = spec.quantization.method if spec.quantization else None
    if method in ("gptq", "awq", "bitsandbytes"):
        loader = "bitsandbytes" if method == "bitsandbytes" else "gptq"
        return f"The weights of {spec.name} are quantised ({method}). Choose the loader {loader}, or auto."
    return None


def load(spec: ModelSpec, options: LoadOptions, report: Report) -> LocalModel:
    return load_folder(spec, options, report)
