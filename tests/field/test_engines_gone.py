"""An engine of others that dies, or does not start: what is said, and how it comes back."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.errors import EngineGone, Unavailable, UserError
from modules.generation.model_manager import ModelManager
from modules.generation.remote.model import RemoteModel
from modules.generation.types import Finished, GenerationRequest, Message, TextDelta
from modules.library.model_spec import ModelSpec
from modules.loaders import remote, vllm
from modules.loaders.choose import load as load_any
from modules.loaders.options import LoadOptions
from tests.api.conftest import servers, wait_until
from tests.engines import VLLM, answer_json
from tests.fakes import loaded_in, stream_of

INPUTS = Path(__file__).parent / "inputs"
HELLO = GenerationRequest((Message("user", "Hello there"),))
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
MODELS = {"object": "list", "data": [{"id": "one", "object": "model", "created": 0, "owned_by": "vllm", "max_model_len": 999}]}


class Handler(http.server.BaseHTTPRequestHandler):
    """An engine that is well, says what `server.says` has, or is dead."""

    def do_GET(self) -> None:
        dead = self.server.dead  # type: ignore[attr-defined]
        if self.path == "/v1/models":
            self._send(200, MODELS)
        else:
            self._send((503 if dead else 200) if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.says(self)  # type: ignore[attr-defined]

    def _send(self, status: int, body: Any) -> None:
        answer_json(self, status, body)

    def stream(self, *chunks: dict[str, Any], whole: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if whole:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def chunk(text: str, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "one", "choices": [choice]}


class FarEngine:
    """The engine as the test sees it: what it says, and whether it is dead."""

    def __init__(self) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.says(lambda handler: handler.stream(chunk("Good day."), chunk("", "stop")))
        self.dead = False
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def says(self, answer: Callable[[Handler], None]) -> None:
        self._server.says = answer  # type: ignore[attr-defined]

    @property
    def dead(self) -> bool:
        return self._server.dead  # type: ignore[attr-defined]

    @dead.setter
    def dead(self, value: bool) -> None:
        self._server.dead = value  # type: ignore[attr-defined]

    def load(self, report: Callable[[str], None] = lambda line: None) -> RemoteModel:
        return remote.load(ModelSpec("far", Path("models/far.yaml"), "remote", 0, endpoint=self.address), LoadOptions(), report)

    def end(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def far() -> Iterator[FarEngine]:
    engine = FarEngine()
    yield engine
    engine.end()


@pytest.fixture
def engine(far: FarEngine) -> Iterator[ModelManager]:
    held = ModelManager()
    held.replace("far", far.load)
    yield held
    held.close()


def text_of(events: Any) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def within(code: int | None, kind: str, message: str) -> Callable[[Handler], None]:
    """A failure in the middle of a stream, as vLLM writes it."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return lambda handler: handler.stream(chunk("so far"), {"error": error})


def with_status(status: int, message: str) -> Callable[[Handler], None]:
    return lambda handler: handler._send(status, {"error": {"message": message, "type": "InternalServerError", "code": status}})


@pytest.mark.parametrize("dead", [True, False], ids=["its server says so", "its server is not yet aware"])
@pytest.mark.parametrize(
    "says",
    [
        within(400, "BadRequestError", DEAD),
        within(500, "InternalServerError", DEAD),
        with_status(500, DEAD),
        with_status(400, f"EngineDeadError: {DEAD}"),
    ],
    ids=["bad request within", "server error within", "status 500", "status 400"],
)
def test_a_dead_engine_is_unavailable_and_let_go_of(
    engine: ModelManager, far: FarEngine, says: Callable[[Handler], None], dead: bool
) -> None:
    far.says(says)
    far.dead = dead
    with pytest.raises(EngineGone, match="has died") as caught:
        list(stream_of(engine, HELLO))
    assert caught.value.status == 503
    assert wait_until(lambda: engine.status.state == "asleep")
    assert "has died" in (engine.status.error or "") and engine.loaded is None
    assert engine.unloaded is not None and engine.unloaded.name == "far"


def test_an_unknown_failure_of_an_engine_that_is_ill_is_its_end(engine: ModelManager, far: FarEngine) -> None:
    far.says(within(400, "BadRequestError", "list index out of range"))
    far.dead = True
    with pytest.raises(EngineGone, match="list index out of range"):
        list(stream_of(engine, HELLO))
    assert wait_until(lambda: engine.loaded is None)


def test_a_failure_of_an_engine_that_is_well_changes_nothing(engine: ModelManager, far: FarEngine) -> None:
    far.says(within(400, "BadRequestError", "this cannot be answered"))
    with pytest.raises(UserError, match="refuses the request: this cannot be answered") as caught:
        list(stream_of(engine, HELLO))
    assert caught.value.status == 400
    for says in (within(None, "", "the card fell out"), with_status(500, "the card fell out")):
        far.says(says)
        with pytest.raises(Unavailable, match="the card fell out") as caught:
            list(stream_of(engine, HELLO))
        assert type(caught.value) is Unavailable
    assert engine.status.state == "ready"


def test_an_engine_that_is_there_again_answers_the_next_request(far: FarEngine) -> None:
    held, places = ModelManager(), [FarEngine()]
    held.replace("far", lambda report: places[-1].load(report))
    assert text_of(stream_of(held, HELLO)) == "Good day."
    places[0].end()
    with pytest.raises(EngineGone, match="No engine answers"):
        list(stream_of(held, HELLO))
    assert wait_until(lambda: held.loaded is None)
    with pytest.raises(Unavailable, match="No engine answers"):
        list(stream_of(held, HELLO))
    places.append(far)  # somebody starts it again
    assert text_of(stream_of(held, HELLO)) == "Good day."
    assert held.status.state == "ready" and held.status.error is None
    held.close()


def test_a_reply_that_the_reader_left_does_not_end_the_engine(engine: ModelManager, far: FarEngine) -> None:
    go_on = threading.Event()

    def says(handler: Handler) -> None:
        handler.stream(chunk("so far"), whole=False)
        go_on.wait(10)

    far.says(says)
    events = stream_of(engine, HELLO)
    while not isinstance(events.get(), TextDelta):
        pass
    far.dead = True
    events.close()
    assert wait_until(lambda: loaded_in(engine).status().running == 0)
    go_on.set()
    assert engine.status.state == "ready"


@pytest.mark.parametrize("reason", ["abort", "content_filter", "error"])
def test_what_the_engine_cut_is_passed_on_as_cut(engine: ModelManager, far: FarEngine, reason: str) -> None:
    far.says(lambda handler: handler.stream(chunk("so far"), chunk("", reason)))
    *_, end = stream_of(engine, HELLO)
    assert isinstance(end, Finished) and end.reason == "abort"


def test_the_api_says_503_and_what_is_gone(tmp_path: Path, far: FarEngine) -> None:
    with servers(tmp_path) as start:
        server = start(empty=True)
        server.app.manager.replace("far", far.load)
        far.says(with_status(500, DEAD))
        far.dead = True
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
        assert answer.status_code == 503 and "has died" in answer.json()["error"]["message"]
        assert wait_until(lambda: server.app.manager.loaded is None)
        info = httpx.get(server.url + "/v1/internal/model/info").json()
        assert info["state"] == "asleep" and "has died" in info["error"]
        assert httpx.get(server.url + "/v1/models").json()["data"][0]["id"] == "far"


# --- vLLM


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("vllm_without_ray", "ValueError: current platform cpu does not support ray."),
        ("vllm_worker", "torch.AcceleratorError: CUDA error: invalid device ordinal"),
        (
            "vllm_config",
            "User-specified max_model_len (999999) is greater than the derived max_model_len (2048).",
        ),
        ("vllm_chained", "safetensors_rust.SafetensorError: Error while deserializing header: header too large"),
    ],
)
def test_the_root_cause_is_told(name: str, cause: str) -> None:
    lines = (INPUTS / f"{name}.log").read_text(encoding="utf-8").splitlines()
    assert vllm.root_cause([line.strip() for line in lines if line.strip()]) == cause


def test_without_an_exception_the_last_words_are_told() -> None:
    assert vllm.root_cause(["usage: vllm", "vllm: error: unrecognized arguments: --foo"]).endswith("--foo")
    assert vllm.root_cause(["INFO 11-29 10:00:01 [a.py:1] starting", "Killed"]) == "Killed"
    assert vllm.root_cause([]) == "it said nothing."


STAND_IN = (
    VLLM
    + """
import os, threading
if "--fail" in words:
    print(open(words[words.index("--fail") + 1]).read(), flush=True)
    print("\\n".join(f"line {at}" for at in range(100)), flush=True)
    sys.exit(1)
class Handler(Handler):
    def do_POST(self):
        print("(EngineCore_0 pid=7) ERROR 11-29 10:00:12 [core.py:1] torch.OutOfMemoryError: CUDA out of memory.", flush=True)
        print("(APIServer pid=1) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.", flush=True)
        threading.Timer(0.3, os._exit, (1,)).start()
        error = {"message": "EngineCore encountered an issue.", "type": "BadRequestError", "code": 400}
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: " + json.dumps({"error": error}).encode() + b"\\n\\n")
serve()
"""
)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """Something that starts like `vllm serve`, and dies like it with the first question."""
    script = tmp_path / "vllm.py"
    script.write_text(STAND_IN)
    monkeypatch.setenv(vllm.COMMAND, f"{sys.executable} {script}")
    return ModelSpec("folder", tmp_path, "folder", 0)


def test_what_kept_vllm_from_starting_is_told_however_much_it_says_afterwards(stand_in: ModelSpec) -> None:
    options = LoadOptions(loader="vllm", vllm_args=f"--fail {INPUTS / 'vllm_without_ray.log'}")
    with pytest.raises(UserError, match="current platform cpu does not support ray"):
        load_any(stand_in, options, lambda progress: None)


def test_vllm_that_dies_is_told_with_its_cause_and_starts_again_with_the_next_request(stand_in: ModelSpec) -> None:
    held = ModelManager()
    loads = []

    def load(report: Callable[[str], None]) -> Any:
        loads.append(1)
        return load_any(stand_in, LoadOptions(loader="vllm"), report)

    held.replace("folder", load)
    try:
        with pytest.raises(EngineGone, match=r"vLLM has died: torch\.OutOfMemoryError: CUDA out of memory"):
            list(stream_of(held, HELLO))
        assert wait_until(lambda: held.loaded is None, 15)
        assert held.status.error is not None and "CUDA out of memory" in held.status.error
        with pytest.raises(EngineGone):
            list(stream_of(held, HELLO))
        assert len(loads) == 2
    finally:
        held.close()
