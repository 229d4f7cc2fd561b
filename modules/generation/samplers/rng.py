"""Random numbers that depend on a seed and a place alone, so that a row draws the same whatever runs beside it."""

from __future__ import annotations

_WORD = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) for the `place`-th draw of `seed`: SplitMix64 (Steele et al. 2014), by counter instead of by state."""
    return (_mixed(_mixed(seed) + place * _STEP) >> 11) * 2.0**-53


def _mixed(word: int) -> int:
    word = (word + _STEP) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
