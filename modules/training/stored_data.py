"""Prepared rows in one file of a run's folder, so that a resumed run sees the same ones, whatever became of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules.library.paths import written_whole
from modules.training.samples import Sample


def store(path: Path, train: Sequence[Sample], held_out: Sequence[Sample], sentence: str) -> None:
    """Write both parts; everything or nothing."""
    import numpy as np

    arrays: dict[str, Any] = {"sentence": np.array(sentence)}
    for name, samples in (("train", train), ("held_out", held_out)):
        arrays[f"{name}_tokens"] = np.fromiter((token for sample in samples for token in sample.tokens), np.int32)
        arrays[f"{name}_learnt"] = np.fromiter((flag for sample in samples for flag in sample.learnt), np.bool_)
        arrays[f"{name}_lengths"] = np.array([len(sample.tokens) for sample in samples], np.int64)
        unread = [(at, place) for at, sample in enumerate(samples) for place in sample.unread]
        arrays[f"{name}_unread"] = np.array(unread, np.int64).reshape(-1, 2)
        arrays[f"{name}_rows"] = np.array([sample.row for sample in samples], np.int64)
    with written_whole(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> tuple[list[Sample], list[Sample], str]:
    """(train, held_out, the sentence about them) as they were stored."""
    import numpy as np

    with np.load(path) as arrays:
        parts = []
        for name in ("train", "held_out"):
            ends = np.cumsum(arrays[f"{name}_lengths"])[:-1]
            tokens = np.split(arrays[f"{name}_tokens"], ends)
            learnt = np.split(arrays[f"{name}_learnt"], ends)
            rows = arrays[f"{name}_rows"].tolist()
            unread: dict[int, list[int]] = {}
            # Runs that were begun before there were any have none.
            for at, place in arrays.get(f"{name}_unread", np.zeros((0, 2), np.int64)).tolist():
                unread.setdefault(at, []).append(place)
            parts.append(
                [
                    Sample(tuple(t.tolist()), tuple(f.tolist()), row, unread=tuple(unread.get(at, ())))
                    for at, (t, f, row) in enumerate(zip(tokens, learnt, rows, strict=False))
                ]
            )
        return parts[0], parts[1], str(arrays["sentence"])
