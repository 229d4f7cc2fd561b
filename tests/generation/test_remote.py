"""The remote loader against two real engines, and against one that fails in every way."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import fsum
from pathlib import Path
from typing import Any

import pytest

from modules.errors import ContextTooLong, NotFound, Unavailable, UserError
from modules.generation.llamacpp.model import LlamacppModel
from modules.generation.llamacpp.server_config import Launch
from modules.generation.remote.model import RemoteModel
from modules.generation.sampling import SamplingParams
from modules.generation.types import (
    Finished,
    GenerationRequest,
    LoadedModel,
    Message,
    Prefill,
    Prompt,
    Queued,
    Started,
    TextDelta,
    own_bytes,
)
from modules.library.gguf_header import read_control_tokens
from modules.library.model_spec import ModelSpec
from modules.loaders import remote
from modules.loaders.choose import choose
from modules.loaders.options import LoadOptions
from tests.engines import answer_json, free_port, llama_server, transformers_serve
from tests.tiny import CHATML

KEY = "sesame"
HELLO = (Message("user", "Hello there"),)


def connect(address: str, **options: Any) -> RemoteModel:
    spec = ModelSpec("far", Path("models/far.yaml"), "remote", 0, endpoint=address)
    return remote.load(spec, LoadOptions(**options), lambda progress: None)


def ask(prompt: Prompt = HELLO, *, sampling: dict | None = None, **request: Any) -> GenerationRequest:
    return GenerationRequest(prompt, SamplingParams(**{"max_tokens": 16, "do_sample": False, **(sampling or {})}), **request)


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def end_of(events: list) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.fixture(scope="module")
def llama(tiny_gguf: Path) -> Iterator[RemoteModel]:
    with llama_server(tiny_gguf, KEY) as address:
        model = connect(address, remote_api_key=KEY, max_parallel=2)
        yield model
        model.close()


@pytest.fixture(scope="module")
def transformers(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteModel]:
    with transformers_serve(tiny_llama_folder, tmp_path_factory.mktemp("hf")) as address:
        model = connect(address, remote_model=str(tiny_llama_folder))
        yield model
        model.close()


@pytest.fixture(scope="module")
def here(tiny_gguf: Path) -> Iterator[LlamacppModel]:
    launch = Launch(str(tiny_gguf), "", 2048, 2, threads=1, cpu=True)
    model = LlamacppModel("here", launch, chat_template=CHATML, control=read_control_tokens(tiny_gguf))
    yield model
    model.close()


@pytest.fixture(params=["llama", pytest.param("transformers", marks=pytest.mark.slow)])
def far(request: pytest.FixtureRequest) -> RemoteModel:
    return request.getfixturevalue(request.param)


# --- both engines


def test_it_is_a_loaded_model(far: RemoteModel) -> None:
    seam: LoadedModel = far
    assert (seam.name, seam.adapters) == ("far", ())
    assert "grammar" not in seam.capabilities.samplers or seam.capabilities.grammar


@pytest.mark.parametrize("prompt", [HELLO, "Hello there"])
def test_greedy_text_is_that_of_the_same_model_here(far: RemoteModel, here: LlamacppModel, prompt: Prompt) -> None:
    events = list(far.stream(ask(prompt)))
    assert text_of(events).startswith(text_of(here.stream(ask(prompt)))[:4])
    assert next(type(event) for event in events if not isinstance(event, Queued | Prefill)) is Started
    end = end_of(events)
    assert (end.reason, end.usage.completion_tokens) == ("length", 16)
    assert end.usage.prompt_tokens == len(here.render(ask(prompt)).tokens)
    assert end.timings.first_token > 0


def test_a_template_of_ours_is_rendered_here(far: RemoteModel, here: LlamacppModel) -> None:
    request = ask(template="{{ messages[0].content }}!")
    assert text_of(far.stream(request))[:4] == text_of(here.stream(ask("Hello there!")))[:4]
    thinking = ask(template="{{ messages[0].content }}<think>\n", sampling={"max_tokens": 1})
    assert next(event.opened for event in far.stream(thinking) if isinstance(event, Started)) == "<think>"


def test_a_seed_repeats_a_drawn_reply(far: RemoteModel) -> None:
    hot = ask(sampling={"do_sample": True, "temperature": 2.0, "seed": 7})
    cold = ask(sampling={"do_sample": True, "temperature": 2.0, "seed": 8})
    assert text_of(far.stream(hot)) == text_of(far.stream(hot)) != text_of(far.stream(cold))


@pytest.mark.parametrize("changed", [{"top_k": 1}, {"repetition_penalty": 5.0}, {"top_p": 0.0001}])
def test_settings_beyond_openais_reach_the_engine(far: RemoteModel, changed: dict) -> None:
    plain = {"do_sample": True, "temperature": 3.0, "seed": 11, "max_tokens": 30}
    assert set(changed) <= far.capabilities.samplers
    assert text_of(far.stream(ask(sampling=plain))) != text_of(far.stream(ask(sampling={**plain, **changed})))


def test_a_stop_text_ends_the_reply(far: RemoteModel) -> None:
    whole = text_of(far.stream(ask()))
    stop = whole[3:5]
    events = list(far.stream(ask(sampling={"stop": (stop,)})))
    assert text_of(events) == whole[: whole.index(stop)]
    assert end_of(events).reason == "stop"


def test_closing_ends_the_request_at_once(far: RemoteModel) -> None:
    events = far.stream(ask(sampling={"max_tokens": 1500, "min_tokens": 1500, "ban_eos": True}))
    while not isinstance(events.get(), TextDelta):
        pass
    start = time.monotonic()
    events.close()
    while far.status().running:
        assert time.monotonic() < start + 5
        time.sleep(0.01)
    assert text_of(far.stream(ask())) == text_of(far.stream(ask()))


def test_the_oldest_turns_are_left_out_when_asked_for(far: RemoteModel) -> None:
    turns = [Message("user" if at % 2 == 0 else "assistant", f"{at}" + "x" * 600) for at in range(8)]
    small = RemoteModel("small", far._client, far._facts, context_length=1500)
    events = list(small.stream(ask((*turns, *HELLO), overflow="drop_oldest")))
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.dropped_messages in (2, 4, 6)
    if far._facts.dialect == "llama.cpp":  # the other one does not count for us
        assert end_of(events).usage.prompt_tokens < 1500


def test_tools_and_adapters_are_refused_in_a_sentence(far: RemoteModel) -> None:
    with pytest.raises(UserError, match="Tools"):
        far.stream(ask(template_variables={"tools": [{}]}))
    with pytest.raises(NotFound, match="adapter"):
        far.stream(ask(adapter="pirate"))
    with pytest.raises(UserError, match="loaded there"):
        far.load_adapter("pirate", "pirate.gguf")


# --- llama-server


def test_llama_server_tells_what_it_is(llama: RemoteModel, here: LlamacppModel) -> None:
    assert llama.context_length == 2048
    assert llama.chat_template == CHATML
    assert llama.render(ask()) == here.render(ask())
    assert llama.detokenize(llama.tokenize("héllo", special=False)) == "héllo"


def test_log_probabilities_come_with_their_alternatives(llama: RemoteModel, here: LlamacppModel) -> None:
    for prompt in (HELLO, "Hello there"):
        details = [
            [
                token
                for event in model.stream(ask(prompt, logprobs=2))
                if isinstance(event, TextDelta)
                for token in event.details
            ]
            for model in (llama, here)
        ]
        # The parts of a character come as one entry from a llama-server elsewhere, and each by itself from ours.
        assert b"".join(map(own_bytes, details[0])) == b"".join(map(own_bytes, details[1]))
        assert {token.id for token in details[0]} <= {token.id for token in details[1]}
        assert details[0][0].logprob == pytest.approx(details[1][0].logprob, abs=1e-4)
        assert len(details[0][0].alternatives) == 2


def test_a_reply_is_continued(llama: RemoteModel, here: LlamacppModel) -> None:
    request = ask((*HELLO, Message("assistant", "Good mor")), continue_reply=True)
    assert text_of(llama.stream(request)) == text_of(here.stream(request))


def test_forms_are_passed_on(llama: RemoteModel) -> None:
    assert text_of(llama.stream(ask(sampling={"grammar": 'root ::= "yes" | "no"'}))) in ("yes", "no")
    schema = json.dumps({"type": "boolean"})
    assert json.loads(text_of(llama.stream(ask(sampling={"json_schema": schema})))) in (True, False)
    with pytest.raises(UserError, match="no regex"):
        llama.stream(ask(sampling={"regex": "[0-9]"}))


def test_a_prompt_that_is_too_long_is_refused_with_the_engines_figures(llama: RemoteModel) -> None:
    with pytest.raises(ContextTooLong, match=r"3019.*2048"):
        list(llama.stream(ask((Message("user", "x" * 3000),))))


def test_the_next_turn_says_what_was_cached(llama: RemoteModel) -> None:
    turn = (Message("user", "A long question. " * 20),)
    list(llama.stream(ask(turn)))
    assert end_of(list(llama.stream(ask(turn)))).usage.cached_tokens > 300


def test_a_wrong_key_is_said(llama: RemoteModel) -> None:
    with pytest.raises(UserError, match="refuses the key"):
        connect(llama._client.base_url, remote_api_key="open")


# --- transformers serve


@pytest.mark.slow
def test_transformers_serve_is_told_what_it_understands(transformers: RemoteModel) -> None:
    assert transformers._facts.dialect == "transformers"
    with pytest.raises(UserError, match="no grammar"):
        transformers.stream(ask(sampling={"grammar": 'root ::= "a"'}))
    with pytest.raises(UserError, match="does not show"):
        transformers.tokenize("x")
    with pytest.raises(UserError, match="cannot go on"):
        transformers.stream(ask((*HELLO, Message("assistant", "Good")), continue_reply=True))


@pytest.mark.slow
def test_a_model_that_the_engine_does_not_have_is_named(transformers: RemoteModel) -> None:
    other = connect(transformers._client.base_url, remote_model="other/model")
    with pytest.raises(UserError, match="other/model"):
        list(other.stream(ask()))


# --- an engine that fails


class Engine(http.server.BaseHTTPRequestHandler):
    """Answers as `server.answers` says: path → (status, body); a body of lines is streamed and then broken off."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        status, body = self.server.answers.get(self.path, (404, {"error": {"message": "nothing here"}}))  # type: ignore[attr-defined]
        if callable(body):
            body(self)
            return
        answer_json(self, status, body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


MODELS = (
    200,
    {"object": "list", "data": [{"id": "one", "object": "model", "created": 0, "owned_by": "me", "max_model_len": 99}]},
)


@contextmanager
def engine(answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.answers = {"/v1/models": MODELS, **answers}  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, {"error": {"message": "no such key"}}, UserError, "no such key"),
        (404, {"error": {"message": "gone"}}, NotFound, "no model called one"),
        (400, {"error": {"message": "temperature is too hot"}}, UserError, "temperature is too hot"),
        (400, {"error": {"message": "long", "code": "context_length_exceeded"}}, ContextTooLong, "long"),
        (422, {"detail": "Unexpected fields"}, UserError, "Unexpected fields"),
        (429, {"error": {"message": "slow down"}}, Unavailable, "slow down"),
        (500, {"error": {"message": "out of memory"}}, Unavailable, "out of memory"),
        (503, {"error": "loading"}, Unavailable, "loading"),
    ],
)
def test_what_an_engine_says_is_passed_on(status: int, body: dict, kind: type[UserError], words: str) -> None:
    with engine({"/v1/chat/completions": (status, body)}) as address:
        model = connect(address)
        assert (model.context_length, model.capabilities.grammar) == (99, True)
        with pytest.raises(kind, match=words) as caught:
            list(model.stream(ask()))
        assert type(caught.value) is kind
        model.close()


def _begin_stream(handler: Engine, *chunks: dict) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    for chunk in chunks:
        handler.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        handler.wfile.flush()


def _chunk(**delta: str) -> dict:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "one", "choices": [choice]}


LAST = _chunk()
LAST["choices"][0]["finish_reason"] = "stop"


def test_an_answer_that_breaks_off_is_no_whole_answer() -> None:
    with engine({"/v1/chat/completions": (200, lambda handler: _begin_stream(handler, _chunk(content="so")))}) as address:
        model = connect(address)
        with pytest.raises(Unavailable, match="broke off"):
            list(model.stream(ask()))
        model.close()


def test_a_failure_in_the_middle_comes_after_the_text_so_far() -> None:
    def breaks(handler: Engine) -> None:
        _begin_stream(handler, _chunk(content="so far"), {"error": {"message": "the card fell out"}})

    with engine({"/v1/chat/completions": (200, breaks)}) as address:
        model = connect(address)
        events = model.stream(ask())
        assert isinstance(events.get(), Started)
        assert events.get() == TextDelta("so far", 1)
        with pytest.raises(UserError, match="the card fell out"):
            events.get()
        model.close()


def test_reasoning_that_comes_apart_is_put_where_it_was() -> None:
    def thinks(handler: Engine) -> None:
        _begin_stream(handler, _chunk(reasoning_content="Well"), _chunk(reasoning_content="."), _chunk(content="Yes."), LAST)
        handler.wfile.write(b"data: [DONE]\n\n")

    with engine({"/v1/chat/completions": (200, thinks)}) as address:
        model = connect(address)
        assert text_of(model.stream(ask())) == "<think>\nWell.\n</think>\n\nYes."
        model.close()


def test_closing_while_the_engine_has_not_answered_yet() -> None:
    left = threading.Event()

    def never(handler: Engine) -> None:
        left.set() if handler.connection.recv(1) == b"" else None

    with engine({"/v1/chat/completions": (200, never)}) as address:
        model = connect(address)
        events = model.stream(ask())
        time.sleep(0.3)
        events.close()
        assert left.wait(5), "the engine sees that nobody waits any more"
        model.close()


def test_closing_the_model_ends_its_replies() -> None:
    def never(handler: Engine) -> None:
        _begin_stream(handler, _chunk(content="so far"))
        handler.connection.recv(1)

    with engine({"/v1/chat/completions": (200, never)}) as address:
        model = connect(address)
        events = model.stream(ask())
        while not isinstance(events.get(), TextDelta):
            pass
        model.close()
        model.close()
        with pytest.raises(Unavailable, match="unloaded"):
            events.get()
        with pytest.raises(Unavailable, match="not loaded"):
            model.stream(ask())


def test_vectors_have_unit_length() -> None:
    vectors = {"object": "list", "model": "one", "data": [{"object": "embedding", "index": 0, "embedding": [3.0, 4.0]}]}
    with engine({"/v1/embeddings": (200, {**vectors, "usage": {"prompt_tokens": 1, "total_tokens": 1}})}) as address:
        model = connect(address)
        (vector,) = model.embed(["x"])
        assert vector == [0.6, 0.8] and fsum(value * value for value in vector) == pytest.approx(1)
        model.close()


def test_an_engine_that_is_not_there_is_said() -> None:
    with pytest.raises(Unavailable, match="No engine answers"):
        connect(f"http://127.0.0.1:{free_port()}/v1")


def test_a_model_that_is_not_listed_is_refused_with_those_that_are() -> None:
    with engine({}) as address, pytest.raises(NotFound, match="It has: one"):
        connect(address, remote_model="two")


def test_an_address_comes_from_the_file_or_the_options(tmp_path: Path) -> None:
    with engine({}) as address:
        path = tmp_path / "far.yaml"
        path.write_text(f"base_url: {address}\nmodel: one\napi_key: sesame\ncontext_length: 50\n")
        spec = ModelSpec("far", path, "remote", 0, endpoint=address)
        model = remote.load(spec, LoadOptions(), lambda progress: None)
        assert model.context_length == 50
        local = ModelSpec("folder", tmp_path, "folder", 0)
        assert remote.why_not(local, LoadOptions()) is not None
        options = LoadOptions(base_url=address)
        assert remote.why_not(local, options) is None and choose(local, options) == "remote"
        remote.load(local, options, lambda progress: None).close()
        model.close()
