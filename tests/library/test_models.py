"""What lies in models/ is described from headers alone, with a reason where it cannot be loaded, and found by any of its names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from gguf import GGUFWriter
from safetensors.numpy import save_file

from modules.errors import NotFound
from modules.library.gguf_header import FILE_TYPES, TENSOR_TYPES, read_gguf_header
from modules.library.model_spec import ModelShape, Quantization
from modules.library.models import ModelLibrary, describe

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
    "torch_dtype": "float16",
}


def write_folder(path: Path, tensors: dict[str, Any] | None, file: str = "model.safetensors", **config: Any) -> Path:
    """A folder with a config.json and, unless None, one file of weights."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if tensors is not None:
        save_file(tensors, path / file)
    return path


def write_gguf(path: Path, *, architecture: str = "llama", kind: str = "model", layers: int = 2, rows: int = 8) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "b", "c"])
    writer.add_chat_template("{{ messages }}")
    writer.add_file_type(1)
    writer.add_tensor("token_embd.weight", numpy.zeros((rows, 64), dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def half(*shape: int) -> numpy.ndarray:
    return numpy.zeros(shape, dtype=numpy.float16)


def whole(*shape: int) -> numpy.ndarray:
    return numpy.zeros(shape, dtype=numpy.int32)


def gptq_layer(bits: int = 4, inputs: int = 64, outputs: int = 32, group: int = 16, reordered: bool = False) -> dict[str, Any]:
    groups = numpy.arange(inputs, dtype=numpy.int32) // group
    return {
        "model.layers.0.q.qweight": whole(inputs * bits // 32, outputs),
        "model.layers.0.q.qzeros": whole(inputs // group, outputs * bits // 32),
        "model.layers.0.q.scales": half(inputs // group, outputs),
        "model.layers.0.q.g_idx": groups[::-1].copy() if reordered else groups,
    }


# --- folders


def test_a_folder_is_described_as_transformers_sees_it(tiny_llama_folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_llama_folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    spec = describe(tiny_llama_folder)
    assert spec.problem is None
    assert (spec.name, spec.format, spec.architecture, spec.dtype) == ("tiny-llama", "folder", "LlamaForCausalLM", "float32")
    assert spec.parameters == model.num_parameters()
    assert spec.context_length == config.max_position_embeddings
    assert spec.shape == ModelShape(2, 64, 4, 2, 16, config.vocab_size)
    assert spec.chat_template is not None and "<|im_start|>" in spec.chat_template
    assert spec.size_bytes == (tiny_llama_folder / "model.safetensors").stat().st_size


def test_shards_count_together_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sharded", {"a": half(10, 10)}, "model-00001-of-00002.safetensors")
    save_file({"b": half(5, 10)}, folder / "model-00002-of-00002.safetensors")
    index = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert (describe(folder).parameters, describe(folder).dtype) == (150, "float16")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in str(describe(folder).problem)


def test_safetensors_count_and_not_the_same_weights_as_bin(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "both", {"a": half(10, 10)})
    (folder / "pytorch_model.bin").write_bytes(b"x" * 5000)
    assert describe(folder).size_bytes == (folder / "model.safetensors").stat().st_size


def test_pickled_weights_are_measured_not_opened(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "old", None)
    (folder / "pytorch_model.bin").write_bytes(b"x" * 5000)
    (folder / "training_args.bin").write_bytes(b"x" * 999)
    spec = describe(folder)
    assert (spec.size_bytes, spec.parameters, spec.dtype, spec.problem) == (5000, 2500, "float16", None)


@pytest.mark.parametrize(
    ("extra", "quantization"),
    [
        (
            {"quantize_config.json": {"bits": 4, "group_size": 16, "desc_act": True}},
            Quantization("gptq", 4, 16, True, "GPTQ 4-bit 16g"),
        ),
        (
            {"quant_config.json": {"w_bit": 4, "q_group_size": 16, "version": "GEMM"}},
            Quantization("awq", 4, 16, False, "AWQ 4-bit 16g"),
        ),
        ({}, Quantization("gptq", 4, 16, False, "GPTQ 4-bit 16g")),
    ],
)
def test_gptq_is_known_by_its_companion_or_by_the_shapes_alone(
    tmp_path: Path, extra: dict[str, Any], quantization: Quantization
) -> None:
    folder = write_folder(tmp_path / "TheBloke_Llama-2-7B-chat-GPTQ", gptq_layer(), "gptq_model-4bit-128g.safetensors")
    for name, values in extra.items():
        (folder / name).write_text(json.dumps(values))
    spec = describe(folder)
    assert (spec.problem, spec.quantization, spec.parameters) == (None, quantization, 64 * 32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("reordered", [False, True])
def test_bits_groups_and_act_order_are_read_off_the_weights(tmp_path: Path, bits: int, group: int, reordered: bool) -> None:
    layer = gptq_layer(bits, group=group, reordered=reordered and group < 64)
    spec = describe(write_folder(tmp_path / "m", layer, "llama-7b-4bit.safetensors"))
    assert spec.quantization is not None and spec.parameters == 64 * 32
    found = (spec.quantization.method, spec.quantization.bits, spec.quantization.group_size, spec.quantization.desc_act)
    assert found == ("gptq", bits, -1 if group == 64 else group, reordered and group < 64)


def test_awq_is_told_from_gptq_by_its_shapes(tmp_path: Path) -> None:
    layer = {"l.qweight": whole(64, 32 * 4 // 32), "l.qzeros": whole(4, 32 * 4 // 32), "l.scales": half(4, 32)}
    spec = describe(write_folder(tmp_path / "awq", layer))
    assert spec.quantization == Quantization("awq", 4, 16, False, "AWQ 4-bit 16g") and spec.parameters == 64 * 32


def test_quantization_in_the_config_comes_first(tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    spec = describe(write_folder(tmp_path / "m", gptq_layer(), quantization_config=config))
    assert spec.quantization == Quantization("gptq", 4, 128, False, "GPTQ 4-bit 128g")


def test_bitsandbytes_weights_count_as_what_they_stand_for(tmp_path: Path) -> None:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    tensors = {
        "q.weight": numpy.zeros((64 * 32 // 2, 1), dtype=numpy.uint8),
        "q.weight.absmax": numpy.zeros(32, dtype=numpy.float32),
        "q.weight.quant_map": numpy.zeros(16, dtype=numpy.float32),
        "q.weight.quant_state.bitsandbytes__nf4": numpy.zeros(80, dtype=numpy.uint8),
        "norm.weight": half(64),
    }
    spec = describe(write_folder(tmp_path / "nf4", tensors, quantization_config=config))
    assert spec.quantization == Quantization("bitsandbytes", 4, label="bitsandbytes NF4")
    assert spec.parameters == 64 * 32 + 64


@pytest.mark.parametrize(
    ("config", "shape", "context"),
    [
        (
            {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 9, "n_positions": 512},
            (3, 64, 4, 4, 16),
            512,
        ),
        (
            {"model_type": "mpt", "d_model": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 9, "max_seq_len": 65536},
            (3, 64, 4, 4, 16),
            65536,
        ),
        ({"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 9, "multi_query": True}, (3, 64, 4, 1, 16), None),
        (
            {
                "text_config": {
                    "hidden_size": 64,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "head_dim": 32,
                    "vocab_size": 9,
                }
            },
            (3, 64, 4, 4, 32),
            None,
        ),
        ({"model_type": "odd"}, None, None),
    ],
)
def test_other_families_name_the_same_numbers_otherwise(
    tmp_path: Path, config: dict[str, Any], shape: tuple[int, ...] | None, context: int | None
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"a": half(2, 2)}, folder / "model.safetensors")
    spec = describe(folder)
    assert spec.shape == (ModelShape(*shape, vocabulary=9) if shape else None)
    assert spec.context_length == context


def test_code_of_its_own_matters_only_where_transformers_has_none(tmp_path: Path) -> None:
    known = write_folder(tmp_path / "known", {"a": half(1)}, auto_map={"AutoModel": "x.Y"}, model_type="mpt")
    unknown = write_folder(tmp_path / "unknown", {"a": half(1)}, auto_map={"AutoModel": "x.Y"}, model_type="no_such_family")
    assert (describe(known).custom_code, describe(unknown).custom_code) == (False, True)


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", {"a": half(1)})
    templates = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert describe(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert describe(folder).chat_template == "J"


def break_nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def cut(file: str, keep: float) -> Any:
    def cut_file(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * keep)])

    return cut_file


def replace(file: str, text: str | None) -> Any:
    def replace_file(folder: Path) -> None:
        (folder / file).unlink()
        if text is not None:
            (folder / file).write_text(text)

    return replace_file


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_nothing, "no config.json and no weights"),
        (replace("model.safetensors", None), "no weights"),
        (replace("config.json", None), "no config.json"),
        (replace("config.json", "{"), "not valid JSON"),
        (replace("config.json", "[1]"), "not a JSON object"),
        (cut("model.safetensors", 0.9), "cut off"),
        (cut("model.safetensors", 0.001), "cut off"),
        (cut("model.safetensors", 0), "is empty"),
        (replace("model.safetensors", "<html>Sign in to download</html>"), "is a web page"),
    ],
)
def test_a_damaged_folder_is_listed_with_its_reason(tmp_path: Path, damage: Any, reason: str) -> None:
    folder = write_folder(tmp_path / "m", {"a": half(100, 100)})
    damage(folder)
    (spec,) = ModelLibrary(tmp_path).all()
    assert reason in str(spec.problem)


def test_metas_own_format_says_how_to_convert_it(tmp_path: Path) -> None:
    folder = tmp_path / "llama-2-7b-chat"
    folder.mkdir()
    (folder / "params.json").write_text("{}")
    (folder / "consolidated.00.pth").write_bytes(b"x")
    assert "--from-meta models/llama-2-7b-chat" in str(describe(folder).problem)


def test_an_adapter_in_the_wrong_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "loras/" in str(describe(tmp_path / "lora").problem)


# --- .gguf


def test_our_tables_agree_with_the_gguf_package() -> None:
    from gguf.constants import GGML_QUANT_SIZES, LlamaFileType

    assert {kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()} == TENSOR_TYPES
    names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    names.pop(LlamaFileType.GUESSED.value)
    assert names == FILE_TYPES


def test_a_gguf_file_is_described(tmp_path: Path) -> None:
    spec = describe(write_gguf(tmp_path / "small.gguf"))
    assert (spec.name, spec.format, spec.architecture, spec.problem) == ("small.gguf", "gguf", "llama", None)
    assert (spec.dtype, spec.quantization, spec.parameters) == ("float16", None, 8 * 64)
    assert spec.shape == ModelShape(2, 64, 4, 2, 16, 3)
    assert (spec.context_length, spec.chat_template) == (4096, "{{ messages }}")


@pytest.mark.slow
def test_the_starter_is_described_and_its_length_is_known_to_the_byte(starter_gguf: Path) -> None:
    spec = describe(starter_gguf)
    assert spec.quantization is not None
    assert (spec.quantization.label, spec.parameters, spec.context_length) == ("Q4_1", 134_515_008, 8192)
    assert read_gguf_header(starter_gguf).expected_size == starter_gguf.stat().st_size


def test_every_place_a_gguf_file_can_be_cut_at_is_noticed(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut_file = tmp_path / "cut.gguf"
    for length in range(0, len(data), 7):
        cut_file.write_bytes(data[:length])
        assert describe(cut_file).problem, f"cut at {length} of {len(data)}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>not found</html>", "not a GGUF file"),
        (b"ggjt\x03\0\0\0" + bytes(100), "GGML"),
        (b"GGUF\x01\0\0\0" + bytes(100), "version 1"),
        (b"GGUF\0\0\0\x03" + bytes(100), "big-endian"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 100, "cut off or damaged"),
    ],
)
def test_what_is_no_gguf_says_what_it_is(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "odd.gguf").write_bytes(data)
    assert reason in str(describe(tmp_path / "odd.gguf").problem)


def test_a_numbered_set_is_one_model(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "big-00001-of-00002.gguf")
    second = write_gguf(tmp_path / "big-00002-of-00002.gguf")
    library = ModelLibrary(tmp_path)
    (spec,) = library.all()
    assert (spec.name, spec.path, spec.problem) == ("big.gguf", first, None)
    assert spec.size_bytes == first.stat().st_size + second.stat().st_size and spec.parameters == 2 * 8 * 64
    second.unlink()
    assert "big-00002-of-00002.gguf is missing" in str(library.find("big").problem)


def test_gguf_files_in_a_folder_are_models(tmp_path: Path) -> None:
    (tmp_path / "ORG_one").mkdir()
    (tmp_path / "ORG_two").mkdir()
    write_gguf(tmp_path / "ORG_one" / "m.Q4_K_M.gguf")
    write_gguf(tmp_path / "ORG_two" / "m.Q4_K_M.gguf")
    write_gguf(tmp_path / "ORG_two" / "m.Q8_0.gguf")
    write_gguf(tmp_path / "ORG_two" / "mmproj-m.gguf", architecture="clip", kind="mmproj")
    library = ModelLibrary(tmp_path)
    assert [spec.name for spec in library.all()] == ["ORG_one", "ORG_two/m.Q4_K_M.gguf", "ORG_two/m.Q8_0.gguf"]
    assert library.find("ORG/one").path.name == "m.Q4_K_M.gguf"
    assert library.find("ORG_two/m.Q8_0").vision


@pytest.mark.parametrize(("kind", "architecture", "reason"), [("adapter", "llama", "loras/"), ("mmproj", "clip", "image part")])
def test_a_gguf_that_is_no_model_is_told(tmp_path: Path, kind: str, architecture: str, reason: str) -> None:
    assert reason in str(describe(write_gguf(tmp_path / "x.gguf", kind=kind, architecture=architecture)).problem)


# --- remote


def test_an_address_in_a_yaml_file_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "work.yaml").write_text("base_url: http://127.0.0.1:8000/v1\nmodel: big\ncontext_length: 4096\n")
    (tmp_path / "bad.yaml").write_text("address: nowhere\n")
    (tmp_path / "worse.yaml").write_text("a: [")
    (tmp_path / "config-user.yaml").write_text("x$:\n  cpu: true\n")
    entries = {spec.name: spec for spec in ModelLibrary(tmp_path).all()}
    assert set(entries) == {"work", "bad", "worse"}
    assert (entries["work"].format, entries["work"].endpoint) == ("remote", "http://127.0.0.1:8000/v1")
    assert entries["work"].context_length == 4096
    assert "base_url" in str(entries["bad"].problem) and "YAML" in str(entries["worse"].problem)


# --- the library as a whole


@pytest.fixture
def library(tmp_path: Path) -> ModelLibrary:
    models = tmp_path / "models"
    write_folder(models / "TheBloke_Llama-2-7B-chat-GPTQ", {"a": half(1)})
    write_folder(models / "org_name_branch", {"a": half(1)})
    write_gguf(models / "Small.Q4_1.gguf")
    (models / "README.md").write_text("text")
    (models / ".starter-1").mkdir()
    (models / "ORG_half.part").mkdir()
    write_folder(tmp_path / "outside", {"a": half(1)})
    return ModelLibrary(models)


def test_unfinished_and_hidden_things_are_no_models(library: ModelLibrary) -> None:
    assert [spec.name for spec in library.all()] == ["org_name_branch", "Small.Q4_1.gguf", "TheBloke_Llama-2-7B-chat-GPTQ"]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("TheBloke_Llama-2-7B-chat-GPTQ", "TheBloke_Llama-2-7B-chat-GPTQ"),
        ("TheBloke/Llama-2-7B-chat-GPTQ", "TheBloke_Llama-2-7B-chat-GPTQ"),
        ("TheBloke/Llama-2-7B-chat-GPTQ:main", "TheBloke_Llama-2-7B-chat-GPTQ"),
        ("thebloke/llama-2-7b-chat-gptq", "TheBloke_Llama-2-7B-chat-GPTQ"),
        ("models/TheBloke_Llama-2-7B-chat-GPTQ/", "TheBloke_Llama-2-7B-chat-GPTQ"),
        ("org/name:branch", "org_name_branch"),
        ("Small.Q4_1", "Small.Q4_1.gguf"),
        ("Small.Q4_1.gguf", "Small.Q4_1.gguf"),
    ],
)
def test_a_model_is_found_by_any_of_its_names(library: ModelLibrary, asked: str, name: str) -> None:
    assert library.find(asked).name == name


@pytest.mark.parametrize("name", ["../outside", "..", ".", "", "/etc", "ORG_half.part", ".starter-1", "README.md"])
def test_a_name_never_leaves_the_folder(library: ModelLibrary, name: str) -> None:
    with pytest.raises(NotFound):
        library.find(name)


def test_a_misspelt_name_gets_the_near_ones(library: ModelLibrary) -> None:
    with pytest.raises(NotFound, match=r"Did you mean TheBloke_Llama-2-7B-chat-GPTQ\?"):
        library.find("TheBloke/Llama-2-7B-GPTQ")


def test_an_empty_folder_says_how_to_get_a_model(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"download-model\.py"):
        ModelLibrary(tmp_path / "none").find("x")
    assert ModelLibrary(tmp_path / "none").all() == []


def test_a_file_that_changed_is_read_again(library: ModelLibrary) -> None:
    path = library.find("Small.Q4_1").path
    write_gguf(path, layers=5)
    os.utime(path, ns=(1, 1))
    shape = library.find("Small.Q4_1").shape
    assert shape is not None and shape.layers == 5


@pytest.mark.alone
def test_a_hundred_models_are_listed_quickly_and_the_second_time_at_once(tmp_path: Path) -> None:
    for number in range(50):
        write_folder(tmp_path / f"folder-{number}", {f"layer.{index}": half(2, 2) for index in range(200)})
    write_gguf(tmp_path / "file-0.gguf")
    for number in range(1, 50):
        shutil.copy(tmp_path / "file-0.gguf", tmp_path / f"file-{number}.gguf")
    library = ModelLibrary(tmp_path)
    begin = time.perf_counter()
    assert len(library.all()) == 100
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    library.all()
    second = time.perf_counter() - begin
    assert first < 3 and second < 0.5, (first, second)


def test_listing_imports_no_heavy_library() -> None:
    code = (
        "import sys; from pathlib import Path; from modules.library.models import ModelLibrary; "
        "ModelLibrary(Path('models')).all(); "
        "print([name for name in ('torch', 'transformers', 'gguf', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
