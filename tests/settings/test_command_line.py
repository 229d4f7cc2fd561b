"""Flags, environment and settings file become settings; nothing is silently ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.loaders.options import LoadOptions
from modules.loaders.saved_options import SavedOptions
from modules.settings import command_line
from modules.settings.page import PageSettings
from modules.settings.retired import RETIRED
from modules.settings.server import ServerOptions

CLASSES = (ServerOptions, LoadOptions, SamplingParams, PageSettings)

FLAGS_OF_JULY_2023 = """
--notebook --chat --multi-user --character C --model M --lora A B --model-dir D --lora-dir D --model-menu --no-stream
--settings F --extensions a b --verbose --loader exllama_hf --cpu --auto-devices --gpu-memory 10 7 --cpu-memory 20 --disk
--disk-cache-dir D --load-in-8bit --bf16 --no-cache --xformers --sdp-attention --trust-remote-code --load-in-4bit
--compute_dtype bfloat16 --quant_type nf4 --use_double_quant --threads 4 --n_batch 512 --no-mmap --low-vram --mlock
--cache-capacity 2GiB --n-gpu-layers 10 --n_ctx 2048 --llama_cpp_seed 1 --n_gqa 8 --rms_norm_eps 1e-5 --wbits 4
--model_type llama --groupsize 128 --pre_layer 20 10 --checkpoint F --monkey-patch --quant_attn --warmup_autotune
--fused_mlp --gptq-for-llama --autogptq --triton --no_inject_fused_attention --no_inject_fused_mlp --no_use_cuda_fp16
--desc_act --gpu-split 20,7,7 --max_seq_len 4096 --compress_pos_emb 2 --alpha_value 2 --flexgen --percent 0 100 100 0 100 0
--compress-weight --pin-weight True --deepspeed --nvme-offload-dir D --local_rank 0 --rwkv-strategy S --rwkv-cuda-on
--listen --listen-host 127.0.0.1 --listen-port 7000 --share --auto-launch --gradio-auth a:b --gradio-auth-path F --api
--api-blocking-port 5000 --api-streaming-port 5005 --public-api --multimodal-pipeline llava
"""


def flags(line: str, **options):
    return command_line.parse(line.split(), CLASSES, retired=RETIRED, **options)


def flags_of_2023() -> list[list[str]]:
    groups: list[list[str]] = []
    for word in FLAGS_OF_JULY_2023.split():
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    return groups


@pytest.mark.parametrize("words", flags_of_2023(), ids=lambda words: words[0])
def test_every_flag_of_july_2023_is_accepted_or_explained(words):
    parsed = command_line.parse(words, CLASSES, retired=RETIRED)
    given = {name for settings in parsed.settings.values() for name in settings.given()}
    assert given or len(parsed.notes) == 1


def test_the_command_of_the_documents_means_what_it_says():
    parsed = flags("--share --model TheBloke_Llama-2-7B-chat-GPTQ --load-in-8bit --bf16 --auto-devices")
    assert parsed.settings[ServerOptions].given() == {"share": True, "model": "TheBloke_Llama-2-7B-chat-GPTQ"}
    assert parsed.settings[LoadOptions].given() == {"load_in_8bit": True, "bf16": True, "auto_devices": True}
    assert not parsed.notes


def test_a_retired_flag_swallows_its_values_and_says_why():
    parsed = flags("--percent 0 100 100 0 100 0 --wbits 4 --model x")
    assert [note.split()[0] for note in parsed.notes] == ["--percent", "--wbits"]
    assert parsed.settings[ServerOptions].given() == {"model": "x"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--modle x", ["--modle", "--model"]),
        ("--temperature 9", ["--temperature", "5"]),
        ("--listen-port x", ["--listen-port", "integer"]),
        ("--quant_type nf5", ["--quant-type", "nf4"]),
        ("--min-p", ["--min-p", "argument"]),
        ("--load-in-8", ["--load-in-8"]),
        ("stray", ["stray"]),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(line, words):
    with pytest.raises(UserError) as error:
        flags(line)
    assert all(word in error.value.message for word in words), error.value.message


def test_later_sources_win():
    parsed = flags(
        "--top-k 5",
        defaults={"top_k": 1, "top_p": 0.1, "temperature": 0.1},
        environment={"TEXTLOOM_TOP_P": "0.2", "TEXTLOOM_TOP_K": "2", "OTHER": "x"},
    )
    assert parsed.settings[SamplingParams].given() == {"top_k": 5, "top_p": 0.2, "temperature": 0.1}


def test_a_switch_from_a_file_can_be_turned_off_again():
    assert flags("--no-cpu", defaults={"cpu": True}).settings[LoadOptions].cpu is False  # type: ignore[attr-defined]


def test_every_setting_has_one_flag_and_a_help_text(capsys):
    with pytest.raises(SystemExit):
        flags("--help")
    text = capsys.readouterr().out
    for cls in CLASSES:
        for name, field in cls.model_fields.items():
            assert field.description, f"{cls.__name__}.{name} has no help text"
            assert "--" + name.replace("_", "-") in text


def test_the_flags_file_may_have_comments(tmp_path: Path):
    path = tmp_path / "CMD_FLAGS.txt"
    path.write_text("--listen  # for the family\n--model 'a b'\n")
    assert command_line.read_flags_file(path) == ["--listen", "--model", "a b"]
    assert command_line.read_flags_file(tmp_path / "none") == []


def test_a_settings_file_with_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"temperatur.*temperature"):
        flags("", defaults={"temperatur": 1})


@pytest.mark.parametrize(
    "given",
    [
        {"line": "--batch-size 256"},
        {"line": "--batch_size=256"},
        {"line": "", "defaults": {"batch_size": 256}},
        {"line": "", "environment": {"TEXTLOOM_BATCH_SIZE": "256"}},
    ],
    ids=["flag", "flag of 2023's spelling", "settings file", "environment"],
)
def test_a_former_name_is_taken_and_told_in_one_line(given):
    parsed = flags(given.pop("line"), **given)
    assert parsed.settings[LoadOptions].given() == {"prefill_chunk": 256}
    assert parsed.notes == ("batch_size is called prefill_chunk now.",)
    assert not flags("--n_batch 256 --prefill-chunk 256").notes


def test_a_former_name_in_a_request_or_a_saved_entry_is_taken_and_told_once(tmp_path: Path, caplog):
    assert LoadOptions.model_validate({"batch_size": 64}) == LoadOptions(prefill_chunk=64)
    assert LoadOptions.read({"batch_size": 64, "prefill_chunk": 32}).prefill_chunk == 32, "what it is called now counts"
    caplog.clear()
    saved = SavedOptions(tmp_path / "config-user.yaml")
    saved.path.write_text("tiny$: {loader: llamacpp, batch_size: 64}\n")
    assert saved.for_model("tiny") == LoadOptions(loader="llamacpp", prefill_chunk=64)
    assert [record.getMessage() for record in caplog.records] == ["The setting batch_size is called prefill_chunk now."]
