"""8-bit, 4-bit and GPTQ folders in the engine, against plain transformers and the libraries by themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel, TextDelta
from modules.library.hf_folder import describe_folder
from modules.loaders import bitsandbytes, gptq
from modules.loaders.choose import choose, ignored, load
from modules.loaders.options import LoadOptions
from tests.loaders.four_bit import compute_as_asked
from tests.loaders.gptq_folder import GROUP, write_gptq
from tests.tiny import write_tiny_llama

pytestmark = pytest.mark.slow
PROMPT = tuple(b"To be, or not to be")
OLD_FORMS: dict[str, dict[str, Any]] = {
    "config.json": {},
    "act-order": {"act_order": True},
    "version 2": {"version": 2},
    "quantize_config.json alone": {"settings": "quantize_config.json"},
    "old names": {"settings": "quantize_config.json", "weights": "gptq_model-4bit-32g.safetensors", "act_order": True},
    "no settings at all": {"settings": None, "weights": "4bit-32g.safetensors"},
    "pickled": {"settings": "quantize_config.json", "weights": "gptq_model-4bit-32g.bin"},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "plain", hidden=128)


@contextmanager
def loaded(folder: Path, **options: Any) -> Iterator[LoadedModel]:
    model = load(describe_folder(folder), LoadOptions(**options), lambda sentence: None)
    try:
        yield model
    finally:
        model.close()


def reply(model: LoadedModel, tokens: int = 24, prompt: tuple[int, ...] = PROMPT) -> list[int]:
    """The ids of a greedy reply, end-of-reply tokens banned."""
    request = GenerationRequest(prompt, SamplingParams(temperature=0, max_tokens=tokens, ban_eos=True), logprobs=0)
    ids: list[int] = []
    for event in model.stream(request):
        if isinstance(event, TextDelta):
            ids += [token.id for token in event.details]
    return ids


def generated(model: Any, tokens: int = 24) -> list[int]:
    """The same from transformers' generate."""
    eos = model.generation_config.eos_token_id
    output = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=[eos] if isinstance(eos, int) else eos,
    )
    return output[0, len(PROMPT) :].tolist()


def scores_after(model: LoadedModel) -> dict[int, float]:
    """Log-probabilities of all tokens after the prompt."""
    request = GenerationRequest(PROMPT, SamplingParams(temperature=0, max_tokens=1, ban_eos=True), logprobs=260)
    (token,) = (token for event in model.stream(request) if isinstance(event, TextDelta) for token in event.details)
    return {other.id: other.logprob for other in token.alternatives}


# --- bitsandbytes


@pytest.mark.parametrize("kind", [{}, {"quant_type": "fp4"}, {"use_double_quant": True}, {"compute_dtype": "bfloat16"}])
def test_four_bits_say_what_bitsandbytes_says_by_itself(plain: Path, kind: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind.get("quant_type", "nf4"),
        bnb_4bit_use_double_quant=kind.get("use_double_quant", False),
        bnb_4bit_compute_dtype=getattr(torch, kind.get("compute_dtype", "float32")),
    )
    theirs = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, device_map={"": "cpu"}, dtype="float32")
    if config.bnb_4bit_compute_dtype == torch.float32:
        compute_as_asked(theirs)
    with loaded(plain, load_in_4bit=True, cpu=True, dtype="float32", **kind) as model:
        assert reply(model) == generated(theirs)


def test_only_layers_that_compute_the_same_with_it_take_the_layout_for_bfloat16_processors() -> None:
    from bitsandbytes.nn.modules import Linear4bit

    from modules.loaders.int4_layout import choose_layout

    def layer(inputs: int, outputs: int, dtype: torch.dtype) -> Any:
        made = Linear4bit(inputs, outputs, compute_dtype=dtype, quant_type="nf4")
        made.support_avx512bf16_for_cpu = True
        return made

    def left(*, training: bool = False) -> list[bool]:
        shapes = ((128, 64, torch.bfloat16), (128, 64, torch.float32), (96, 64, torch.bfloat16), (128, 40, torch.bfloat16))
        layers = [layer(*shape) for shape in shapes]
        choose_layout(torch.nn.ModuleList(layers), training=training)
        return [made.support_avx512bf16_for_cpu for made in layers]

    assert left() == [True, False, False, False]
    assert not any(left(training=True))


def test_layers_of_any_shape_compute_in_evaluation() -> None:
    from bitsandbytes.nn.modules import Linear4bit

    from modules.loaders.int4_layout import choose_layout

    torch.manual_seed(0)
    for inputs, outputs in ((128, 64), (96, 64), (128, 40)):
        made: Any = Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        whole = made.weight.data.clone()
        made = made.to("cpu").eval().requires_grad_(False)
        choose_layout(torch.nn.ModuleList([made]))
        x = torch.randn(3, inputs)
        with torch.no_grad():
            far = (made(x) - x @ whole.t()).std() / (x @ whole.t()).std()
        assert 0 < far < 0.2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_bits_say_nearly_what_the_whole_weights_say(plain: Path, dtype: str) -> None:
    with loaded(plain, cpu=True, dtype="float32") as model:
        whole = scores_after(model)
    with loaded(plain, load_in_8bit=True, cpu=True, dtype=dtype) as model:
        eight = scores_after(model)
    largest = max(abs(whole[token] - eight[token]) for token in whole)
    assert 0 < largest < 0.05
    assert max(whole, key=whole.__getitem__) == max(eight, key=eight.__getitem__)


def test_eight_bit_layers_agree_with_those_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

    from modules.loaders import int8_linear

    torch.manual_seed(0)
    for inputs, outputs, bias in ((64, 24, True), (96, 7, False), (33, 5, True)):
        layer: Any = Linear8bitLt(inputs, outputs, bias=bias, has_fp16_weights=False, threshold=6.0)
        weight: Any = Int8Params(torch.randn(outputs, inputs), requires_grad=False)
        layer.weight = weight.to("cpu")
        layer.requires_grad_(False).eval()
        holder = torch.nn.ModuleList([layer])
        for rows, at_once in ((1, 1 << 20), (3, 200), (40, 200)):
            monkeypatch.setattr(int8_linear, "AT_ONCE", at_once)  # in one part, and in several
            x = torch.randn(1, rows, inputs)
            x[..., 2] *= 20  # an outlier column
            holder[0].__class__ = Linear8bitLt
            expected = layer(x)
            int8_linear.speed_up(holder)
            assert type(layer) is int8_linear.Int8Linear
            got = layer(x)
            assert got.shape == expected.shape and got.dtype == x.dtype
            assert (got - expected).abs().max() < 0.001 * expected.std()


def test_eight_bits_in_bfloat16_write_no_line_into_the_log(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), loaded(plain, load_in_8bit=True, cpu=True, bf16=True) as model:
        reply(model, 4)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "--load-in-8bit or --load-in-4bit"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "Choose one of"),
    ],
)
def test_bitsandbytes_wants_to_know_how_many_bits(plain: Path, options: dict[str, Any], reason: str) -> None:
    assert reason in (bitsandbytes.why_not(describe_folder(plain), LoadOptions(**options)) or "")


def test_weights_that_bitsandbytes_saved_load_without_a_flag(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, device_map={"": "cpu"}, dtype="float32")
    theirs.save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path / "saved")
    spec = describe_folder(tmp_path / "saved")
    assert choose(spec, LoadOptions()) == "bitsandbytes"
    with loaded(tmp_path / "saved", cpu=True, dtype="float32") as model:
        assert reply(model) == generated(theirs)


# --- GPTQ


@pytest.mark.parametrize("form", OLD_FORMS)
def test_every_form_of_gptq_folder_says_what_its_weights_say(plain: Path, tmp_path: Path, form: str) -> None:
    from transformers import AutoModelForCausalLM

    exact = write_gptq(plain, tmp_path / "quantised", **OLD_FORMS[form])
    before = sorted(file.name for file in (tmp_path / "quantised").iterdir())
    theirs = AutoModelForCausalLM.from_pretrained(plain, dtype="float32")
    theirs.load_state_dict({**theirs.state_dict(), **exact})
    with torch.inference_mode():
        expected = torch.log_softmax(theirs(torch.tensor([PROMPT])).logits[0, -1], -1)
    with loaded(tmp_path / "quantised", cpu=True) as model:
        got = scores_after(model)
        assert max(abs(expected[token].item() - logprob) for token, logprob in got.items()) < 0.05
        assert max(got, key=got.__getitem__) == int(expected[:259].argmax())
        assert len(reply(model, 40)) == 40
    assert sorted(file.name for file in (tmp_path / "quantised").iterdir()) == before


def test_the_command_line_of_the_documents_takes_the_gptq_loader_and_says_what_it_ignores(plain: Path, tmp_path: Path) -> None:
    """server.py --share --model TheBloke_Llama-2-7B-chat-GPTQ --load-in-8bit --bf16 --auto-devices"""
    folder = tmp_path / "TheBloke_Llama-2-7B-chat-GPTQ"
    write_gptq(plain, folder, settings="quantize_config.json", weights="gptq_model-4bit-128g.safetensors")
    options = LoadOptions(load_in_8bit=True, bf16=True, auto_devices=True)
    assert choose(describe_folder(folder), options) == "gptq"
    assert ignored(options, "gptq") == ["--load-in-8bit has no effect with the gptq loader."]
    said: list[str] = []
    model = load(describe_folder(folder), options, said.append)
    try:
        assert len(reply(model)) == 24
    finally:
        model.close()
    assert "--load-in-8bit has no effect with the gptq loader." in said


def test_gptq_takes_nothing_else_and_names_what_does(plain: Path) -> None:
    assert "transformers" in (gptq.why_not(describe_folder(plain), LoadOptions()) or "")


def test_two_files_of_weights_are_a_question_for_the_user(plain: Path, tmp_path: Path) -> None:
    write_gptq(plain, tmp_path / "two", weights="4bit-32g.safetensors")
    (tmp_path / "two" / "4bit-128g.safetensors").write_bytes((tmp_path / "two" / "4bit-32g.safetensors").read_bytes())
    spec = describe_folder(tmp_path / "two")
    with pytest.raises(UserError, match=r"several files|Keep the one"):
        load(replace(spec, problem=None), LoadOptions(cpu=True), lambda sentence: None)


def test_packed_layers_agree_with_gptqmodels_own(plain: Path, tmp_path: Path) -> None:
    """The order of the inputs and the groups survive the packing."""
    exact = write_gptq(plain, tmp_path / "quantised", act_order=True)
    name = "model.layers.0.mlp.down_proj.weight"
    with loaded(tmp_path / "quantised", cpu=True, dtype="float32") as model:
        layer = model._runner.model.model.layers[0].mlp.down_proj  # type: ignore[attr-defined]
        assert type(layer).__name__ == "Int4Linear" and layer.group_size == GROUP
        x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
        expected = x @ exact[name].t()
        assert (layer(x) - expected).abs().max() < 0.05 * expected.std()
