"""Bodies of megabytes: refused with a sentence where they say too much or are no JSON, and read as small ones are."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from modules.api.common import MAX_MESSAGES
from modules.api.large_bodies import SMALL

WORDS = "灯塔 " * SMALL


def ask(server: Any, path: str, body: bytes) -> tuple[int, str]:
    answer = httpx.post(server.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    return answer.status_code, answer.json().get("error", {}).get("message", answer.text)


@pytest.mark.parametrize(("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/responses", "input")])
def test_more_messages_than_a_request_may_have_are_refused_by_their_number(server, path: str, field: str):
    turn = {"role": "user", "content": "x"}
    status, message = ask(server, path, json.dumps({"model": "echo", field: [turn] * (MAX_MESSAGES + 1)}).encode())
    assert (status, message) == (400, f"'{field}' must have at most {MAX_MESSAGES} items.")


def test_what_is_no_json_is_told_with_its_place(server):
    body = json.dumps({"model": "echo", "prompt": WORDS}, ensure_ascii=False)[:-1]
    status, message = ask(server, "/v1/completions", body.encode())
    assert status == 400 and "is not valid JSON" in message and str(len(body)) in message


def test_text_that_is_not_utf_8_is_told(server):
    status, message = ask(server, "/v1/completions", b'{"prompt": "' + b"\xff" * SMALL + b'"}')
    assert status == 400 and "UTF-8" in message


@pytest.mark.parametrize(
    "nested", ["[" * 300 + "]" * 300, '"\\ud800"'], ids=["deeper than pydantic reads", "half a surrogate pair"]
)
def test_what_pydantics_parser_refuses_is_read_as_python_reads_it(server, nested: str):
    body = json.dumps({"model": "echo", "prompt": "x" * SMALL, "foreign": "HERE"}).replace('"HERE"', nested)
    small = json.dumps({"model": "echo", "prompt": "x", "foreign": "HERE"}).replace('"HERE"', nested)
    (status, message), (expected, _) = (
        ask(server, "/v1/completions", body.encode()),
        ask(server, "/v1/completions", small.encode()),
    )
    assert status == expected, message
