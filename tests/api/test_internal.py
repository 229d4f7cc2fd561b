"""Tokens, prompts and administration below /v1/internal, and embeddings."""

from __future__ import annotations

import math

import httpx
import pytest

from modules.generation.types import Capabilities
from tests.api.conftest import wait_until
from tests.fakes import EVERYTHING, EchoModel
from tests.library.hub_server import running_hub
from tests.loaders.test_embedding import write_tiny_encoder

HI = [{"role": "user", "content": "hi"}]


def test_text_becomes_tokens_and_text_again(shared):
    assert shared.post("/v1/internal/token-count", {"text": "你好"}).json() == {"length": 2}
    encoded = shared.post("/v1/internal/encode", {"text": "你好"}).json()
    assert encoded == {"length": 2, "tokens": [0x4F60, 0x597D]}
    assert shared.post("/v1/internal/decode", {"tokens": encoded["tokens"]}).json() == {"text": "你好"}


def test_the_next_tokens_with_their_probabilities(shared):
    tokens = shared.post("/v1/internal/logits", {"prompt": "a", "top": 3}).json()["tokens"]
    assert [token["logprob"] for token in tokens] == [-0.5, -1.5, -2.5]
    assert tokens[0] == {"id": 97, "text": "a", "logprob": -0.5, "bytes": [97]}


def test_what_the_samplers_leave_of_the_next_tokens(shared):
    answer = shared.post("/v1/internal/logits", {"prompt": "a", "top": 3, "use_samplers": True, "top_k": 1}).json()
    assert (len(answer["tokens"]), len(answer["left"])) == (3, 1)
    assert shared.model.requests[-1].sampling.top_k == 1


def test_the_prompt_of_a_chat_without_its_answer(shared):
    before = len(shared.model.streams)
    reply = shared.post("/v1/internal/chat-prompt", {"messages": HI}).json()
    assert reply["prompt"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert reply["length"] == len(reply["tokens"]) == len(reply["prompt"])
    assert len(shared.model.streams) == before


def test_what_is_loaded_and_what_it_can(shared):
    info = httpx.get(shared.url + "/v1/internal/model/info").json()
    assert (info["state"], info["name"], info["context_length"]) == ("ready", "echo", 4096)
    assert info["capabilities"]["logprobs"] is True
    assert "min_p" in info["capabilities"]["samplers"]
    assert httpx.get(shared.url + "/v1/internal/health").json() == {"status": "ok"}


def test_models_on_disk_are_listed_and_loaded_by_name(serve, tiny_llama_folder):
    server = serve()
    (server.app.models.folder / "tiny").symlink_to(tiny_llama_folder)
    models = httpx.get(server.url + "/v1/internal/model/list").json()["models"]
    assert [(entry["name"], entry["loaded"], entry["problem"]) for entry in models] == [("tiny", False, None)]
    assert server.post("/v1/internal/model/load", {"model": "tiny", "options": {"cpu": True}}).status_code == 200
    assert server.model.closed
    reply = server.post("/v1/chat/completions", {"messages": HI, "max_tokens": 3, "model": "tiny"}).json()
    assert reply["usage"]["completion_tokens"] <= 3
    assert server.post("/v1/internal/model/unload", {}).status_code == 200
    assert httpx.get(server.url + "/v1/internal/model/info").json()["state"] == "empty"


def test_an_unknown_model_cannot_be_loaded_and_the_loaded_one_stays(server):
    reply = server.post("/v1/internal/model/load", {"model": "ghost"})
    assert reply.status_code == 404
    assert "ghost" in reply.json()["error"]["message"]
    server.post("/v1/chat/completions", {"messages": HI}).raise_for_status()
    wrong = server.post("/v1/internal/model/load", {"model": "ghost", "options": {"gpu_layer": 3}})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "options.gpu_layer")


def test_adapters_are_listed_loaded_and_unloaded(server):
    folder = server.app.loras.folder / "poet"
    folder.mkdir(parents=True)
    assert httpx.get(server.url + "/v1/internal/adapters/list").status_code == 200
    assert server.post("/v1/internal/adapters/load", {"name": "ghost"}).status_code == 404
    assert server.post("/v1/internal/adapters/unload", {"name": "ghost"}).status_code == 404
    server.model.load_adapter("poet", str(folder))
    assert server.post("/v1/internal/adapters/unload", {"name": "poet"}).status_code == 200
    assert server.model.adapters == ()


def test_models_are_downloaded_with_progress(serve, monkeypatch):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.repositories["org/name"] = {"main": {"config.json": b"{}", "model.safetensors": b"x" * 5000}}
        server = serve()
        job = server.post("/v1/internal/download", {"model": "org/name"}).json()
        assert (job["model"], job["branch"]) == ("org/name", "main")
        url = f"{server.url}/v1/internal/downloads/{job['id']}"
        assert wait_until(lambda: httpx.get(url).json()["state"] == "done", 20)
        ended = httpx.get(url).json()
        assert (ended["done"], ended["total"], ended["files_done"], ended["folder"]) == (5002, 5002, 2, "org_name")
        assert httpx.get(f"{server.url}/v1/internal/downloads").json()["downloads"] == [ended]
        failed = server.post("/v1/internal/download", {"model": "org/ghost"}).json()
        url = f"{server.url}/v1/internal/downloads/{failed['id']}"
        assert wait_until(lambda: httpx.get(url).json()["state"] == "failed", 20)
        assert "org/ghost" in httpx.get(url).json()["error"]
    assert server.post("/v1/internal/download", {"model": "../.."}).status_code == 400
    assert httpx.get(f"{server.url}/v1/internal/downloads/99").status_code == 404


def test_stop_ends_every_reply(serve):
    server = serve(EchoModel(lambda request: "abc" * 1000, pace=0.01))
    with httpx.stream("POST", server.url + "/v1/chat/completions", json={"messages": HI, "stream": True}) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert server.post("/v1/internal/stop", {}).json() == {"stopped": 1}
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_embeddings_by_the_client(shared):
    reply = shared.client().embeddings.create(model="echo", input=["a", "bb"])
    assert [entry.embedding for entry in reply.data] == [[1.0, 0.0], [0.0, 1.0]]
    assert math.isclose(sum(x * x for x in reply.data[0].embedding), 1)
    assert reply.usage.prompt_tokens == 3
    plain = shared.client().embeddings.create(model="echo", input="a", encoding_format="float")
    assert plain.data[0].embedding == [1.0, 0.0]
    tokens = shared.client().embeddings.create(model="echo", input=[[97], [98, 98]])
    assert len(tokens.data) == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": ""}, 400),
        ({"input": []}, 400),
        ({"input": ["a", ""]}, 400),
        ({"input": "a", "dimensions": 7}, 400),
        ({"input": "a", "model": "gpt-99"}, 404),
        ({"input": "x" * 5000}, 400),
        ({"input": "a", "encoding_format": "xml"}, 400),
    ],
)
def test_embeddings_that_cannot_be_made(shared, body, status):
    reply = shared.post("/v1/embeddings", body)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


def test_a_model_without_embeddings_says_so(serve):
    server = serve(EchoModel(capabilities=Capabilities(samplers=EVERYTHING.samplers)))
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 400


def test_an_embedding_model_stands_beside_the_chat_model(serve, tmp_path):
    server = serve(embedding_model="tiny-encoder", model_dir=str(tmp_path / "models"))
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 404  # its folder is not there
    write_tiny_encoder(tmp_path / "models" / "tiny-encoder")
    client = server.client()
    assert [model.id for model in client.models.list()] == ["echo", "tiny-encoder"]
    named = client.embeddings.create(model="tiny-encoder", input=["a cat", "dogs"])
    assert (named.model, len(named.data[0].embedding), named.usage.prompt_tokens) == ("tiny-encoder", 32, 12)
    assert math.isclose(sum(x * x for x in named.data[0].embedding), 1, rel_tol=1e-5)
    left_out = server.post("/v1/embeddings", {"input": "a cat"}).json()
    assert left_out["data"][0]["embedding"] == pytest.approx(named.data[0].embedding, abs=1e-5)
    assert len(client.embeddings.create(model="echo", input="a").data[0].embedding) == 2
    assert client.chat.completions.create(model="echo", messages=HI).choices[0].message.content == "hi"
    wrong = server.post("/v1/embeddings", {"input": "a", "model": "gpt-99"})
    assert wrong.status_code == 404
    assert "tiny-encoder is for embeddings" in wrong.json()["error"]["message"]
    long = server.post("/v1/embeddings", {"input": "a " * 100, "model": "tiny-encoder"})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
