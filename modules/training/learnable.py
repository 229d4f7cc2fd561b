"""Which samples there is something to learn from, after cutting and masking, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules.errors import UserError
from modules.training.config import TrainingConfig
from modules.training.rows import Problem
from modules.training.samples import Marked, Sample

SAME = "the same when cut"

Group = Sequence[Sample]
"""What is computed together: one sample, or the chosen answer and the rejected one."""


def learnable(samples: Sequence[Sample], config: TrainingConfig, size: int) -> tuple[list[Sample], list[Problem]]:
    """Those that can be learnt from, in groups of `size` that stay together, and what is wrong with the others.

    Nothing is left where the cutoff makes all groups the same.
    """
    kept: list[Group] = []
    problems: list[Problem] = []
    full: dict[Any, Group] = {}
    repeated = False
    for at in range(0, len(samples), size):
        group = samples[at : at + size]
        if problem := _reason_to_leave_out(group, config):
            problems.append(problem)
            continue
        if problem := _same_as_another(group, full, config):
            problems.append(problem)
            repeated = True
            continue
        kept.append(group)
        cut = max(group, key=lambda sample: sample.cut)
        if cut.cut:
            length = len(cut.tokens) + cut.cut
            problems.append(Problem("too long (cut)", cut.row, f"it has {length} tokens and loses {cut.cut}"))
    if len(kept) == 1 and repeated:
        row = kept.pop()[0].row
        problems = [problem for problem in problems if problem.row != row]
        problems.append(Problem(SAME, row, f"its first {config.cutoff} tokens are those of every row that is left"))
    return [sample for group in kept for sample in group], problems


def _reason_to_leave_out(group: Group, config: TrainingConfig) -> Problem | None:
    return next((problem for sample in group if (problem := _alone(sample, config))), None) or _same_answers(group)


def _alone(sample: Sample, config: TrainingConfig) -> Problem | None:
    length = len(sample.tokens) + sample.cut
    if sample.cut and config.long_rows == "skip":
        return Problem("too long (left out)", sample.row, f"it has {length} tokens")
    if sample.labels:
        return None
    if sample.cut:
        return Problem("too long (left out)", sample.row, f"it has {length} tokens, and its answer begins behind the cutoff")
    return Problem("no answer", sample.row, "no token of it would be learnt")


def _same_answers(group: Group) -> Problem | None:
    """Two answers of the same tokens differ by rounding alone, and that would be learnt."""
    if len(group) < 2 or _compared(group[0]) != _compared(group[1]):
        return None
    row = group[0].row
    if any(sample.cut for sample in group):
        return Problem(SAME, row, "the cutoff leaves the same of both answers")
    return Problem("the same answers", row, "both answers are the same tokens")


def _compared(sample: Sample) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """What counts of a sample: all up to its last learnt token."""
    end = max(at for at, learnt in enumerate(sample.learnt) if learnt) + 1
    return sample.tokens[:end], sample.learnt[:end]


def _same_as_another(group: Group, full: dict[Any, Group], config: TrainingConfig) -> Problem | None:
    """Rows that are the same as they were written may be meant so, those that the cutoff makes the same are not.

    full: the groups so far that reach the cutoff, by what they have left.
    """
    if all(len(sample.tokens) < config.cutoff for sample in group):
        return None
    first = full.setdefault(tuple((sample.tokens, sample.learnt) for sample in group), group)
    if [(one.cut, one.lost) for one in first] == [(one.cut, one.lost) for one in group]:
        return None
    return Problem(SAME, group[0].row, f"its first {config.cutoff} tokens stand in row {first[0].row} already")


def check_ends(marked: Sequence[Marked], tokenizer: Any, words: str) -> None:
    """Raises UserError where ends are to be learnt that neither the tokenizer nor the text has a token or word for.

    words: what the texts are made with, such as "the template Guanaco".
    """
    if tokenizer.eos_token_id is None and any(item.open for item in marked):
        raise UserError(
            f"Nothing would teach the model where to stop: its tokenizer has no end token, and {words} puts nothing behind "
            "an answer. Choose a template that ends its turns, such as ChatML, or turn add_eos off to train without an end.",
            param="add_eos",
        )


def check_end_of_text(config: TrainingConfig, tokenizer: Any) -> None:
    """Raises UserError where plain text is to have an end token, and the tokenizer has none."""
    if config.add_eos and tokenizer.eos_token_id is None:
        raise UserError(
            "Nothing would teach the model where a text ends: its tokenizer has no end token. "
            "Turn add_eos off to train without an end.",
            param="add_eos",
        )


def notes_on_ends(marked: Sequence[Marked], config: TrainingConfig, words: str) -> tuple[str, ...]:
    """Where earlier answers stay without an end, because what follows them is learnt in its place."""
    if config.loss == "answers" or not any(at < len(item.text) for item in marked for at in item.open):
        return ()
    return (f"{words} ends no answers, and with the loss {config.loss} the end is learnt behind the last one alone",)
