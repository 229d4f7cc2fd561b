"""What differs between two texts, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Literal

Change = Literal["same", "out", "in"]
_WORDS = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]|\s+|\w+|[^\w\s]")


def differences(old: str, new: str) -> list[tuple[Change, str]]:
    """The way from `old` to `new`: what stays, what goes out, what comes in. Chinese goes by characters.

    >>> differences("a red fox", "a blue fox")
    [('same', 'a '), ('out', 'red'), ('in', 'blue'), ('same', ' fox')]
    """
    before, after = _WORDS.findall(old), _WORDS.findall(new)
    return list(_joined(_steps(before, after)))


def _steps(before: list[str], after: list[str]) -> Iterator[tuple[Change, str]]:
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=len(before) > 2000).get_opcodes():
        if kind == "equal":
            yield "same", "".join(before[i:j])
            continue
        if i < j:
            yield "out", "".join(before[i:j])
        if k < m:
            yield "in", "".join(after[k:m])


def _joined(steps: Iterator[tuple[Change, str]]) -> Iterator[tuple[Change, str]]:
    """A lone space between two changed stretches is changed too: one change reads better than three."""
    held: list[tuple[Change, str]] = []
    for step in steps:
        held.append(step)
    at = 0
    while at < len(held):
        run_out, run_in = "", ""
        while at < len(held) and (held[at][0] != "same" or ((run_out or run_in) and _is_gap(held, at))):
            kind, text = held[at]
            run_out += text if kind != "in" else ""
            run_in += text if kind != "out" else ""
            at += 1
        if run_out:
            yield "out", run_out
        if run_in:
            yield "in", run_in
        if at < len(held):
            yield held[at]
            at += 1


def _is_gap(steps: list[tuple[Change, str]], at: int) -> bool:
    return at + 1 < len(steps) and steps[at][1].isspace() and "\n" not in steps[at][1]
