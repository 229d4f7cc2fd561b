"""Folders whose weights GPTQ or AWQ quantised, through GPTQModel's kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.errors import UserError
from modules.library.entries import files_of
from modules.library.json_files import read_json
from modules.library.model_spec import ModelSpec, Quantization
from modules.loaders.local import folder_problem, load_folder
from modules.loaders.options import LoadOptions
from modules.loaders.pretrained import as_listed
from modules.loaders.quiet_imports import import_gptqmodel

if TYPE_CHECKING:
    from modules.generation.local.model import LocalModel
    from modules.loaders.choose import Report

METHODS = ("gptq", "awq")
SETTINGS = ("quantize_config.json", "quant_config.json")


def why_not(spec: ModelSpec, options: LoadOptions) -> str | None:
    if problem := folder_problem(spec, options):
        return problem
    if spec.quantization is None or spec.quantization.method not in METHODS:
        return f"The weights of {spec.name} are not quantised by GPTQ or AWQ. Choose the loader transformers, or auto."
    return None


def load(spec: ModelSpec, options: LoadOptions, report: Report) -> LocalModel:
    try:
        import_gptqmodel()
    except ImportError as error:
        raise UserError(f"{spec.name} needs the package gptqmodel, and importing it fails: {error}", param="loader") from error
    with in_todays_form(spec) as folder, warnings.catch_warnings():
        # optimum asks a model for a name that transformers 5 calls old; GPTQModel drops passing folders.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)
        return load_folder(spec, options, report, folder=folder, prepare=_prepare)


def _prepare(model: Any) -> None:
    from modules.loaders.int4_linear import speed_up

    speed_up(model)
    # GPTQModel's settings make a folder for quantising, which nobody needs here.
    settings = getattr(getattr(model.hf_quantizer, "optimum_quantizer", None), "quantizeConfig", None)
    folder = getattr(settings, "_offload_temp_dir", None)
    if folder is not None:
        folder.cleanup()


@contextmanager
def in_todays_form(spec: ModelSpec) -> Iterator[Path]:
    """A folder that transformers understands: older ones have the settings of the quantisation in a file of their own, or nowhere."""
    files, _ = files_of(spec.path)
    config = read_json(files["config.json"])
    if config.get("quantization_config"):
        with as_listed(spec) as folder:
            yield folder
        return
    config["quantization_config"] = settings(spec.quantization, files)
    with as_listed(spec, config, without=SETTINGS) as folder:
        yield folder


def settings(quantization: Quantization | None, files: dict[str, Path]) -> dict[str, Any]:
    """What config.json of a folder of today says of the quantisation, from the older file or from the weights themselves."""
    assert quantization is not None
    found: dict[str, Any] = {}
    for name in SETTINGS:
        if name in files:
            found = read_json(files[name])
            break
    return {
        **found,
        "quant_method": quantization.method,
        "bits": int(quantization.bits or 4),
        "group_size": quantization.group_size or -1,
        "desc_act": quantization.desc_act,
        "sym": found.get("sym", True),
    }
