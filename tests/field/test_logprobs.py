"""Log-probabilities: the tokens' own bytes, which join to the text; none lost by a reader that holds text back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.chats.token_data import pack, unpack
from modules.generation.llamacpp.model import LlamacppModel
from modules.generation.local.model import Limits, LocalModel
from modules.generation.remote.response_parser import ChunkReader
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel, TextDelta, Token, TokenAlternative, name_of, own_bytes
from modules.services.tokens import token_row
from tests.api.conftest import servers
from tests.fakes import EchoModel
from tests.in_process import make_app, serving
from tests.tiny import CHATML

CHINESE = "饕餮🙂"
ASKED = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@pytest.fixture(scope="module")
def addresses(local: LocalModel, llamacpp: LlamacppModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Servers whose models write bytes, three for each Chinese character."""
    apps = {name: make_app(tmp_path_factory.mktemp(name), model) for name, model in (("local", local), ("llamacpp", llamacpp))}
    with serving(apps["local"]) as one, serving(apps["llamacpp"]) as other:
        yield {"local": one, "llamacpp": other}
    for app in apps.values():
        app.close()


@pytest.fixture(params=["local", "llamacpp"])
def address(request: pytest.FixtureRequest, addresses: dict[str, str]) -> str:
    return addresses[request.param]


def post(url: str, body: Any) -> Any:
    answer = httpx.post(url, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(url: str, body: Any) -> list[Any]:
    with httpx.stream("POST", url, json={**body, "stream": True}, timeout=120) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def says(text: str) -> dict[str, Any]:
    """A form that leaves the model no choice but `text`."""
    return {"grammar": f"root ::= {json.dumps(text, ensure_ascii=False)}", "max_tokens": 40}


# --- bytes


def test_the_bytes_of_a_chinese_reply_are_each_tokens_own(address: str) -> None:
    body = {**ASKED, **says(CHINESE), "logprobs": True, "top_logprobs": 5}
    reply = post(f"{address}/v1/chat/completions", body)["choices"][0]
    entries = reply["logprobs"]["content"]
    assert reply["message"]["content"] == CHINESE
    assert [entry["bytes"] for entry in entries] == [[byte] for byte in CHINESE.encode()]
    assert entries[0]["token"] == "\\xe9"
    assert all(entry["logprob"] < 0 for entry in entries)
    for entry in entries:
        names = [other["token"] for other in entry["top_logprobs"]]
        assert len(set(names)) == len(names) == 5


def test_streamed_entries_are_those_of_the_whole_reply(address: str) -> None:
    body = {**ASKED, **says(f"a{CHINESE}b"), "logprobs": True, "top_logprobs": 2}
    whole = post(f"{address}/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    chunks = streamed(f"{address}/v1/chat/completions", body)
    parts = [
        entry for chunk in chunks for choice in chunk["choices"] for entry in (choice["logprobs"] or {}).get("content", [])
    ]
    assert [(part["token"], part["bytes"]) for part in parts] == [(entry["token"], entry["bytes"]) for entry in whole]
    assert [part["logprob"] for part in parts] == pytest.approx([entry["logprob"] for entry in whole], abs=1e-3)


def test_whatever_a_model_writes_its_bytes_join_to_the_text(address: str) -> None:
    """Random weights write broken bytes and marks, which are left out of the text."""
    for seed in range(4):
        body = {**ASKED, "max_tokens": 48, "logprobs": True, "temperature": 1, "seed": seed, "min_tokens": 32}
        reply = post(f"{address}/v1/chat/completions", body)
        entries = reply["choices"][0]["logprobs"]["content"]
        joined = bytes(byte for entry in entries for byte in entry["bytes"] or [])
        assert joined.decode("utf-8", "ignore") == reply["choices"][0]["message"]["content"]


def test_completions_write_parts_of_characters_as_vllm_does(address: str) -> None:
    body = {"prompt": "hi", "temperature": 0, **says(f"a{CHINESE}"), "logprobs": 5}
    reply = post(f"{address}/v1/completions", body)["choices"][0]
    assert reply["text"] == f"a{CHINESE}"
    told = reply["logprobs"]
    assert told["tokens"] == ["a", *(f"bytes:\\x{byte:02x}" for byte in CHINESE.encode())]
    # A character stands where its first part does, and the next one after its last.
    assert told["text_offset"] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert all(len(other) >= 5 for other in told["top_logprobs"])


def test_next_tokens_are_told_apart(address: str) -> None:
    found = post(f"{address}/v1/internal/logits", {"prompt": "hi", "top": 200})["tokens"]
    assert len({token["text"] for token in found}) == len(found) == 200
    halves = [token for token in found if token["text"].startswith("\\x")]
    assert len(halves) > 50
    assert all(token["text"] == "".join(f"\\x{byte:02x}" for byte in token["bytes"]) for token in halves)


def test_an_echoed_chinese_prompt_has_its_own_bytes(addresses: dict[str, str]) -> None:
    body = {"prompt": CHINESE, "max_tokens": 1, "echo": True, "logprobs": 0, "add_bos": False}
    reply = post(f"{addresses['local']}/v1/completions", body)["choices"][0]
    assert reply["text"].startswith(CHINESE)
    assert reply["logprobs"]["tokens"][:4] == ["bytes:\\xe9", "bytes:\\xa5", "bytes:\\x95", "bytes:\\xe9"]
    assert reply["logprobs"]["text_offset"][:4] == [0, 0, 0, 1]


def test_llama_cpp_scores_parts_of_characters_as_the_weights_do(local: LocalModel, llamacpp: LlamacppModel) -> None:
    def told(model: LoadedModel) -> list[Token]:
        sampling = SamplingParams.read({"do_sample": False, **says(f"{CHINESE}x{CHINESE}")})
        with model.stream(GenerationRequest("hi", sampling, logprobs=3)) as events:
            return [token for event in events if isinstance(event, TextDelta) for token in event.details]

    ours, theirs = told(local), told(llamacpp)
    assert [token.id for token in theirs] == [token.id for token in ours]
    assert [token.logprob for token in theirs] == pytest.approx([token.logprob for token in ours], abs=0.05)
    assert [[other.id for other in token.alternatives] for token in theirs][:3] == [
        [other.id for other in token.alternatives] for token in ours
    ][:3]


def test_a_tokenizer_that_drops_the_space_before_a_word_still_tells_it(tiny_llama_folder: Path) -> None:
    """Llama 2's kind: decoded by itself, "▁there" has no space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "hi", "▁hi", "▁there", *(f"<0x{byte:02X}>" for byte in range(256))][:260]
    known = {piece: at for at, piece in enumerate(pieces)}
    whole = Tokenizer(models.BPE(vocab=known, merges=[], unk_token="<unk>", byte_fallback=True))
    whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    whole.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    model = LocalModel("words", LlamaForCausalLM.from_pretrained(tiny_llama_folder), tokenizer, Limits(cache_bytes=1 << 26))
    bias = {str(known["▁there"]): 100.0}
    try:
        for prompt in ("a", (1, known["a"])):
            sampling = SamplingParams.read({"do_sample": False, "max_tokens": 3, "logit_bias": bias})
            with model.stream(GenerationRequest(prompt, sampling, logprobs=0)) as events:
                told = [event for event in events if isinstance(event, TextDelta)]
            text = "".join(event.text for event in told)
            assert text == " there there there"
            assert b"".join(own_bytes(token) for event in told for token in event.details) == text.encode()
    finally:
        model.close()


# --- readers that hold text back

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
TEMPLATE = CHATML + "{# tools: <tool_call> #}{% if tools %}{% endif %}"
CALL = '<tool_call>{"name": "look", "arguments": {"at": "饕"}}</tool_call>'
REPLIES = [
    "plain text, and nothing held",
    "a <tool, then <tool_call, which is none: <tool_ca",
    f"First I look. {CALL}",
    f"{CALL}{CALL}\nand more",
    f"text {CALL} and text <tool_call>",
    '{"name": "nothing"}',
]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with servers(tmp_path_factory.mktemp("scripted")) as start:
        yield start(EchoModel(chat_template=TEMPLATE))


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("more", [{}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "required"}, {"stop": ["more", "zzz"]}])
def test_every_entry_arrives_in_a_stream(scripted: Any, reply: str, more: dict[str, Any]) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": reply}], "logprobs": True, "top_logprobs": 1, **more}
    whole = post(f"{scripted.url}/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    parts = []
    for chunk in streamed(f"{scripted.url}/v1/chat/completions", body):
        for choice in chunk["choices"]:
            parts += (choice["logprobs"] or {}).get("content", [])
    assert parts == whole
    assert "".join(entry["token"] for entry in whole) in (reply, reply[: reply.find("more") + 4])


def test_entries_come_with_the_text_that_they_make(scripted: Any) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": REPLIES[1]}], "logprobs": True, "tools": TOOLS}
    for chunk in streamed(f"{scripted.url}/v1/chat/completions", body):
        for choice in chunk["choices"]:
            entries = (choice["logprobs"] or {}).get("content", [])
            assert "".join(entry["token"] for entry in entries) == (choice["delta"].get("content") or "")


@pytest.mark.parametrize("tools", [[], [{"type": "function", "name": "look", "parameters": {"type": "object"}}]])
@pytest.mark.parametrize("reply", REPLIES[:3])
def test_responses_report_the_tokens_of_their_text(scripted: Any, reply: str, tools: list[Any]) -> None:
    body = {"model": "echo", "input": reply, "include": ["message.output_text.logprobs"], "top_logprobs": 2, "tools": tools}
    whole = post(f"{scripted.url}/v1/responses", body)
    part = whole["output"][0]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    deltas = []
    for event in streamed(f"{scripted.url}/v1/responses", body):
        if event["type"] == "response.output_text.delta":
            deltas += event["logprobs"]
        if event["type"] == "response.output_text.done":
            assert event["logprobs"] == part["logprobs"]
    assert deltas == part["logprobs"]


def test_responses_have_no_entries_unless_they_are_asked_for(scripted: Any) -> None:
    whole = post(f"{scripted.url}/v1/responses", {"model": "echo", "input": "hi"})
    assert whole["output"][0]["content"][0]["logprobs"] == []


# --- kept, shown, and told by other engines


def test_bytes_are_kept_with_the_tokens_of_a_chat() -> None:
    half = TokenAlternative(3, "�", -1.0, b"\xe4")
    other = TokenAlternative(4, "�", -2.0, b"\xe5")
    tokens = (Token(3, "�", -1.0, (half, other), b"\xe4"), Token(9, "<s>", -0.5, (), b""), Token(5, "a", None))
    assert unpack(pack(tokens)) == tokens


def test_the_token_view_names_parts_of_characters_by_their_bytes() -> None:
    half = Token(3, "�", -1.0, (TokenAlternative(3, "�", -1.0, b"\xe4"), TokenAlternative(4, "�", -2.0, b"\xe5")), b"\xe4")
    assert token_row(half, "")[1] == "\\xe4"
    assert [text for _, text, _ in token_row(half, "")[3]] == ["\\xe4", "\\xe5"]


def test_other_engines_bytes_are_read_as_they_write_them() -> None:
    from openai.types import Completion
    from openai.types.chat import ChatCompletionChunk

    def told(chunk: Any) -> list[Token]:
        reader = ChunkReader(SamplingParams(), prompt_tokens=1, dropped=0, alternatives=2, asked=0.0)
        return [token for event in reader.read([chunk]) if isinstance(event, TextDelta) for token in event.details]

    keys = {"bytes:\\xe4": -0.1, "bytes:\\xe5": -2.0}
    lists = {"tokens": ["bytes:\\xe4"], "token_logprobs": [-0.1], "top_logprobs": [keys], "text_offset": [0]}
    completion = {"id": "", "created": 0, "model": "", "object": "text_completion"}
    choice = {"index": 0, "text": "", "finish_reason": "stop", "logprobs": lists}
    (token,) = told(Completion.model_validate({**completion, "choices": [choice]}))
    assert (own_bytes(token), [own_bytes(other) for other in token.alternatives]) == (b"\xe4", [b"\xe4", b"\xe5"])

    entry = {
        "token": "\\xe4",
        "bytes": [0xE4],
        "logprob": -0.1,
        "top_logprobs": [{"token": "你", "bytes": [*"你".encode()], "logprob": -1}],
    }
    choice = {"index": 0, "delta": {"content": ""}, "finish_reason": None, "logprobs": {"content": [entry]}}
    chunk = {"id": "", "created": 0, "model": "", "object": "chat.completion.chunk", "choices": [choice]}
    (token,) = told(ChatCompletionChunk.model_validate(chunk))
    assert (own_bytes(token), name_of(token), token.alternatives[0].text) == (b"\xe4", "\\xe4", "你")
