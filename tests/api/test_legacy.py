"""Scripts of July 2023: the blocking port, the websocket, and what they must not do any more."""

from __future__ import annotations

import json

import httpx
import pytest
from websockets.sync.client import connect

from modules.api.legacy.serve import LegacyServer
from modules.errors import UserError
from modules.generation.types import GenerationRequest, Message
from modules.library.modes import staged
from tests.api.conftest import make_app, wait_until
from tests.fakes import EchoModel, loaded_in, stream_of
from tests.serving import Server, free_port

BODY_OF_2023 = {
    "prompt": "In order to make homemade bread, follow these steps:\n1)",
    "max_new_tokens": 250,
    "preset": "None",
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.1,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "tfs": 1,
    "top_a": 0,
    "repetition_penalty": 1.18,
    "repetition_penalty_range": 0,
    "top_k": 40,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": 0,
    "length_penalty": 1,
    "early_stopping": False,
    "mirostat_mode": 0,
    "mirostat_tau": 5,
    "mirostat_eta": 0.1,
    "seed": -1,
    "add_bos_token": True,
    "truncation_length": 2048,
    "ban_eos_token": False,
    "skip_special_tokens": True,
    "stopping_strings": ["\n\n"],
}


class Legacy:
    """The two ports over a model."""

    def __init__(self, app, server):
        self.app, self.model = app, loaded_in(app.manager)
        self.http, self.ws = (
            f"{kind}://127.0.0.1:{port}/api/v1" for kind, port in zip(("http", "ws"), server.ports, strict=True)
        )

    def post(self, path, body, **more):
        return httpx.post(self.http + path, json=body, timeout=30, **more)


@pytest.fixture
def legacy(tmp_path):
    started = []

    def start(model=None, **options):
        free = {"api_blocking_port": 1, "api_streaming_port": 1}
        app = make_app(tmp_path, model or EchoModel(), {**free, **options})
        app.options = app.options.model_copy(update=dict.fromkeys(free, 0))
        server = LegacyServer(app, "127.0.0.1")
        started.append((server, app))
        return Legacy(app, server)

    yield start
    for server, app in started:
        server.close()
        app.close()


def test_the_whole_body_of_a_2023_script_is_understood(legacy):
    server = legacy()
    reply = server.post("/generate", BODY_OF_2023).json()
    assert reply == {"results": [{"text": BODY_OF_2023["prompt"]}]}
    sampling = server.model.requests[-1].sampling
    assert (sampling.max_tokens, sampling.repetition_penalty, sampling.top_k) == (250, 1.18, 40)
    assert sampling.stop == ("\n\n",)


def test_what_is_left_out_is_as_it_was_then(legacy):
    server = legacy()
    server.post("/generate", {"prompt": "x", "max_length": 5, "something": "else"}).raise_for_status()
    sampling = server.model.requests[-1].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.repetition_penalty) == (5, 0.5, 1.1)
    server.post("/generate", {"prompt": "x", "preset": "warm"}).raise_for_status()
    assert server.model.requests[-1].sampling.temperature == 1.5


def test_the_websocket_streams_the_text(legacy):
    server = legacy()
    with connect(server.ws + "/stream") as socket:
        for prompt in ("你好 🌍", "again"):
            socket.send(json.dumps({"prompt": prompt}))
            events = []
            while not events or events[-1]["event"] != "stream_end":
                events.append(json.loads(socket.recv(timeout=10)))
            assert "".join(event["text"] for event in events[:-1]) == prompt
            assert [event["message_num"] for event in events] == list(range(len(events)))


def test_a_websocket_that_closes_stops_the_model(legacy):
    server = legacy(EchoModel(lambda request: "abc" * 1000, pace=0.01))
    with connect(server.ws + "/stream") as socket:
        socket.send(json.dumps({"prompt": "x", "max_new_tokens": 4000}))
        socket.recv(timeout=10)
    assert wait_until(lambda: all(stream.closed for stream in server.model.streams), 1)


def test_chat_keeps_the_history_of_2023(legacy):
    server = legacy()
    history = {"internal": [["hi", "hello"]], "visible": [["hi", "hello!"]]}
    body = {"user_input": "你好", "history": history, "mode": "instruct", "your_name": "Ann"}
    reply = server.post("/chat", body).json()["results"][0]["history"]
    assert reply == {"internal": [["hi", "hello"], ["你好", "你好"]], "visible": [["hi", "hello!"], ["你好", "你好"]]}
    assert [message.content for message in server.model.requests[-1].prompt] == ["hi", "hello", "你好"]


def test_chat_as_a_play_ends_before_the_next_line_of_a_speaker(legacy):
    server = legacy(EchoModel(lambda request: " Fine.\nAnn: And you?"))
    body = {"user_input": "How are you?", "history": {"internal": [], "visible": []}, "mode": "chat", "your_name": "Ann"}
    reply = server.post("/chat", body).json()["results"][0]["history"]["internal"]
    assert reply == [["How are you?", " Fine."]]
    assert prompt_of(server).endswith("\nAnn: How are you?\nAssistant:")


def test_chat_instruct_asks_for_the_next_line(legacy):
    server = legacy()
    body = {
        "user_input": "hi",
        "mode": "chat-instruct",
        "name2": "Bo",
        "chat-instruct_command": "As <|character|>:\n<|prompt|>",
    }
    server.post("/chat", body).raise_for_status()
    prompt = prompt_of(server)
    assert prompt.startswith("<|im_start|>user\nAs Bo:\nA conversation between You and Bo")
    assert prompt.endswith("\nYou: hi<|im_end|>\n<|im_start|>assistant\nBo:")


def prompt_of(server):
    """The last prompt, as the model got it."""
    return server.model.render(server.model.requests[-1]).text


@pytest.fixture
def with_character(legacy):
    server = legacy()
    folder = server.app.characters.folder
    folder.mkdir()
    text = "name: Mira\ncontext: '{{char}} keeps a lighthouse and likes {{user}}.'\nexample_dialogue: '{{user}}: Storm?'\n"
    (folder / "Mira.yaml").write_text(text, encoding="utf-8")
    return server


@pytest.mark.parametrize("mode", ["chat", "chat-instruct"])
def test_a_character_of_the_server_is_played_as_on_the_page(with_character, mode):
    server = with_character
    history = {"internal": [["<|BEGIN-VISIBLE-CHAT|>", "Ahoy."]], "visible": [["", "Ahoy."]]}
    server.post("/chat", {"user_input": "hi", "mode": mode, "character": "Mira", "your_name": "Ann", "history": history})
    turns = [Message("assistant", "Ahoy."), Message("user", "hi")]
    character = server.app.characters.read("", "Mira")
    stage = staged(turns, mode, character, user="Ann", own_template=server.model.chat_template)
    expected = server.model.render(GenerationRequest(stage.messages, template=stage.template)).text
    assert prompt_of(server) == expected
    assert "Mira keeps a lighthouse and likes Ann." in expected
    assert server.model.requests[-1].sampling.stop[:2] == ("\nAnn:", "\nMira:")


def test_what_the_body_says_goes_over_the_character(with_character):
    with_character.post("/chat", {"user_input": "hi", "character": "Mira", "name2": "Bo", "context": "{{char}} sails."})
    assert prompt_of(with_character).startswith("Bo sails.")


def test_the_chat_script_of_2023_works_as_it_was_printed(legacy):
    """It names a character that this server does not have, in the mode in which that year used none."""
    server = legacy()
    body = {
        **BODY_OF_2023,
        "user_input": "Please give me a step-by-step guide on how to plant a tree in my backyard.",
        "history": {"internal": [], "visible": []},
        "mode": "instruct",
        "character": "Example",
        "instruction_template": "Vicuna-v1.1",
        "your_name": "You",
        "regenerate": False,
        "_continue": False,
        "stop_at_newline": False,
        "chat_generation_attempts": 1,
        "chat-instruct_command": 'Continue the chat dialogue below. Write a single reply for "<|character|>".\n\n<|prompt|>',
    }
    reply = server.post("/chat", body).json()["results"][0]["history"]["internal"]
    assert reply == [[body["user_input"], body["user_input"]]]
    assert f"USER: {body['user_input']} ASSISTANT:" in prompt_of(server)


def test_the_last_reply_is_made_again_or_goes_on(legacy):
    server = legacy(EchoModel(lambda request: " more"))
    history = {"internal": [["a", "b"], ["c", "d"]], "visible": [["a", "b"], ["c", "d"]]}
    again = server.post("/chat", {"history": history, "mode": "instruct", "regenerate": True}).json()
    assert again["results"][0]["history"]["internal"] == [["a", "b"], ["c", " more"]]
    on = server.post("/chat", {"history": history, "mode": "instruct", "_continue": True}).json()
    assert on["results"][0]["history"]["internal"] == [["a", "b"], ["c", "d more"]]


def test_the_chat_stream_sends_the_growing_history(legacy):
    server = legacy()
    with connect(server.ws + "/chat-stream") as socket:
        socket.send(json.dumps({"user_input": "hello", "mode": "instruct"}))
        events = []
        while not events or events[-1]["event"] != "stream_end":
            events.append(json.loads(socket.recv(timeout=10)))
    replies = [event["history"]["internal"][-1][1] for event in events[:-1]]
    assert replies[-1] == "hello"
    assert all("hello".startswith(reply) for reply in replies)


def test_stop_ends_what_this_api_began_and_nothing_else(legacy):
    server = legacy(EchoModel(lambda request: "abc" * 1000, pace=0.01))
    other = stream_of(server.app.manager, GenerationRequest("x"))
    with connect(server.ws + "/stream") as socket:
        socket.send(json.dumps({"prompt": "x", "max_new_tokens": 4000}))
        socket.recv(timeout=10)
        assert server.post("/stop-stream", {}).json() == {"results": "success"}
        while json.loads(socket.recv(timeout=10))["event"] != "stream_end":
            pass
    assert not other.closed
    other.close()


def test_the_model_and_its_tokens(legacy):
    server = legacy()
    assert httpx.get(server.http + "/model").json() == {"result": "echo"}
    assert server.post("/model", {"action": "info"}).json()["result"]["model_name"] == "echo"
    assert server.post("/model", {"action": "list"}).json() == {"result": []}
    assert server.post("/token-count", {"prompt": "four"}).json() == {"results": [{"tokens": 4}]}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/generate", {}, 400),
        ("/generate", {"prompt": 5}, 400),
        ("/generate", {"prompt": "x", "temperature": -1}, 400),
        ("/generate", {"prompt": "x", "num_beams": 4}, 400),
        ("/generate", {"prompt": "x", "preset": "ghost"}, 404),
        ("/generate", {"prompt": "\ud800"}, 400),
        ("/chat", {"user_input": "x", "mode": "opera"}, 400),
        ("/chat", {"user_input": "x", "history": {"internal": [["a"]]}}, 400),
        ("/chat", {"regenerate": True}, 400),
        ("/chat", {"user_input": "x", "character": "Example"}, 404),
        ("/chat", {"user_input": "x", "character": "../x"}, 404),
        ("/chat", {"user_input": "x", "mode": "instruct", "instruction_template": "Ghost"}, 404),
        ("/chat", {"user_input": "x", "mode": "chat-instruct", "instruction_template": "../x"}, 400),
        ("/model", {"action": "explode"}, 400),
        ("/model", {"action": "load", "model_name": "x", "args": {"trust_remote_code": True}}, 400),
        ("/model", {"action": "load", "model_name": "ghost"}, 404),
        ("/nothing", {}, 404),
    ],
)
def test_wrong_requests_are_refused_in_words(legacy, path, body, status):
    reply = httpx.post(legacy().http + path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


def test_a_wrong_message_on_the_websocket_is_told_before_it_closes(legacy):
    server = legacy()
    for message in ("{", "[]", json.dumps({"prompt": 5})):
        with connect(server.ws + "/stream") as socket:
            socket.send(message)
            assert json.loads(socket.recv(timeout=10))["error"]["message"]


def test_keys_are_asked_for_here_too(legacy):
    server = legacy(api_key="K", admin_key="A")
    assert server.post("/generate", {"prompt": "x"}).status_code == 401
    assert server.post("/generate", {"prompt": "x"}, headers={"Authorization": "Bearer K"}).status_code == 200
    unload = server.post("/model", {"action": "unload"}, headers={"Authorization": "Bearer K"})
    assert unload.status_code == 403
    with connect(server.ws + "/stream") as socket:
        assert json.loads(socket.recv(timeout=10))["error"]["code"] == "invalid_api_key"


def test_a_taken_port_is_said(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        app = make_app(tmp_path, None, {"api_blocking_port": taken.getsockname()[1]})
        with pytest.raises(UserError, match=r"Port \d+ is free.*--api-blocking-port \d+"):
            LegacyServer(app, "127.0.0.1")
        app.close()


@pytest.mark.slow
def test_the_flag_opens_both_ports_beside_the_new_one(tmp_path):
    blocking, streaming = free_port(), free_port()
    flags = ["--nowebui", "--api", "--api-blocking-port", str(blocking), "--api-streaming-port", str(streaming)]
    with Server(flags, data=tmp_path):
        assert httpx.get(f"http://127.0.0.1:{blocking}/api/v1/model").json() == {"result": "None"}
        with connect(f"ws://127.0.0.1:{streaming}/api/v1/stream") as socket:
            socket.send(json.dumps({"prompt": "x"}))
            assert "No model is loaded" in json.loads(socket.recv(timeout=10))["error"]["message"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{blocking}/api/v1/model")
