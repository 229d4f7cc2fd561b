"""DRY, "don't repeat yourself": a penalty that grows with the length of the run that a token would repeat."""

from __future__ import annotations

import math

import numpy as np

LONGEST_RUN = 100
GREATEST_PENALTY = 1e30


def dry_penalties(
    tokens: np.ndarray, breaks: np.ndarray, *, multiplier: float, base: float, allowed_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """What to add to the logits of which tokens (Weidmann 2024, text-generation-webui #5677).

    A token that followed an earlier copy of the text's last n tokens, n ≥ `allowed_length`, loses
    multiplier · base^(n - allowed_length); where there are several copies, the longest counts.
    tokens [n] int64; breaks [n] bool: runs neither contain nor end in these. Returns (ids int64, amounts float32).
    """
    nothing = tokens[:0], np.zeros(0, np.float32)
    if len(tokens) <= allowed_length or breaks[-1]:
        return nothing
    end = len(tokens) - 1
    copies = np.flatnonzero((tokens[:-1] == tokens[end]) & ~breaks[1:])
    length = 1
    longest: list[tuple[np.ndarray, int]] = []
    while len(copies):
        if length >= allowed_length:
            longest.append((copies, length))
        if length == LONGEST_RUN or length > end or breaks[end - length]:
            break
        copies = copies[copies >= length]
        copies = copies[tokens[copies - length] == tokens[end - length]]
        length += 1
    if not longest:
        return nothing
    lengths = np.zeros(longest[0][0][-1] + 1)
    for places, reached in longest:
        lengths[places] = reached
    places = longest[0][0]
    ids, which = np.unique(tokens[places + 1], return_inverse=True)
    best = np.zeros(len(ids))
    np.maximum.at(best, which, lengths[places])
    return ids, -_penalty(best - allowed_length, multiplier, base)


def _penalty(beyond: np.ndarray, multiplier: float, base: float) -> np.ndarray:
    if base > 1:
        beyond = np.minimum(beyond, math.log(GREATEST_PENALTY) / math.log(base))
    return (multiplier * base**beyond).astype(np.float32)
