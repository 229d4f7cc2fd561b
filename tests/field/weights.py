"""Folders of a tiny Llama with something wrong, and what transformers itself makes of a whole one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel
from modules.library.models import describe
from modules.loaders.choose import load
from modules.loaders.options import LoadOptions

PROMPT = (72, 101, 108, 108, 111, 32)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

Tensors = dict[str, torch.Tensor]


def copied(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def tensors_of(folder: Path) -> Tensors:
    return load_file(folder / SINGLE)


def keep(folder: Path, tensors: Mapping[str, torch.Tensor], name: str = SINGLE) -> None:
    save_file(dict(tensors), folder / name, metadata={"format": "pt"})


def keep_pickled(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """The same weights as pytorch_model.bin, whose names no header tells."""
    (folder / SINGLE).unlink()
    torch.save(dict(tensors), folder / "pytorch_model.bin")


def sharded(folder: Path, names: tuple[str, str] = SHARDS) -> None:
    """Two files with an index in place of one: all of the second layer is in the second."""
    tensors = tensors_of(folder)
    parts: tuple[Tensors, Tensors] = ({}, {})
    for key, tensor in tensors.items():
        parts[".layers.1." in key or key.startswith("model.norm")][key] = tensor
    for name, part in zip(names, parts, strict=True):
        keep(folder, part, name)
    (folder / SINGLE).unlink()
    places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    write_json(folder / INDEX, {"metadata": {"total_size": 1}, "weight_map": places})


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    write_json(path, values)


def put(path: Path, **values: Any) -> None:
    edit(path, lambda there: there.update(values))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def loaded(folder: Path, said: list[str] | None = None, **options: Any) -> LoadedModel:
    """Loaded as the server does it; said: takes what the load reports."""
    report = said.append if said is not None else lambda sentence: None
    return load(describe(folder), LoadOptions(threads=1, cpu=True, **options), report)


def scores(model: LoadedModel, **request: Any) -> torch.Tensor:
    """[vocabulary]: log-probabilities after the prompt."""
    wanted = GenerationRequest(PROMPT, SamplingParams(temperature=0), **request)
    found = {token.id: token.logprob for token in model.next_tokens(wanted, 260).model}
    return torch.tensor([found[token] for token in sorted(found)])


def scores_of(folder: Path, **options: Any) -> torch.Tensor:
    model = loaded(folder, **options)
    try:
        return scores(model)
    finally:
        model.close()


def by_transformers(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return of_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def of_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model.eval()(torch.tensor([PROMPT])).logits[0, -1], -1)
