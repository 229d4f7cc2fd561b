"""How a whole model is written down: with its base's own settings for generation, and an output layer that is what was merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from modules.library.config_files import GENERATION


def write_model(model: Any, folder: Path, base: Path, **options: Any) -> None:
    """`save_pretrained`, but generation_config.json is the base's to the letter.

    transformers refuses to write settings that contradict each other, and it would do so after hours of training.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig() if own is not None else None
    try:
        model.save_pretrained(str(folder), **options)
    finally:
        model.generation_config = own
    (folder / GENERATION).unlink(missing_ok=True)
    if _is_object(base / GENERATION):
        shutil.copyfile(base / GENERATION, folder / GENERATION)


def _is_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8-sig")), dict)
    except (OSError, ValueError):
        return False


def merged(model: Any) -> Any:
    """The base of a PeftModel with the adapter in its weights.

    Where the embedding is also the output layer and the adapter changes one of the two, each gets a matrix of its own first.
    """
    base = model.get_base_model()
    if _changes_one_of_two(base):
        output = _plain(base.get_output_embeddings())
        output.weight = type(output.weight)(output.weight.detach().clone(), requires_grad=False)
    whole = model.merge_and_unload(safe_merge=True)
    if not _is_tied(whole):
        for config in (whole.config, whole.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False
    return whole


def _changes_one_of_two(base: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = base.get_input_embeddings(), base.get_output_embeddings()
    return _is_tied(base) and any(isinstance(layer, BaseTunerLayer) for layer in layers)


def _is_tied(model: Any) -> bool:
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    return output is not None and _plain(output).weight is _plain(embedding).weight


def _plain(layer: Any) -> Any:
    """The layer of the base that PEFT has put its own around."""
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return getattr(layer, "original_module", layer)
