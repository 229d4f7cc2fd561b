"""kill -9 of the server at random moments of 50 replies: no message is lost, and of a reply no more than a second."""

from __future__ import annotations

import random
import re
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.api.page.markdown import Block
from tests.in_process import events_of
from tests.serving import Server
from tests.shown import after

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TEXT = " ".join(f"w{number}" for number in range(20_000))
SLOW_MODEL = """
import sys
import server
from modules.app import App
from tests.chats.test_kill import TEXT
from tests.fakes import EchoModel

def rest(request):
    last = request.prompt[-1]
    return TEXT[len(last.content):] if last.role == "assistant" else TEXT

model = EchoModel(rest, name="slow", pace=0.005, context_length=1_000_000)
App.load_at_start = lambda app: app.manager.replace("slow", lambda report: model)
sys.exit(server.main(sys.argv[1:]))
"""
KILLS, TOGETHER = 5, 10


class Reader:
    """Follows one reply as the page does, and notes how long its text was at what time."""

    def __init__(self, url: str, reply: int) -> None:
        self.lengths: list[tuple[float, int]] = []
        self._blocks: list[Block] = []
        self._thread = threading.Thread(target=self._follow, args=(url, reply), daemon=True)
        self._thread.start()

    def _follow(self, url: str, reply: int) -> None:
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                for event in events_of(client, "reply", reply):
                    self._take(event)
        except httpx.TransportError:  # the kill
            pass

    def _take(self, data: Any) -> None:
        self._blocks = after(self._blocks, data)
        text = re.sub(r"<[^>]*>", "", "".join(block.html for block in self._blocks)).strip()
        assert TEXT.startswith(text)
        self.lengths.append((time.monotonic(), len(text)))

    def length_at(self, moment: float) -> int:
        """What the reader had then, in characters. Waits for the stream's end."""
        self._thread.join(timeout=30)
        return max((length for when, length in self.lengths if when <= moment), default=0)


def send(client: httpx.Client, number: int) -> tuple[int, int]:
    """(chat, reply) of a new question."""
    made = client.post("/chats/send", json={"content": f"question {number}", "settings": {}}).raise_for_status().json()
    return made["chat"], made["reply"]


def stored(client: httpx.Client, reply: int) -> str:
    return client.get(f"/chats/messages/{reply}").raise_for_status().json()["content"]


def test_kill_9_loses_no_message_and_at_most_a_second_of_a_reply(tmp_path: Path):
    chance = random.Random(4)
    server = Server(["--model", "slow", "--max-tokens", "1000000"], data=tmp_path, program=["-c", SLOW_MODEL])
    questions: dict[int, str] = {}
    with server, server.client() as client, ThreadPoolExecutor(TOGETHER) as pool:
        for turn in range(KILLS):
            numbers = range(turn * TOGETHER, (turn + 1) * TOGETHER)
            replies = list(pool.map(lambda number: send(client, number), numbers))
            questions |= {chat: f"question {number}" for number, (chat, _) in zip(numbers, replies, strict=True)}
            readers = [Reader(server.url, reply) for _, reply in replies]
            time.sleep(chance.uniform(0.1, 4.0))
            killed = time.monotonic()
            server.kill()
            server.start()
            with sqlite3.connect(tmp_path / "textloom.sqlite3") as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            db.close()
            kept: dict[int, str] = {}
            for (chat, reply), reader in zip(replies, readers, strict=True):
                question, answer = client.post(f"/chats/{chat}/view", json={}).raise_for_status().json()["messages"]
                assert question["text"] == questions[chat]
                assert (answer["id"], answer["state"], answer["figures"]["ending"]) == (reply, "cut", "killed")
                kept[reply] = stored(client, reply)
                assert TEXT.startswith(kept[reply])
                assert len(kept[reply]) >= reader.length_at(killed - 1)
            for reply in kept:
                client.post(f"/chats/messages/{reply}/continue").raise_for_status()
            for reply, text in kept.items():
                goes_on(client, reply, text)
        listed = {row["id"]: row["title"] for row in client.get("/chats").raise_for_status().json()}
        assert listed == questions and len(questions) == KILLS * TOGETHER


def goes_on(client: httpx.Client, reply: int, before: str) -> None:
    """A continued reply grows from where it was cut, and stops."""
    deadline = time.monotonic() + 30
    while len(stored(client, reply)) <= len(before):
        assert time.monotonic() < deadline, "the reply does not grow"
        time.sleep(0.05)
    assert client.post(f"/chats/replies/{reply}/stop").raise_for_status().json() == {"stopped": True}
    after = stored(client, reply)
    assert len(after) > len(before) and TEXT.startswith(after)
