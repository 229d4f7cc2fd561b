"""Who is let in to llama.cpp, and who waits."""

from __future__ import annotations

import threading
import time

from modules.generation.admission import Gate
from modules.generation.stream import EventStream
from modules.generation.types import Queued


class Visitor:
    """A request that notes when it is let in."""

    def __init__(self, gate: Gate, tokens: int) -> None:
        self.events = EventStream()
        self.let_in = False
        self.gate, self.tokens = gate, tokens
        gate.enter(self.events, tokens, self._start)

    def _start(self) -> None:
        self.let_in = True

    def leave(self) -> None:
        self.gate.leave(self.tokens)

    def places(self) -> list[int]:
        self.events.end()
        return [event.place for event in self.events if isinstance(event, Queued)]


def test_more_requests_than_slots_wait_in_order_and_see_their_place() -> None:
    gate = Gate(2, 1000)
    first, second, third, fourth = (Visitor(gate, 10) for _ in range(4))
    assert [visitor.let_in for visitor in (first, second, third, fourth)] == [True, True, False, False]
    assert (gate.inside, gate.waiting) == (2, 2)
    first.leave()
    assert third.let_in and not fourth.let_in
    second.leave()
    assert fourth.let_in
    assert fourth.places() == [2, 1]


def test_requests_never_need_more_together_than_the_cache_holds() -> None:
    gate = Gate(4, 100)
    large, small, other = Visitor(gate, 70), Visitor(gate, 40), Visitor(gate, 20)
    assert large.let_in and not small.let_in
    assert not other.let_in, "nobody overtakes: a large request would wait for ever"
    large.leave()
    assert small.let_in and other.let_in


def test_whoever_leaves_the_queue_makes_room_for_the_next() -> None:
    gate = Gate(1, 100)
    first, second, third = (Visitor(gate, 10) for _ in range(3))
    second.events.close()
    assert gate.waiting == 1
    first.leave()
    assert third.let_in and not second.let_in
    assert third.places()[-1] == 1


def test_who_needs_more_room_gets_it_or_waits_at_the_head() -> None:
    gate = Gate(3, 100)
    first, second = Visitor(gate, 40), Visitor(gate, 40)
    assert gate.grow(first.events, 40, 60)
    third = Visitor(gate, 50)
    assert not third.let_in
    grown = threading.Thread(target=gate.grow, args=(second.events, 40, 60))
    grown.start()
    while gate.waiting < 2:
        time.sleep(0.001)
    assert gate.inside == 1, "what it held is free for others meanwhile"
    gate.leave(60)
    grown.join(5)
    assert not grown.is_alive() and gate.inside == 1 and not third.let_in
    assert 1 not in second.places(), "who has begun is not told a place again"
    gate.leave(60)
    assert third.let_in


def test_who_leaves_while_waiting_for_more_room_holds_nothing() -> None:
    gate = Gate(2, 100)
    first, second = Visitor(gate, 50), Visitor(gate, 50)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(gate.grow(second.events, 50, 80)))
    thread.start()
    while not gate.waiting:
        time.sleep(0.001)
    second.events.close()
    thread.join(5)
    assert answers == [False]
    first.leave()
    assert Visitor(gate, 100).let_in
