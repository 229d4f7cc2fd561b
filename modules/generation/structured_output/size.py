"""How long the shortest reply of a grammar is, from the rules that llguidance writes into its log."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable

_LEXEME = re.compile(r"  \[(\d+)\] ")
_ARROW = " ⇦ "
_NOTHING = ("(ExprRef ∅)", "(NoMatch)")


def shortest(log: Iterable[str]) -> float:
    """The fewest terminals that a whole reply can have; infinite where there is no reply that ends.

    log: the lines of llguidance at log level 3, of one grammar. What is not understood in them counts as nothing.
    """
    empty, rules = _read(log)
    return _lengths(empty, rules).get("start", float("inf"))


def _read(log: Iterable[str]) -> tuple[set[str], list[tuple[str, list[str]]]]:
    """(terminals that match no text, rules as a symbol and those it may consist of)."""
    empty: set[str] = set()
    rules: list[tuple[str, list[str]]] = []
    symbol = ""
    for line in log:
        if line.startswith("  == Optimize"):
            break
        if lexeme := _LEXEME.match(line):
            if line.rstrip().endswith(_NOTHING):
                empty.add(f"[{lexeme[1]}]")
        elif _ARROW in line or line.rstrip().endswith(_ARROW.rstrip()):
            left, _, right = line.partition(_ARROW.rstrip())
            symbol = _name(left.strip()) or symbol
            rules.append((symbol, [_name(part) for part in right.split("%if")[0].split() if part != "ϵ"]))
    return empty, rules


def _name(symbol: str) -> str:
    """A symbol without its parameter: foo::0x0 and foo::_ are rules of foo."""
    return symbol.split("::", 1)[0]


def _lengths(empty: set[str], rules: list[tuple[str, list[str]]]) -> dict[str, float]:
    """The fewest terminals of each symbol that has an end, the shortest first, as Knuth generalises Dijkstra's method."""
    made = {symbol for symbol, _ in rules}
    waits: dict[str, list[int]] = defaultdict(list)
    missing: list[int] = []
    total: list[float] = []
    found: dict[str, float] = {}
    ready: list[tuple[float, str]] = []
    for number, (symbol, parts) in enumerate(rules):
        missing.append(0)
        total.append(0)
        for part in parts:
            if part in made:
                missing[number] += 1
                waits[part].append(number)
            elif part.startswith("["):
                total[number] += float("inf") if part in empty else 1
        if not missing[number] and total[number] < float("inf"):
            heapq.heappush(ready, (total[number], symbol))
    while ready:
        length, symbol = heapq.heappop(ready)
        if symbol in found:
            continue
        found[symbol] = length
        for number in waits[symbol]:
            missing[number] -= 1
            total[number] += length
            if not missing[number] and total[number] < float("inf"):
                heapq.heappush(ready, (total[number], rules[number][0]))
    return found
