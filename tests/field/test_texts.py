"""Texts and lists that no tokenizer, sampler or answer could hold are refused where they come in, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.errors import UserError
from modules.generation.context_overflow import window
from modules.generation.sampling import MAX_BANNED_STRINGS, SamplingParams
from modules.generation.template import Arguments, render_chat
from modules.generation.types import GenerationRequest, Message
from tests.fakes import EchoModel
from tests.in_process import make_app, serving

HALF = chr(0xD83D)


@pytest.mark.parametrize(
    "field",
    [
        {"stop": HALF},
        {"banned_strings": HALF},
        {"banned_strings": ["x", HALF]},
        {"dry_sequence_breakers": "[" * 50_000},
        {"banned_strings": ["x"] * (MAX_BANNED_STRINGS + 1)},
    ],
    ids=["half a stop text", "half a banned text", "half a listed text", "deep breakers", "many banned texts"],
)
def test_they_are_a_400(tmp_path: Path, field: dict[str, Any]) -> None:
    app = make_app(tmp_path, EchoModel(), nowebui=True)
    with serving(app) as url:
        body = json.dumps({"messages": [{"role": "user", "content": "x"}], **field})
        answer = httpx.post(url + "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    app.close()
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("sent", ['{"a": "\\ud83d"}', '{"a": NaN}', '{"a": Infinity}'])
def test_arguments_of_calls_are_json_of_whole_characters(sent: str) -> None:
    with pytest.raises(ValueError):
        Arguments(sent)


def test_a_template_that_spells_half_a_character_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot render this conversation"):
        render_chat("{{ '\\ud800' }}", [Message("user", "x")])


def test_one_token_is_no_room_for_a_prompt_and_a_reply() -> None:
    with pytest.raises(UserError, match="no room") as told:
        window(GenerationRequest("hi", SamplingParams(truncation_length=1)), 100)
    assert told.value.param == "truncation_length"
    assert window(GenerationRequest("hi", SamplingParams(truncation_length=2)), 100) == (2, "drop_oldest")
