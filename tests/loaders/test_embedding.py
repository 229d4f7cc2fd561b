"""An encoder beside the chat model, and the ways in which its states become one vector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modules.errors import UserError
from modules.library.models import describe
from modules.loaders.embedding import Recipe, load, pooled, read_recipe
from modules.loaders.options import LoadOptions

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
]


def write_tiny_encoder(folder: Path, **files: object) -> Path:
    """A BERT of two layers with random weights; files: what sentence-transformers wrote beside it, by name."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    for name, value in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(value), encoding="utf-8")
    return folder


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny-encoder")


def direct(folder: Path, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """States [tokens, hidden] by transformers itself, and the ids."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder)(ids).last_hidden_state[0], ids[0]


def test_texts_of_all_lengths_get_the_vector_that_each_gets_alone(encoder):
    model = load(describe(encoder), LoadOptions(cpu=True))
    texts = ["a", "the cat sat on a mat", "hello", "abc def"]
    vectors = model.embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        states, ids = direct(encoder, text)
        expected = torch.nn.functional.normalize(states.mean(0), dim=0)
        assert torch.allclose(torch.tensor(vector), expected, atol=1e-5)
        assert model.tokenize(text, special=True) == ids.tolist()
    assert (model.context_length, model.detokenize(model.tokenize("abc"))) == (64, "abc")
    with pytest.raises(UserError, match="not a token"):
        model.detokenize([10_000])


def test_what_sentence_transformers_wrote_is_followed(tmp_path):
    folder = write_tiny_encoder(
        tmp_path / "cls",
        modules=MODULES,
        **{
            "1_Pooling__config": {
                "word_embedding_dimension": 32,
                "pooling_mode_cls_token": True,
                "pooling_mode_mean_tokens": False,
            }
        },
        sentence_bert_config={"max_seq_length": 12, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "ask "}, "default_prompt_name": "query"},
    )
    assert read_recipe(folder) == Recipe("cls", 12, True, "ask ")
    model = load(describe(folder), LoadOptions(cpu=True))
    states, _ = direct(folder, "ask abc")
    expected = torch.nn.functional.normalize(states[0], dim=0)
    assert torch.allclose(torch.tensor(model.embed(["ABC"])[0]), expected, atol=1e-5)
    assert model.context_length == 12


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "lasttoken"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
    ],
)
def test_every_way_of_pooling_is_read(tmp_path, config, pooling):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (tmp_path / "modules.json").write_text(json.dumps(MODULES))
    assert read_recipe(tmp_path).pooling == pooling


@pytest.mark.parametrize(
    ("modules", "pooling", "words"),
    [
        ({}, {}, "not a list"),
        ([*MODULES, {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}], {"pooling_mode": "mean"}, "Dense"),
        (MODULES, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls and mean"),
        (MODULES, {}, "nothing"),
    ],
)
def test_what_is_not_known_is_refused_in_words(tmp_path, modules, pooling, words):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=words):
        read_recipe(tmp_path)


def test_filler_never_counts():
    states = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    expected = {
        "mean": [2.0, -3.0],
        "cls": [1.0, -4.0],
        "max": [3.0, -2.0],
        "lasttoken": [3.0, -2.0],
        "mean_sqrt_len_tokens": [4 / 2**0.5, -6 / 2**0.5],
        "weightedmean": [7 / 3, -8 / 3],
    }
    for way, vector in expected.items():
        assert torch.allclose(pooled(states, mask, way), torch.tensor([vector])), way  # type: ignore[arg-type]
