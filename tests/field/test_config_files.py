"""Odd values in a model's JSON files: a sentence that names file and key, and what plain transformers loads, loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import Finished, GenerationRequest
from modules.library.models import describe
from tests.field.weights import PROMPT, by_transformers, copied, edit, loaded, put, scores_of, write_json


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    return copied(tiny_llama_folder, tmp_path / "models" / "m")


@pytest.mark.parametrize("value", [[[5]], "5", {}, 5.5, [None], True])
@pytest.mark.parametrize("key", ["eos_token_id", "pad_token_id"])
def test_a_token_that_is_no_number_is_told_in_the_list(folder, key, value):
    put(folder / "generation_config.json", **{key: value})
    problem = str(describe(folder).problem)
    assert "generation_config.json in m" in problem and f'"{key}"' in problem and repr(value) in problem


def test_a_list_for_generation_is_told_in_the_list(folder):
    write_json(folder / "generation_config.json", [])
    assert "generation_config.json in m is not a JSON object" in str(describe(folder).problem)


@pytest.mark.parametrize(
    "values",
    [
        {"eos_token_id": 99999},
        {"eos_token_id": [259, 99999]},
        {"eos_token_id": -1},
        {"do_sample": False, "temperature": 0.7, "top_p": 0.1},
        {"max_length": 3, "max_new_tokens": 9, "unknown_key": [1], "temperature": 0},
    ],
    ids=str,
)
def test_what_transformers_takes_loads_and_answers(folder, tiny_llama_folder, values):
    put(folder / "generation_config.json", **values)
    said: list[str] = []
    model = loaded(folder, said)
    try:
        events = list(model.stream(GenerationRequest(PROMPT, SamplingParams(temperature=0, max_tokens=5))))
        assert isinstance(events[-1], Finished)
    finally:
        model.close()
    assert any("99999" in sentence and "eos_token_id" in sentence for sentence in said) == ("99999" in str(values))
    assert torch.allclose(scores_of(folder), by_transformers(tiny_llama_folder), atol=1e-4)


def test_a_broken_file_for_generation_is_passed_over_as_transformers_does(folder):
    (folder / "generation_config.json").write_text("{")
    model = loaded(folder)
    model.close()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["auto", "torch.float16", 16])
def test_a_number_format_that_is_none_is_told_in_the_list(folder, key, value):
    def change(config: dict[str, Any]) -> None:
        config.pop("dtype", None)
        config[key] = value

    edit(folder / "config.json", change)
    problem = str(describe(folder).problem)
    assert "config.json in m" in problem and f'"{key}"' in problem and repr(value) in problem


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "half", "float"])
def test_number_formats_that_torch_has_pass(folder, name):
    put(folder / "config.json", dtype=name)
    assert describe(folder).problem is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rope_scaling": {"type": "linear", "factor": "2.0"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": "2"}}, "rope_scaling.factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2.0", "rope_theta": 10000.0}}, "rope_parameters.factor"),
        ({"rope_theta": "10000"}, "rope_theta"),
    ],
    ids=str,
)
def test_positions_as_text_are_told_in_the_list(folder, change, key):
    edit(folder / "config.json", lambda config: (config.pop("rope_parameters"), config.update(change)))
    problem = str(describe(folder).problem)
    assert "config.json in m" in problem and f'"{key}"' in problem


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"vocab_size": None}, "vocab_size"),
        ({"eos_token_id": [[5]]}, "eos_token_id"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0}}, "factor"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"quantization_config": []}, "cannot be loaded"),
    ],
    ids=str,
)
def test_whatever_else_a_config_makes_fail_is_a_sentence(folder, values, reason):
    put(folder / "config.json", **values)
    with pytest.raises(UserError, match=reason) as told:
        loaded(folder)
    assert "m" in told.value.message and told.value.status == 400 and "\n" not in told.value.message


def changed_tokenizer(folder: Path, **values: Any) -> None:
    edit(folder / "tokenizer.json", lambda tokenizer: tokenizer.update(values))


@pytest.mark.parametrize("key", ["model", "pre_tokenizer", "normalizer", "post_processor", "decoder", "version"])
def test_a_tokenizer_of_a_newer_library_names_the_part(folder, key):
    changed_tokenizer(folder, **{key: "2.0" if key == "version" else {"type": "FromTheFuture", "vocab": {}}})
    with pytest.raises(UserError, match=rf'tokenizer\.json in m has a "{key}".*(FromTheFuture|2\.0)'):
        loaded(folder)


@pytest.mark.parametrize("text", ["{}", "{", '{"model": 1}'])
def test_a_tokenizer_that_is_none_is_a_sentence(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json in m"):
        loaded(folder)


def test_no_tokenizer_at_all_is_a_sentence(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="m cannot be loaded"):
        loaded(folder)


def test_a_broken_tokenizer_is_told_before_the_weights_are_read(folder, monkeypatch):
    from modules.loaders import local

    changed_tokenizer(folder, model={"type": "FromTheFuture"})
    monkeypatch.setattr(local, "load_whole", lambda *_, **__: pytest.fail("the weights were read"))
    with pytest.raises(UserError, match="tokenizer"):
        loaded(folder)


def test_the_list_never_fails_whatever_a_config_holds(folder):
    config = json.loads((folder / "config.json").read_text())
    for key in [*config, "text_config", "quantization_config", "auto_map", "vision_config", "rope_scaling"]:
        for value in (None, "x", "", 0, -1, 1.5, [], [[]], {}, {"a": None}, True, "9" * 400):
            write_json(folder / "config.json", {**config, key: value})
            describe(folder)
