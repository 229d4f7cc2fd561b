"""Chat by OpenAI's own client: replies, streams, several at once, log-probabilities, forms, pictures."""

from __future__ import annotations

import base64
import io
import json

import pytest

from modules.generation.sampling import SamplingParams
from modules.generation.types import Capabilities
from modules.library.character import Character
from modules.library.lore import LoreBook, LoreEntry
from tests.fakes import EVERYTHING, EchoModel

HELLO = [{"role": "user", "content": "你好 🌍 hello"}]


def text_of(chunks) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_reply_in_one_piece(server):
    reply = server.client().chat.completions.create(model="echo", messages=HELLO)
    assert reply.choices[0].message.content == "你好 🌍 hello"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == "echo"
    assert reply.usage.completion_tokens == len("你好 🌍 hello")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == 1


def test_a_stream_begins_with_the_role_and_ends_with_the_reason_and_the_usage(server):
    stream = server.client().chat.completions.create(
        model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == "你好 🌍 hello"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len("你好 🌍 hello")
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_stream_is_closed_by_done(server):
    reply = server.post("/v1/chat/completions", {"messages": HELLO, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])


def test_stop_texts_end_the_reply_and_are_not_shown(server):
    client = server.client()
    reply = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "one END two"}], stop="END")
    assert reply.choices[0].message.content == "one "
    chunks = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "one END two"}], stop=["x", "END"], stream=True
    )
    assert text_of(chunks) == "one "


def test_max_tokens_by_either_name_cuts_the_reply(server):
    for name in ("max_tokens", "max_completion_tokens"):
        reply = server.client().chat.completions.create(model="echo", messages=HELLO, **{name: 2})
        assert reply.choices[0].message.content == "你好"
        assert reply.choices[0].finish_reason == "length"


def test_without_max_tokens_the_reply_may_fill_the_context(server):
    question = "x" * 2000
    reply = server.client().chat.completions.create(model="echo", messages=[{"role": "user", "content": question}])
    assert reply.choices[0].message.content == question


@pytest.mark.parametrize("stream", [False, True])
def test_several_replies_come_side_by_side_each_with_its_own_seed(serve, stream):
    server = serve(EchoModel(lambda request: f"seed {request.sampling.seed}"))
    reply = server.client().chat.completions.create(model="echo", messages=HELLO, n=3, seed=7, stream=stream)
    if stream:
        texts = ["", "", ""]
        for chunk in reply:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        texts = [choice.message.content for choice in reply.choices]
        assert reply.usage.completion_tokens == 3 * len("seed 7")
    assert texts == ["seed 7", "seed 8", "seed 9"]


def test_logprobs_name_each_token_and_its_alternatives(server):
    client = server.client()
    reply = client.chat.completions.create(model="echo", messages=HELLO, logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert "".join(token.token for token in content) == "你好 🌍 hello"
    assert bytes(content[0].bytes).decode() == "你"
    assert [len(token.top_logprobs) for token in content] == [2] * len(content)
    chunks = client.chat.completions.create(model="echo", messages=HELLO, logprobs=True, stream=True)
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in content]


def test_every_sampler_of_ours_is_a_field_and_reaches_the_engine(server):
    server.client().chat.completions.create(
        model="echo", messages=HELLO, temperature=0.5, extra_body={"min_p": 0.1, "dry_multiplier": 0.8, "logit_bias": {"5": -3}}
    )
    sampling = server.model.requests[-1].sampling
    assert (sampling.temperature, sampling.min_p, sampling.dry_multiplier) == (0.5, 0.1, 0.8)
    assert sampling.logit_bias == {"5": -3}


def test_a_preset_goes_under_the_fields_of_the_request(server):
    server.post("/v1/chat/completions", {"messages": HELLO, "preset": "warm", "top_k": 5}).raise_for_status()
    sampling = server.model.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k) == (1.5, 5)


def test_null_means_left_out(server):
    body = {"messages": HELLO, "temperature": None, "stop": None, "max_tokens": None, "seed": None, "tools": None}
    server.post("/v1/chat/completions", body).raise_for_status()
    assert server.model.requests[-1].sampling.temperature == 1.0


def test_a_template_by_name_or_as_source(server):
    server.app.templates.save("plain", "{% for m in messages %}{{ m.content }}{% endfor %}")
    for template in ("plain", "{% for m in messages %}{{ m.content }}{% endfor %}"):
        server.post("/v1/chat/completions", {"messages": HELLO, "template": template}).raise_for_status()
        assert server.model.render(server.model.requests[-1]).text == "你好 🌍 hello"


def test_the_template_gets_its_variables(server):
    template = "{{ enable_thinking }} {{ reasoning_effort }}"
    body = {
        "messages": HELLO,
        "template": template,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    server.post("/v1/chat/completions", body).raise_for_status()
    assert server.model.render(server.model.requests[-1]).text == "False low"


def test_a_beginning_of_the_reply_is_continued(server):
    messages = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    server.post("/v1/chat/completions", {"messages": messages, "continue_final_message": True}).raise_for_status()
    assert server.model.render(server.model.requests[-1]).text.endswith("Once upon")


def test_json_forms_become_schemas(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for form, expected in (
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}, schema),
    ):
        server.client().chat.completions.create(model="echo", messages=HELLO, response_format=form)
        assert json.loads(server.model.requests[-1].sampling.json_schema) == expected


def picture() -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_pictures_come_as_data_urls(server):
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": picture()}}]
    server.client().chat.completions.create(model="echo", messages=[{"role": "user", "content": parts}])
    message = server.model.requests[-1].prompt[0]
    assert message.content == "what is this?"
    assert message.images[0].data.startswith(b"\x89PNG")


def test_a_model_without_eyes_says_so(serve):
    server = serve(EchoModel(capabilities=Capabilities(samplers=EVERYTHING.samplers)))
    parts = [{"type": "image_url", "image_url": {"url": picture()}}]
    reply = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    assert reply.status_code == 400
    assert "cannot see pictures" in reply.json()["error"]["message"]


def test_the_oldest_turns_are_left_out_where_the_client_asks_and_the_usage_says_how_many(serve):
    server = serve(EchoModel(context_length=200))
    turns = [{"role": "user", "content": f"{number} " + "x" * 50} for number in range(8)]
    body = {"messages": turns, "truncate": "oldest", "max_tokens": 20}
    reply = server.post("/v1/chat/completions", body).json()
    assert reply["usage"]["prompt_tokens_details"]["dropped_messages"] > 0
    assert reply["choices"][0]["message"]["content"].startswith("7 ")


def test_an_adapter_is_chosen_by_its_field_or_in_place_of_the_model(server):
    server.model.load_adapter("poet", "loras/poet")
    for body in ({"adapter": "poet", "adapter_strength": 0.5}, {"model": "poet"}):
        reply = server.post("/v1/chat/completions", {"messages": HELLO, **body}).json()
        assert reply["model"] == "poet"
        assert server.model.requests[-1].adapter == "poet"
    assert {entry.id for entry in server.client().models.list()} == {"echo", "poet"}


def test_a_reply_stopped_from_outside_keeps_what_was_said(serve):
    server = serve(EchoModel(lambda request: "abc" * 1000, pace=0.01))
    chunks = []
    for chunk in server.client().chat.completions.create(model="echo", messages=HELLO, stream=True):
        chunks.append(chunk)
        if len(chunks) == 5:
            server.app.manager.stop_all()
    assert chunks[-1].choices[0].finish_reason == "abort"
    assert text_of(chunks).startswith("abc")


def test_a_model_without_a_template_gets_one_that_fits_its_name_with_its_stop_texts(serve):
    model = EchoModel(lambda request: "fine### Human: more", chat_template=None, name="vicuna-7b-v0")
    reply = serve(model).post("/v1/chat/completions", {"messages": HELLO}).json()
    assert reply["choices"][0]["message"]["content"] == "fine"


def test_a_model_without_any_template_says_what_to_do(serve):
    reply = serve(EchoModel(chat_template=None)).post("/v1/chat/completions", {"messages": HELLO})
    assert reply.status_code == 400
    assert "/v1/completions" in reply.json()["error"]["message"]


def test_a_character_of_the_server_is_played_in_every_mode(server):
    folder = server.app.characters.folder
    folder.mkdir(exist_ok=True)
    (folder / "Bo.yaml").write_text("name: Bo\ncontext: Bo is a {{char}} who likes {{user}}.\n", encoding="utf-8")
    body = {"messages": [{"role": "system", "content": "Be brief."}, *HELLO], "character": "Bo", "user_name": "Ann"}
    seen = {}
    for mode in ("instruct", "chat", "chat-instruct"):
        server.post("/v1/chat/completions", {**body, "mode": mode}).raise_for_status()
        seen[mode] = server.post("/v1/internal/chat-prompt", {**body, "mode": mode}).json()["prompt"]
        assert "Bo is a Bo who likes Ann." in seen[mode] and "Be brief." in seen[mode]
    assert "<|im_start|>" in seen["instruct"] and "<|im_start|>" in seen["chat-instruct"]
    assert seen["chat"].endswith("Bo:") and "\nAnn: " in seen["chat"] and "<|im_start|>" not in seen["chat"]
    assert "\nAnn:" in server.model.requests[1].sampling.stop


def test_a_character_is_found_by_its_spoken_name_and_brings_its_lore(server):
    book = LoreBook((LoreEntry("The harbour is shut.", ("hi",)), LoreEntry("A ghost.", ("ghost",))))
    server.app.characters.save("", Character("Bo: a/b", "A sailor.", book=book))
    asked = {"messages": [{"role": "user", "content": "Hi."}], "character": "Bo: a/b", "mode": "chat"}
    prompt = server.post("/v1/internal/chat-prompt", asked).json()["prompt"]
    assert "A sailor.\n\nThe harbour is shut." in prompt and "ghost" not in prompt and prompt.endswith("Bo: a/b:")


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"character": "ghost"}, 404, "character"),
        ({"character": "../Bo"}, 404, "character"),
        ({"mode": "opera"}, 400, "mode"),
        ({"mode": "chat", "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "mode"),
    ],
)
def test_a_character_that_is_not_there_is_named(server, fields, status, param):
    reply = server.post("/v1/chat/completions", {"messages": HELLO, **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


def test_a_preset_is_looked_for_among_those_of_the_user_first(serve):
    server = serve(gradio_auth="ann:one,bob:two")
    server.app.presets.of("bob").save("warm", SamplingParams(temperature=0.7))
    for key, temperature in (("ann:one", 1.5), ("bob:two", 0.7)):
        headers = {"Authorization": f"Bearer {key}"}
        for path, body in (("/v1/chat/completions", {"messages": HELLO}), ("/v1/completions", {"prompt": "x"})):
            server.post(path, {**body, "preset": "warm"}, headers=headers).raise_for_status()
            assert server.model.requests[-1].sampling.temperature == temperature
