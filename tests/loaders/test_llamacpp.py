"""What the llama.cpp loader takes, tells, and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.errors import UserError
from modules.generation.types import TextDelta
from modules.library.model_spec import ModelSpec, Quantization
from modules.library.models import describe
from modules.loaders import choose, llamacpp
from modules.loaders.options import LoadOptions
from tests.generation.test_llamacpp_model import ask, reply

OPTIONS = LoadOptions(threads=1, max_parallel=2, cpu=True)


def load(path: Path, options: LoadOptions = OPTIONS) -> tuple[llamacpp.LlamacppModel, list[str]]:
    said: list[str] = []
    return choose.load(describe(path), options, said.append), said  # type: ignore[return-value]


def first_logprob(model: llamacpp.LlamacppModel, prompt: str) -> float:
    events = model.stream(ask(prompt, logprobs=0, sampling={"logit_bias": {"70": 100}}))
    details = [token for event in events if isinstance(event, TextDelta) for token in event.details]
    assert details[0].logprob is not None
    return details[0].logprob


def test_the_context_is_the_models_own_or_what_was_asked_for(tiny_gguf: Path) -> None:
    for options, expected in ((OPTIONS, 4096), (OPTIONS.changed({"ctx_size": 512}), 512)):
        model, _ = load(tiny_gguf, options)
        assert model.context_length == expected
        model.close()


def test_what_does_not_fit_is_said(tiny_gguf: Path) -> None:
    model, said = load(tiny_gguf, OPTIONS.changed({"ctx_size": 100_000, "cache_memory": 0.0003}))
    assert model.context_length == 1258
    assert any("made for 4096 tokens" in sentence for sentence in said)
    assert any("1258 tokens" in sentence for sentence in said)
    model.close()


@pytest.mark.parametrize(
    "changed",
    [
        {"no_mmap": True, "flash_attention": "on", "cache_type": "bf16", "batch_size": 64},
        {"gpu_layers": 0, "flash_attention": "off", "cache_type": "f32"},
        {"compress_pos_emb": 2.0},
        {"alpha_value": 2.5},
    ],
)
def test_options_reach_llama_cpp(tiny_gguf: Path, changed: dict) -> None:
    likelihoods = []
    for options in (OPTIONS, OPTIONS.changed(changed)):
        model, _ = load(tiny_gguf, options)
        likelihoods.append(first_logprob(model, "The positions of a longer text matter. " * 20))
        model.close()
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=0.02)
    if "compress_pos_emb" in changed or "alpha_value" in changed:
        assert likelihoods[0] != pytest.approx(likelihoods[1], abs=1e-5)


def test_a_quantised_cache_without_flash_attention_is_refused(tiny_gguf: Path) -> None:
    with pytest.raises(UserError, match="flash attention"):
        load(tiny_gguf, OPTIONS.changed({"flash_attention": "off", "cache_type": "q8_0"}))


def test_broken_files_are_refused_in_a_sentence_and_the_next_load_works(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    contents = {"half": data[: len(data) // 2], "header": data[:600], "text": b"not a model", "empty": b""}
    for name, content in contents.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            load(path)
    model, _ = load(tiny_gguf)
    assert reply(model)
    model.close()


def test_what_only_llama_cpp_finds_wrong_is_told_in_its_words(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    path = tmp_path / "strange.gguf"
    path.write_bytes(data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_Q.weight"))
    with pytest.raises(UserError, match=r"strange.gguf: .*blk.0.attn_q.weight' not found"):
        load(path)


def test_only_gguf_files_fit() -> None:
    folder = ModelSpec("folder", Path("folder"), "folder", 1)
    file = ModelSpec("file", Path("file.gguf"), "gguf", 1, quantization=Quantization("gguf"))
    assert "not a .gguf file" in (llamacpp.why_not(folder, OPTIONS) or "")
    assert llamacpp.why_not(file, OPTIONS) is None
