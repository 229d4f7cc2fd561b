"""What can be known to go wrong before a run starts: told at once, in a sentence that says what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from modules.errors import Conflict, UserError
from modules.library.disk import need_space
from modules.library.model_spec import ModelSpec
from modules.library.weights import read_safetensors_header
from modules.training.config import ASK_THE_DATA, CHANGE_THE_BASE, TrainingConfig
from modules.training.layers import choose_targets

_PACKAGES = {"qlora": ("bitsandbytes",), "lora-8bit": ("bitsandbytes",), "gptq-lora": ("gptqmodel", "optimum")}


def check_settings(config: TrainingConfig) -> None:
    """Settings that do not go together. Raises UserError."""
    measures = config.eval_share > 0 or config.eval_dataset
    if config.early_stop and not measures:
        raise UserError("Early stop needs held-out rows: set a share, or a data set to measure on.", param="early_stop")
    if config.keep_best and not measures:
        raise UserError("Keeping the best needs held-out rows: set a share, or a data set to measure on.", param="keep_best")
    if config.method == "full" and config.continue_from:
        raise UserError("Full training has no adapter to continue: choose a LoRA method.", param="continue_from")
    if config.objective == "dpo" and config.loss != "answers":
        raise UserError("The objective dpo compares answers: set the loss to answers.", param="loss")
    if config.objective == "dpo" and config.packing:
        raise UserError("The objective dpo computes pairs side by side: turn packing off.", param="packing")
    if config.learning_rate == 0:
        raise UserError("Nothing would be learnt: the learning rate is 0. About 2e-4 is usual for LoRA.", param="learning_rate")
    if config.loss == "after" and not config.loss_after:
        raise UserError("Loss after a marker needs the marker.", param="loss_after")
    if config.sharding != "none" and config.processes * config.machines == 1:
        raise UserError("Sharding needs more than one process.", param="sharding")
    if config.sharding != "none" and config.method in _PACKAGES:
        raise UserError("Sharding works with lora and full training.", param="sharding")
    if config.method != "full":
        _check_init(config)
    if config.machines > 1 and config.main_address in ("127.0.0.1", "localhost"):
        raise UserError("Several machines need the address of the first one.", param="main_address")


def _check_init(config: TrainingConfig) -> None:
    """Whether the adapter can begin in this way. Raises UserError."""
    init = config.init
    if init == "default":
        return
    if config.continue_from:
        raise UserError(f"{config.continue_from} goes on as it is: set init to default.", param="init")
    if init == "loftq" and config.method != "qlora":
        raise UserError("loftq makes good what 4 bits lost: choose the method qlora, or another init.", param="init")
    if config.method in _PACKAGES and init not in ("gaussian", "eva", "loftq"):
        raise UserError(f"{init} needs a base that is not quantised: choose the method lora, or another init.", param="init")
    if config.dora and (init in CHANGE_THE_BASE or init in ("mica", "loftq")):
        raise UserError(f"DoRA cannot begin with {init}: turn one of them off.", param="init")
    if init == "orthogonal" and config.rank % 2:
        raise UserError("orthogonal needs an even rank.", param="rank")
    if init in ASK_THE_DATA and config.processes * config.machines > 1:
        raise UserError(f"{init} works in one process: choose another init, or one process.", param="init")
    if init in CHANGE_THE_BASE and config.sharding != "none":
        raise UserError(f"{init} changes the base, which sharding divides: choose another init.", param="init")


def check_model(config: TrainingConfig, spec: ModelSpec) -> None:
    """Whether this model can be trained in this way. Raises UserError."""
    if spec.problem:
        raise UserError(f"{spec.name} cannot be trained: {spec.problem}", param="model")
    if spec.format == "gguf":
        raise UserError(
            f"{spec.name} is a GGUF file, which cannot be trained. Download the model as a transformers folder "
            "(for the starter model: python download-model.py starter --as transformers).",
            param="model",
        )
    if spec.format != "folder":
        raise UserError(f"{spec.name} runs elsewhere and cannot be trained here.", param="model")
    method = spec.quantization.method if spec.quantization else ""
    if method == "gptq" and config.method != "gptq-lora":
        raise UserError(f"{spec.name} is a GPTQ model: choose the method gptq-lora.", param="method")
    if method != "gptq" and config.method == "gptq-lora":
        raise UserError(f"{spec.name} is no GPTQ model: choose another method, such as qlora.", param="method")
    if method and method not in ("gptq", "bitsandbytes"):
        raise UserError(f"{spec.name} is quantised with {method}, which cannot be trained. Take the original.", param="model")
    if method and config.method == "full":
        raise UserError(f"{spec.name} is quantised: only adapters can be trained on it.", param="method")
    if config.init == "loftq" and (method or not any(spec.path.glob("*.safetensors"))):
        raise UserError(f"loftq needs the full weights as safetensors, which {spec.name} does not have.", param="init")
    for package in _PACKAGES.get(config.method, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{config.method} needs the package {package}: pip install {package}.", param="method")
    if config.method != "full" and not config.continue_from:
        layers = linear_layers(spec.path)
        chosen = choose_targets(config.target_modules, layers)
        if config.init not in ("default", "gaussian", "orthogonal"):
            _check_rank(config, min(min(shape) for name, shape in layers.items() if name.endswith(tuple(chosen))))


def _check_rank(config: TrainingConfig, smallest: int) -> None:
    """Beginnings made of a matrix's own directions have no more of them than its smaller side. Raises UserError."""
    most = smallest // 2 if config.init == "lora_ga" else smallest
    if config.rank > most:
        raise UserError(f"{config.init} can have a rank up to {most} with these layers.", param="rank")


def linear_layers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the layers with a matrix by their names, by the headers of the weight files."""
    layers: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in read_safetensors_header(file).items():
            layer, _, kind = name.rpartition(".")
            if kind == "qweight" or (kind == "weight" and len(tensor.shape) == 2):
                layers[layer] = tuple(tensor.shape)
    return dict(sorted(layers.items()))


def check_output(config: TrainingConfig, output: Path, runs: Path, spec: ModelSpec) -> None:
    """Whether the result has a place. Raises Conflict, Unavailable."""
    if output.exists() and not config.overwrite:
        raise Conflict(
            f"There is already one called {output.name}: choose another name, or allow it to be replaced.", param="name"
        )
    size = 3 * spec.size_bytes if config.method == "full" else spec.size_bytes // 20
    need_space(runs, size, "The checkpoints")
