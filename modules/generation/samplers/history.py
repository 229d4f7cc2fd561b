"""What one row has read and said so far, as arrays that grow by one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modules.generation.samplers.vocabulary import Vocabulary


class GrowableArray:
    """An array that values are appended to. `values` is a view of what is there."""

    def __init__(self, start: np.ndarray) -> None:
        self._length = len(start)
        self._room = np.empty(max(256, len(start) * 2), start.dtype)
        self._room[: len(start)] = start

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> np.ndarray:
        return self._room[: self._length]

    def append(self, value: int | float | bool) -> None:
        if self._length == len(self._room):
            self._room = np.concatenate([self._room, np.empty_like(self._room)])
        self._room[self._length] = value
        self._length += 1


class Counts:
    """Which tokens occurred, and how often."""

    def __init__(self, tokens: np.ndarray) -> None:
        ids, numbers = np.unique(tokens, return_counts=True)
        self._ids, self._numbers = GrowableArray(ids), GrowableArray(numbers.astype(np.float32))
        self._place = {token: place for place, token in enumerate(ids.tolist())}

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is not None:
            self._numbers.values[place] += 1
            return
        self._place[token] = len(self._ids)
        self._ids.append(token)
        self._numbers.append(1)

    @property
    def ids(self) -> np.ndarray:
        """Every token once, int64."""
        return self._ids.values

    @property
    def numbers(self) -> np.ndarray:
        """How often each of `ids` occurred, float32."""
        return self._numbers.values


class TokenHistory:
    """The tokens of prompt and reply, int64, and their counts."""

    def __init__(self, prompt: Sequence[int]) -> None:
        start = np.array(prompt, dtype=np.int64)
        self.prompt = np.unique(start)
        self.prompt_length = len(start)
        self._tokens = GrowableArray(start)
        self._all, self._reply = Counts(start), Counts(start[:0])

    def add(self, token: int) -> None:
        self._tokens.append(token)
        self._all.add(token)
        self._reply.add(token)

    @property
    def tokens(self) -> np.ndarray:
        return self._tokens.values

    def last(self, count: int) -> np.ndarray:
        """The last `count` tokens of prompt and reply; 0 is all of them."""
        return self.tokens[-count:] if count else self.tokens

    def seen(self, count: int) -> np.ndarray:
        """Every token among the last `count`, once; 0 looks at all of them."""
        return np.unique(self.last(count)) if count else self._all.ids

    def said(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Every token of the reply among the last `count` (0: all), and how often it is there (float32)."""
        reply_length = len(self._tokens) - self.prompt_length
        if not count or count >= reply_length:
            return self._reply.ids, self._reply.numbers
        ids, numbers = np.unique(self.last(count), return_counts=True)
        return ids, numbers.astype(np.float32)


class SequenceBreakers:
    """Where one of `texts` ends in a row of tokens: bool, one for each token. Markers such as end-of-turn always break."""

    def __init__(self, texts: Sequence[str], prompt: Sequence[int], vocabulary: Vocabulary) -> None:
        self._texts = [text.encode() for text in texts if text]
        self._vocabulary = vocabulary
        self._reach = max((len(text) for text in self._texts), default=1) - 1
        pieces = [vocabulary.bytes_of(token) for token in prompt]
        whole = b"".join(pieces)
        self._tail = whole[-self._reach :] if self._reach else b""
        self._at = GrowableArray(self._mark(whole, np.array([len(piece) for piece in pieces], dtype=np.int64)))

    @property
    def at(self) -> np.ndarray:
        return self._at.values

    def add(self, token: int) -> None:
        piece = self._vocabulary.bytes_of(token)
        text, start = self._tail + piece, len(self._tail)
        ends_here = any(text.find(breaker, max(0, start - len(breaker) + 1)) >= 0 for breaker in self._texts)
        self._at.append(ends_here or not piece)
        self._tail = text[-self._reach :] if self._reach else b""

    def _mark(self, whole: bytes, lengths: np.ndarray) -> np.ndarray:
        marks = lengths == 0
        ends = lengths.cumsum()
        for breaker in self._texts:
            found = whole.find(breaker)
            while found >= 0:
                marks[np.searchsorted(ends, found + len(breaker) - 1, side="right")] = True
                found = whole.find(breaker, found + 1)
        return marks
