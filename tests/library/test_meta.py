"""Meta's checkpoints: converted they compute and cut text as before, and they are fetched as by download.sh."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.errors import Conflict, NotAllowed, Unavailable, UserError
from modules.generation.template import render_chat
from modules.generation.types import Message
from modules.library import meta, meta_download
from modules.library.meta import convert_meta, default_name, halves
from modules.library.meta_download import SIZES, fetch_from_meta, parse_sizes
from modules.library.models import ModelLibrary, describe
from modules.library.templates import TemplateLibrary
from tests.library.meta_format import _neighbours, make_llama, write_meta
from tests.library.meta_server import MetaServer, running_meta_server

ROOT = Path(__file__).resolve().parents[2]


def quiet(_: str) -> None: ...


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["llama-2-7b: every head its own keys", "llama-2-70b: grouped"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_converted_checkpoint_gives_the_same_logits(tmp_path: Path, kv_heads: int, parts: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    original = make_llama(kv_heads)
    target = convert_meta(write_meta(original, tmp_path / "llama-2-tiny", parts), tmp_path / "llama-2-tiny-hf", say=quiet)
    converted = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    tokens = torch.arange(3, 60)[None]
    with torch.inference_mode():
        difference = (converted(tokens).logits - original(tokens).logits).abs().max().item()
    assert difference < 1e-4
    assert describe(target).problem is None and describe(target).context_length == 4096


def test_large_models_come_in_several_files_and_memory_holds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    original = make_llama(4)
    monkeypatch.setattr(meta, "SHARD", 100_000)
    target = convert_meta(write_meta(original, tmp_path / "llama-2-tiny", 2), tmp_path / "out", say=quiet)
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 3 and all(file.stat().st_size < 300_000 for file in files)
    converted = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    weights = original.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in converted.state_dict().items())
    assert describe(target).parameters == sum(weight.numel() for weight in weights.values())


def test_reordering_the_rows_is_undone_by_its_inverse() -> None:
    import torch

    weight = torch.randn(32, 8)
    assert torch.equal(halves(_neighbours(weight, 4), 4), weight)


def test_text_is_cut_into_the_tokens_that_meta_cuts_it_into(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    folder = write_meta(make_llama(4), tmp_path / "llama-2-tiny-chat", 1)
    tokenizer = AutoTokenizer.from_pretrained(convert_meta(folder, tmp_path / "out", say=quiet))
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))  # type: ignore[call-arg]
    for text in ["the cat", " lead", "two  spaces", "2024 + 4", "谢谢 🙂", "line\nline\n", "tail ", "", "[INST] a [/INST]"]:
        assert tokenizer(text).input_ids == [1, *pieces.encode(text)], text
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    source = TemplateLibrary(ROOT / "prompts" / "templates").read("Llama-2")
    dialog = [
        Message("system", "You are brief."),
        Message("user", "why"),
        Message("assistant", "the sky"),
        Message("user", "what"),
    ]
    text = render_chat(source, dialog, variables={"bos_token": "<s>", "eos_token": "</s>"})
    # generation.py of Meta: each answered turn is encoded by itself, with BOS and EOS.
    first = "[INST] <<SYS>>\nYou are brief.\n<</SYS>>\n\nwhy [/INST] the sky "
    expected = [1, *pieces.encode(first), 2, 1, *pieces.encode("[INST] what [/INST]")]
    assert tokenizer(text, add_special_tokens=False).input_ids == expected


def test_the_tokenizer_may_lie_one_folder_up_as_meta_has_it(tmp_path: Path) -> None:
    folder = write_meta(make_llama(4), tmp_path / "7B", 1)
    shutil.move(folder / "tokenizer.model", tmp_path / "tokenizer.model")
    target = convert_meta(folder, tmp_path / "models" / default_name(folder), say=quiet)
    assert target.name == "llama-7b-hf" and (target / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("params.json", None, "must hold"),
        ("consolidated.00.pth", None, "not whole"),
        ("consolidated.01.pth", b"PK\x03\x04 no", "damaged"),
        ("tokenizer.model", None, "tokenizer.model is neither"),
        ("tokenizer.model", b"tiktoken of Llama 3", "not Llama 1 or 2"),
        ("params.json", b"{", "not valid JSON"),
    ],
)
def test_what_is_missing_or_damaged_is_told_and_leaves_nothing(
    tmp_path: Path, file: str, content: bytes | None, reason: str
) -> None:
    folder = write_meta(make_llama(4), tmp_path / "llama-2-tiny", 2)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        convert_meta(folder, tmp_path / "models" / "out", say=quiet)
    assert not list((tmp_path / "models").glob("*"))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "ran"),))  # type: ignore[return-value]

    folder = write_meta(make_llama(4), tmp_path / "llama-2-tiny", 1)
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match="something else than weights"):
        convert_meta(folder, tmp_path / "out", say=quiet)
    assert not (tmp_path / "ran").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_meta(make_llama(4), tmp_path / "llama-2-tiny", 1)
    (tmp_path / "out").mkdir()
    with pytest.raises(Conflict, match="--name"):
        convert_meta(folder, tmp_path / "out", say=quiet)


# --- from Meta's server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MetaServer]:
    folder = write_meta(make_llama(4), tmp_path / "source" / "llama-2-13b-chat", 2)
    tokenizer = (folder / "tokenizer.model").read_bytes()
    files = {f"llama-2-13b-chat/{file.name}": file.read_bytes() for file in folder.glob("*") if file.name != "tokenizer.model"}
    sums = "".join(f"{hashlib.md5(data).hexdigest()}  {name.split('/')[1]}\n" for name, data in files.items())
    files["llama-2-13b-chat/checklist.chk"] = sums.encode()
    files |= {"tokenizer.model": tokenizer, "LICENSE": b"terms", "USE_POLICY.md": b"policy"}
    files["tokenizer_checklist.chk"] = f"{hashlib.md5(tokenizer).hexdigest()}  tokenizer.model\n".encode()
    with running_meta_server(files) as server:
        yield server


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "13B-chat", meta_download.MetaSize("llama-2-13b-chat", 2, 1_000_000))


def fetch(server: MetaServer, models: Path, **options: int) -> list[Path]:
    return list(fetch_from_meta(server.address, parse_sizes("13B-chat"), models, say=quiet, **options))


def test_a_model_is_fetched_with_the_signed_address_and_can_be_converted(server: MetaServer, tmp_path: Path) -> None:
    (folder,) = fetch(server, tmp_path / "models")
    names = ["LICENSE", "USE_POLICY.md", "checklist.chk", "consolidated.00.pth", "consolidated.01.pth", "params.json"]
    assert sorted(file.name for file in folder.iterdir()) == [*names, "tokenizer.model", "tokenizer_checklist.chk"]
    assert describe(convert_meta(folder, tmp_path / "models" / default_name(folder), say=quiet)).problem is None
    server.asked.clear()
    assert fetch(server, tmp_path / "models") == [folder] and server.asked == []


def test_a_broken_line_is_taken_up_and_an_interrupted_fetch_goes_on(server: MetaServer, tmp_path: Path) -> None:
    name = "llama-2-13b-chat/consolidated.01.pth"
    server.break_after[name] = [300_000, 0]
    with pytest.raises(Unavailable, match=r"consolidated\.01\.pth cannot be fetched"):
        fetch(server, tmp_path / "models", retries=1)
    assert ModelLibrary(tmp_path / "models").all() == []
    server.asked.clear()
    (folder,) = fetch(server, tmp_path / "models")
    assert [path for path, first in server.asked if first > 0] == [name]
    assert not any(path == "llama-2-13b-chat/consolidated.00.pth" for path, _ in server.asked)
    assert (folder / "consolidated.01.pth").read_bytes() == server.files[name]


def test_a_wrong_sum_is_told_and_fetched_again(server: MetaServer, tmp_path: Path) -> None:
    right = server.files["llama-2-13b-chat/consolidated.00.pth"]
    server.files["llama-2-13b-chat/consolidated.00.pth"] = right[:-1] + b"?"
    with pytest.raises(Unavailable, match=r"consolidated\.00\.pth arrived damaged"):
        fetch(server, tmp_path)
    assert not (tmp_path / "llama-2-13b-chat").exists()
    server.files["llama-2-13b-chat/consolidated.00.pth"] = right
    assert len(fetch(server, tmp_path)) == 1


def test_an_address_that_is_too_old_is_told(server: MetaServer, tmp_path: Path) -> None:
    server.expired = True
    with pytest.raises(NotAllowed, match="24 hours"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("address", ["http://127.0.0.1/no-star", "file:///etc/*", "nonsense"])
def test_what_is_no_signed_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="e-mail"):
        list(fetch_from_meta(address, parse_sizes("7B"), tmp_path, say=quiet))


def test_sizes_are_named_as_meta_names_them() -> None:
    assert [size.folder for size in parse_sizes("7B, 70b-chat")] == ["llama-2-7b", "llama-2-70b-chat"]
    assert [SIZES[name].parts for name in ("7B", "13B", "70B")] == [1, 2, 8]
    for text in ("", "8B", "7B,nope"):
        with pytest.raises(UserError, match="7B-chat"):
            parse_sizes(text)


def test_params_json_tells_the_heads(tmp_path: Path) -> None:
    folder = write_meta(make_llama(2), tmp_path / "m", 1)
    assert meta.heads_of(json.loads((folder / "params.json").read_text())) == (4, 2)
