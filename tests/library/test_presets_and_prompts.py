"""Presets and prompts: the shipped ones are what people know them as; one's own are kept under safe names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from modules.errors import Forbidden, NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.library.paths import path_inside, write_text, written_whole
from modules.library.presets import PresetLibrary
from modules.library.prompts import PromptLibrary

ROOT = Path(__file__).resolve().parents[2]
PRESETS = PresetLibrary(ROOT / "presets")
PROMPTS = PromptLibrary(ROOT / "prompts")

KNOWN = {
    "Asterism": {"temperature": 1.68, "top_p": 0.17, "repetition_penalty": 1.02, "top_k": 77},
    "Big O": {
        "temperature": 0.87,
        "top_p": 0.99,
        "typical_p": 0.68,
        "tfs": 0.68,
        "repetition_penalty": 1.01,
        "top_k": 85,
    },
    "Contrastive Search": {"do_sample": False, "top_k": 4, "penalty_alpha": 0.3},
    "Debug-deterministic": {"do_sample": False},
    "Divine Intellect": {"temperature": 1.31, "top_p": 0.14, "repetition_penalty": 1.17, "top_k": 49},
    "Kobold-Godlike": {"temperature": 0.7, "top_p": 0.5, "typical_p": 0.19, "repetition_penalty": 1.1},
    "LLaMA-Precise": {"temperature": 0.7, "top_p": 0.1, "repetition_penalty": 1.18, "top_k": 40},
    "Midnight Enigma": {"temperature": 0.98, "top_p": 0.37, "repetition_penalty": 1.18, "top_k": 100},
    "Mirostat": {"mirostat_mode": 2, "mirostat_tau": 8.0},
    "Shortwave": {"temperature": 1.53, "top_p": 0.64, "repetition_penalty": 1.07, "top_k": 33},
    "Space Alien": {"temperature": 1.31, "top_p": 0.29, "repetition_penalty": 1.09, "top_k": 72},
    "StarChat": {"temperature": 0.2, "top_p": 0.95, "top_k": 50},
    "Titanic": {
        "temperature": 1.01,
        "top_p": 0.21,
        "repetition_penalty": 1.21,
        "encoder_repetition_penalty": 1.07,
        "top_k": 91,
    },
    "Yara": {"temperature": 0.82, "top_p": 0.21, "repetition_penalty": 1.19, "top_k": 72},
    "simple-1": {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.15, "top_k": 20},
    "tfs-with-top-a": {"temperature": 0.7, "tfs": 0.95, "top_a": 0.2, "repetition_penalty": 1.15},
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_preset_has_the_values_people_know(name: str) -> None:
    assert PRESETS.read(name).differences() == KNOWN[name]


@pytest.mark.parametrize("name", PRESETS.names())
def test_every_preset_can_be_read_and_changes_something(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert PRESETS.read(name).differences()
    assert not caplog.records


def test_a_preset_keeps_only_the_differences(tmp_path: Path) -> None:
    library = PresetLibrary(tmp_path)
    sampling = SamplingParams(temperature=0.3, stop=("END", "\n"), logit_bias={"5": -100}, max_tokens=512)
    library.save("我的", sampling)
    text = (tmp_path / "我的.yaml").read_text(encoding="utf-8")
    assert "temperature: 0.3\n" in text and "max_tokens" not in text
    assert library.read("我的") == sampling
    library.save("plain", SamplingParams())
    assert library.read("plain") == SamplingParams()
    library.delete("我的")
    assert library.names() == ["plain"]
    with pytest.raises(NotFound):
        library.delete("我的")


def test_a_preset_of_another_program_is_read_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "Old.yaml").write_text("max_new_tokens: 200\ntemperature: 0.5\nnum_beams: 4\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert PresetLibrary(tmp_path).read("Old").differences() == {"max_tokens": 200, "temperature": 0.5}
    assert "num_beams" in caplog.text


@pytest.mark.parametrize("text", ["temperature: -1", "temperature: [", "- a\n- b", "top_p: warm"])
def test_a_broken_preset_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "Broken.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        PresetLibrary(tmp_path).read("Broken")


def test_a_missing_preset_names_those_that_exist() -> None:
    with pytest.raises(NotFound, match="simple-1"):
        PRESETS.read("nosuch")


def test_the_shipped_prompts_cover_what_people_try_first() -> None:
    assert {"QA", "Alpaca", "Alpaca with input", "Vicuna", "Llama-2-chat", "法律判决预测"} <= set(PROMPTS.names())
    assert PROMPTS.read("Alpaca").endswith("### Response:\n")
    assert PROMPTS.read("Llama-2-chat").endswith("[/INST]")
    assert "案件事实" in PROMPTS.read("法律判决预测")


def test_a_prompt_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path / "prompts")
    for text in ("one line", "ends with lines\n\n", "", "多行\n文字 🙂"):
        library.save("mine", text)
        assert library.read("mine") == text
    library.delete("mine")
    assert library.names() == []


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "", "  ", ".x", "x.", "C:", "nul", "con.txt", "a\0b", "a\nb", "x" * 201]
)
def test_a_name_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        path_inside(tmp_path, name, ".yaml")
    with pytest.raises(UserError):
        PromptLibrary(tmp_path).save(name, "text")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ["simple-1", "Big O", "v1.1", "法律", "a (b) [c]", "it's"])
def test_ordinary_names_are_allowed(tmp_path: Path, name: str) -> None:
    assert path_inside(tmp_path, f" {name} ", ".yaml") == tmp_path / f"{name}.yaml"


def test_a_file_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), written_whole(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_each_owner_has_presets_of_their_own_beside_the_shared_ones(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "warm.yaml").write_text("temperature: 1.5\n", encoding="utf-8")
    library = PresetLibrary(tmp_path / "shared", tmp_path / "own")
    ann, bob = library.of("ann"), library.of("../bob")
    ann.save("mine", SamplingParams(top_k=7))
    ann.save("warm", SamplingParams(temperature=1.2))
    assert (ann.names(), bob.names(), library.names()) == (["mine", "warm"], ["warm"], ["warm"])
    assert (ann.read("warm").temperature, bob.read("warm").temperature) == (1.2, 1.5)
    with pytest.raises(NotFound):
        bob.read("mine")
    with pytest.raises(Forbidden, match="everybody"):
        bob.delete("warm")
    ann.delete("warm")
    assert ann.read("warm").temperature == 1.5
    assert {path.parent for path in (tmp_path / "own").rglob("*.yaml")} == {ann.folder}
