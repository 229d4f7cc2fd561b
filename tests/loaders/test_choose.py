"""Which loader takes which model, and what is said about options that it does not use."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from modules.errors import UserError
from modules.library.model_spec import ModelSpec, Quantization
from modules.loaders.choose import LOADERS, choose, ignored, load, loader
from modules.loaders.options import OLD_NAMES, LoadOptions

FOLDER = ModelSpec("folder", Path("models/folder"), "folder", 0)
GGUF = ModelSpec("file", Path("models/file.gguf"), "gguf", 0, quantization=Quantization("gguf", label="Q4_1"))
REMOTE = ModelSpec("remote", Path("models/remote.yaml"), "remote", 0, endpoint="http://127.0.0.1:1/v1")
GPTQ = ModelSpec("gptq", Path("models/gptq"), "folder", 0, quantization=Quantization("gptq", 4, 128))
AWQ = ModelSpec("awq", Path("models/awq"), "folder", 0, quantization=Quantization("awq", 4, 128))


@pytest.mark.parametrize(
    ("spec", "options", "expected"),
    [
        (FOLDER, LoadOptions(), "transformers"),
        (FOLDER, LoadOptions(load_in_8bit=True), "bitsandbytes"),
        (FOLDER, LoadOptions(load_in_4bit=True), "bitsandbytes"),
        (FOLDER, LoadOptions(loader="vllm"), "vllm"),
        (FOLDER, LoadOptions(base_url="http://127.0.0.1:1/v1"), "remote"),
        (GGUF, LoadOptions(load_in_4bit=True), "llamacpp"),
        (REMOTE, LoadOptions(), "remote"),
        (GPTQ, LoadOptions(load_in_8bit=True, bf16=True, auto_devices=True), "gptq"),
        (AWQ, LoadOptions(), "gptq"),
    ],
)
def test_auto_goes_by_what_is_on_disk(spec: ModelSpec, options: LoadOptions, expected: str) -> None:
    assert choose(spec, options) == expected


def test_options_that_a_loader_does_not_use_are_named() -> None:
    options = LoadOptions(load_in_8bit=True, bf16=True, auto_devices=True)
    assert ignored(options, "gptq") == ["--load-in-8bit has no effect with the gptq loader."]
    assert [sentence.split()[0] for sentence in ignored(options, "llamacpp")] == ["--bf16", "--auto-devices", "--load-in-8bit"]
    assert ignored(LoadOptions(load_in_8bit=False), "llamacpp") == []


@pytest.mark.parametrize("name", ["AutoGPTQ", "ExLlama_HF", "GPTQ-for-LLaMa", "llama.cpp", "Transformers", "llamacpp"])
def test_names_from_other_programs_are_understood(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        options = LoadOptions.read({"loader": name})
    assert options.loader in LOADERS
    assert bool(caplog.messages) == (name.lower() in OLD_NAMES)


def test_an_unknown_loader_is_refused() -> None:
    with pytest.raises(UserError, match="loader"):
        LoadOptions.read({"loader": "flexgen"})


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_says_whether_it_fits_and_loads(name: str) -> None:
    module = loader(name)  # type: ignore[arg-type]
    assert callable(module.why_not) and callable(module.load)
    assert module.__doc__


def test_a_broken_file_is_refused_with_its_problem() -> None:
    spec = ModelSpec("cut", Path("models/cut.gguf"), "gguf", 10, problem="cut.gguf is cut short. Download it again.")
    with pytest.raises(UserError, match="cut short"):
        load(spec, LoadOptions(), lambda progress: None)
