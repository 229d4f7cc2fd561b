"""Clients that leave, dawdle or come in crowds."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import httpx
import pytest

from modules.api import streaming
from modules.generation.types import Finished, TextDelta
from tests.api.conftest import wait_until
from tests.fakes import EchoModel, repeat_the_question

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def endless(request) -> str:
    return "abcdefgh " * 500


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": HI}), (TEXT, {"prompt": "x", "max_tokens": 4000})])
def test_a_client_that_leaves_stops_the_model_at_once(serve, path, body, n):
    server = serve(EchoModel(endless, pace=0.01))
    with httpx.stream("POST", server.url + path, json={**body, "stream": True, "n": n}) as reply:
        for _ in zip(range(5), reply.iter_raw(), strict=False):
            pass
    assert wait_until(lambda: all(stream.closed for stream in server.model.streams))
    assert len(server.model.streams) == n


def test_a_client_that_leaves_while_the_prompt_is_read_stops_the_model(serve):
    class Silent(EchoModel):
        def _run(self, request, prompt, events):
            while not events.closed:
                time.sleep(0.005)

    server = serve(Silent())
    for stream in (True, False):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + CHAT, json={"messages": HI, "stream": stream}, timeout=0.2)
        assert wait_until(lambda: all(stream.closed for stream in server.model.streams))
    assert len(server.model.streams) == 2


def test_a_client_that_does_not_wait_for_the_whole_reply_stops_the_model(serve):
    server = serve(EchoModel(endless, pace=0.01))
    for path, body in ((CHAT, {"messages": HI, "n": 2}), (TEXT, {"prompt": "x", "max_tokens": 4000})):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + path, json=body, timeout=0.2)
        assert wait_until(lambda: all(stream.closed for stream in server.model.streams))


def test_every_stream_is_closed_at_its_end(server):
    for stream in (True, False):
        server.post(CHAT, {"messages": HI, "stream": stream, "n": 2}).raise_for_status()
    assert wait_until(lambda: all(stream.closed or stream._ended for stream in server.model.streams))
    assert not server.app.manager._streams


def test_a_long_silence_is_filled_with_comments(serve, monkeypatch):
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(streaming, "FIRST_EVENT_SECONDS", 0.05)

    go_on = threading.Event()

    class Slow(EchoModel):
        def _run(self, request, prompt, events):
            go_on.wait(30)
            super()._run(request, prompt, events)

    server = serve(Slow())
    text = ""
    with httpx.stream("POST", server.url + CHAT, json={"messages": HI, "stream": True}, timeout=60) as reply:
        for piece in reply.iter_text():
            text += piece
            if text.count(": still working\n\n") >= 2:
                go_on.set()
    assert go_on.is_set()
    assert text.endswith("data: [DONE]\n\n")
    chunks = list(server.client().chat.completions.create(model="echo", messages=HI, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hi"


def test_what_waits_is_sent_together(serve):
    """A slow reader gets fewer, longer pieces; nothing is lost or put out of order."""
    text = "".join(chr(0x4E00 + number) for number in range(3000))
    server = serve(EchoModel(lambda request: text))
    chunks = list(server.client().chat.completions.create(model="echo", messages=HI, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert len(chunks) < 3000


def test_a_hundred_clients_at_once_each_get_their_whole_reply(serve):
    server = serve(EchoModel(lambda request: repeat_the_question(request) * 20, pace=0.002))

    async def ask(client: httpx.AsyncClient, number: int) -> str:
        body = {"messages": [{"role": "user", "content": f"<{number}>"}], "stream": True}
        text = ""
        async with client.stream("POST", server.url + CHAT, json=body) as reply:
            async for line in reply.aiter_lines():
                text += line + "\n"
                if number == 7 and len(text) > 500:
                    return "left"
                if number == 8:
                    await asyncio.sleep(0.02)
        return text

    async def crowd() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(100)))

    before = threading.active_count()
    texts = asyncio.run(crowd())
    for number, text in enumerate(texts):
        if number == 7:
            assert text == "left"
        else:
            pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            said = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)
            assert said == f"<{number}>" * 20
            assert text.endswith("data: [DONE]\n\n")
    assert wait_until(lambda: not server.app.manager._streams)
    assert wait_until(lambda: threading.active_count() <= before + 45)


def test_reading_takes_all_that_is_there(serve):
    model = EchoModel(lambda request: "abc")

    async def read() -> list:
        from modules.generation.types import GenerationRequest

        stream = model.stream(GenerationRequest("x"))
        await asyncio.sleep(0.1)
        return [await stream.read(), await stream.read()]

    first, second = asyncio.run(read())
    assert [event.text for event in first if isinstance(event, TextDelta)] == ["a", "b", "c"]
    assert isinstance(first[-1], Finished)
    assert second == []
