"""kill -9 at random moments of replies: no message is lost, and of a reply no more than about a second."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from modules.chats.store import ChatStore

WRITER = """
import sys, time
from pathlib import Path
from modules.chats.conversation import ChatSettings, request_for
from modules.chats.replies import Replies
from modules.chats.store import ChatStore
from modules.generation.engine import Engine
from modules.generation.sampling import SamplingParams
from tests.fakes import EchoModel

store, engine = ChatStore(Path(sys.argv[1])), Engine()
engine.replace("echo", lambda report: EchoModel(lambda request: "0123456789" * 1000, pace=0.005, context_length=100_000))
replies = Replies(store, engine)
for number in range(5):
    chat = store.create_chat("ann")
    question = store.add("ann", chat.id, None, "user", f"question {number}")
    request = request_for([question], ChatSettings(), SamplingParams(max_tokens=100_000))
    def make(chat=chat, question=question):
        return store.add("ann", chat.id, question.id, "assistant", "", state="streaming")
    reply = replies.begin(request, make)
running = [replies.get(message.id) for chat in store.chats("ann") for message in store.tree("ann", chat.id) if message.role == "assistant"]
while True:
    print(time.time(), *(f"{reply.id}:{len(reply.progress.text)}" for reply in running), flush=True)
    time.sleep(0.02)
"""


def test_kill_9_loses_no_message_and_at_most_a_second_of_a_reply(tmp_path: Path):
    root = Path(__file__).resolve().parents[2]
    chance = random.Random(4)
    for turn in range(10):
        path = tmp_path / f"{turn}.sqlite3"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(chance.uniform(0.05, 4.0))
        process.send_signal(signal.SIGKILL)
        killed = time.time()
        lines += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        check(path, [line for line in lines if line.strip()], killed)


def check(path: Path, lines: list[str], killed: float) -> None:
    """Every reply has what it had 2.5 s before the kill: one second between two writes, and some for a busy machine."""
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    before = [line for line in lines if line.count(":") == 5 and float(line.split()[0]) < killed - 2.5]
    pairs = [entry.split(":") for entry in before[-1].split()[1:]] if before else []
    had = {int(message): int(length) for message, length in pairs}
    store = ChatStore(path)
    chats = store.chats("ann")
    assert len(chats) == 5
    for chat in chats:
        question, reply = store.tree("ann", chat.id)
        assert question.content.startswith("question") and question.state == "whole"
        assert (reply.state, reply.figures.ending) == ("cut", "killed")
        assert reply.content == ("0123456789" * 1000)[: len(reply.content)]
        assert len(reply.content) >= had.get(reply.id, 0)
    store.close()
