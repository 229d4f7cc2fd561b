"""Only whole characters, and nothing of a stop text, ever reach the reader."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from modules.generation.stop_strings import StopTexts, Utf8Pieces


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    watch = StopTexts(stops)
    shown = "".join(watch.feed(piece) for piece in pieces)
    return shown + ("" if watch.found else watch.finish()), watch.found


def test_a_stop_text_that_spans_pieces_is_never_shown_in_part():
    watch = StopTexts(["</s>", "User:"])
    assert [watch.feed(piece) for piece in ("Hello <", "/", "b> Us", "er", ": hi")] == ["Hello ", "", "</b> ", "", ""]
    assert watch.found == "User:"


def test_the_earliest_stop_text_wins_and_the_longer_of_two_at_one_place():
    assert run(["bcd", "bc", "d"], ["abcd"]) == ("a", "bcd")


@given(
    text=st.text("abc", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_however_the_text_is_cut_the_result_is_the_same(text, cuts, stops):
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    shown, found = run(stops, pieces)
    ends = [text.find(stop) for stop in stops if stop in text]
    if found is None:
        assert shown == text
        assert not ends
    else:
        assert text.startswith(shown + found)


@given(st.text(max_size=30), st.integers(1, 4))
def test_characters_come_whole_whatever_the_byte_cuts(text, size):
    raw = text.encode("utf-8", "ignore")
    pieces = Utf8Pieces()
    parts = [pieces.feed(raw[at : at + size]) for at in range(0, len(raw), size)]
    assert "".join(parts) == raw.decode("utf-8")
    assert "�" not in "".join(parts) or "�" in text
