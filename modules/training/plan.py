"""Which rows each step takes, and how they are shared out: a pure function of lengths, config and seed."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from modules.training.config import Scheduler, TrainingConfig

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """sequences: indices of samples; those of one sequence are packed together. epoch: how far the data is gone through."""

    sequences: tuple[Rows, ...]
    epoch: float


def plan_steps(lengths: Sequence[int], config: TrainingConfig) -> list[Step]:
    """All steps of a run. Every epoch has an order of its own, made from the seed."""
    steps: list[Step] = []
    for epoch in range(math.ceil(config.epochs)):
        order = list(range(len(lengths)))
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        sequences = pack(order, lengths, config.cutoff) if config.packing else [(index,) for index in order]
        count = math.ceil(len(sequences) / config.batch)
        wanted = math.ceil(count * min(1.0, config.epochs - epoch))
        for number in range(wanted):
            part = sequences[number * config.batch : (number + 1) * config.batch]
            steps.append(Step(tuple(part), epoch + (number + 1) / count))
        if config.max_steps and len(steps) >= config.max_steps:
            return steps[: config.max_steps]
    return steps


def pack(order: Sequence[int], lengths: Sequence[int], size: int) -> list[Rows]:
    """Fill sequences of `size` tokens: each row goes where the least room is left (best fit), else into a new one."""
    filled: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for index in order:
        length = min(lengths[index], size)
        at = bisect_left(room, (length, -1))
        left, place = room.pop(at) if at < len(room) else (size, len(filled))
        if place == len(filled):
            filled.append([])
        filled[place].append(index)
        insort(room, (left - length, place))
    return [tuple(sequence) for sequence in filled]


def share_out(sequences: Sequence[Rows], lengths: Sequence[int], processes: int) -> list[list[Rows]]:
    """The sequences of a step for each process, so that all have about as many tokens."""
    parts: list[list[Rows]] = [[] for _ in range(processes)]
    load = [0] * processes
    for sequence in sorted(sequences, key=lambda one: -sum(lengths[index] for index in one)):
        least = load.index(min(load))
        parts[least].append(sequence)
        load[least] += sum(lengths[index] for index in sequence)
    return parts


def micro_batches(
    sequences: Sequence[Rows], lengths: Sequence[int], *, rows: int | None, tokens: int | None
) -> list[list[int]]:
    """What is computed at once: up to `rows` sequences and up to `tokens` tokens (at least one sequence), None sets no limit."""
    groups: list[list[int]] = []
    count = load = 0
    for sequence in sequences:
        size = sum(lengths[index] for index in sequence)
        full = (rows is not None and count + 1 > rows) or (tokens is not None and load + size > tokens)
        if not groups or full:
            groups.append([])
            count = load = 0
        groups[-1] += sequence
        count += 1
        load += size
    return groups


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """The rate of step `step` (from 0) of `total`."""
    warmup = round(config.warmup) if config.warmup >= 1 else math.ceil(config.warmup * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    share = _decay(config.scheduler, progress, step, warmup)
    return config.learning_rate * (config.min_learning_rate + (1 - config.min_learning_rate) * share)


def _decay(scheduler: Scheduler, progress: float, step: int, warmup: int) -> float:
    match scheduler:
        case "linear":
            return 1 - progress
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "cosine-restarts":
            return (1 + math.cos(math.pi * (4 * progress % 1.0))) / 2 if progress < 1 else 0.0
        case "polynomial":
            return (1 - progress) ** 2
        case "constant" | "constant-with-warmup":
            return 1.0
        case "inverse-sqrt":
            scale = max(warmup, 100)
            return math.sqrt(scale / (step - warmup + scale))
