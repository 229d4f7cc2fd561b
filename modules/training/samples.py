"""From marked text to tokens and labels: which token is learnt, decided once, here."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.generation.control_tokens import MARK, ChatEncoder
from modules.library.hf_folder import chat_template_in
from modules.library.models import describe
from modules.loaders import pretrained
from modules.training.config import TrainingConfig
from modules.training.render import Rendered, Span


@dataclass(frozen=True)
class Sample:
    """One sequence. learnt[i]: whether the model is taught to write token i after those before it.

    unread: places of tokens that are learnt, and that the model does not read before those behind them: the ends of
    earlier answers, where the template has none. row: number of the row that it comes from. cut: how many tokens its end lost;
    lost: a fingerprint of those, by which rows that differ behind the cutoff alone are known.
    """

    tokens: tuple[int, ...]
    learnt: tuple[bool, ...]
    row: int
    cut: int = 0
    lost: int = 0
    unread: tuple[int, ...] = ()

    @property
    def labels(self) -> int:
        """How many tokens are learnt; the first of a sequence has nothing before it and cannot be."""
        return sum(self.learnt[1:])


@dataclass(frozen=True)
class Marked:
    """A text that waits for its tokens. begin: whether the text's begin token belongs before it; end: an end token behind it.

    ends: where in the text an end token is learnt which the text does not have. open: where it would be wanted.
    """

    row: int
    text: str
    spans: tuple[Span, ...]
    begin: bool
    end: bool
    ends: tuple[int, ...] = ()
    open: tuple[int, ...] = ()


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder. Raises UserError."""
    from modules.generation.local.prompt import chat_template_of

    spec = describe(Path(path))
    try:
        with pretrained.as_listed(spec) if spec.weights else nullcontext(spec.path) as folder:
            tokenizer = pretrained.load_tokenizer(spec.name, folder)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer of {spec.name} cannot be loaded: {error}", param="model") from None
    if not tokenizer.is_fast:
        raise UserError(f"{spec.name} has no fast tokenizer, which training needs.", param="model")
    if chat_template_of(tokenizer) is None:  # an empty chat_template.jinja hides what tokenizer_config.json has
        tokenizer.chat_template = chat_template_in(spec.path)
    return tokenizer


def mark(rendered: Rendered, row: int, config: TrainingConfig, *, begin: bool) -> Marked | None:
    """What of `rendered` is learnt under the config's loss; None where its marker is not in the text."""
    if config.loss == "all":
        spans: tuple[Span, ...] = ((0, len(rendered.text)),)
    elif config.loss == "after":
        at = rendered.text.find(config.loss_after)
        if at < 0:
            return None
        spans = ((at + len(config.loss_after), len(rendered.text)),)
    else:
        spans = rendered.answers
    open = rendered.open if config.add_eos else ()
    ends = tuple(at for at in open if at < len(rendered.text)) if config.loss == "answers" else ()
    return Marked(row, rendered.text, spans, begin, config.add_eos and rendered.ends_with_answer, ends, open)


def tokenize(marked: Sequence[Marked], tokenizer: Any, encoder: ChatEncoder, cutoff: int) -> Iterator[Sample]:
    """Samples in the same order. A token is learnt where any of its characters is; the end token where the last one is."""
    begin, end = begin_tokens(tokenizer), tokenizer.eos_token_id
    for start in range(0, len(marked), 1000):
        part = marked[start : start + 1000]
        coded = tokenizer([item.text for item in part], add_special_tokens=False, return_offsets_mapping=True)
        for item, tokens, offsets in zip(part, coded["input_ids"], coded["offset_mapping"], strict=True):
            if MARK in item.text:
                tokens, offsets = encoder.encode_with_places(item.text)
            learnt = _inside(offsets, item.spans)
            unread: list[int] = []
            if end is not None:
                unread = _unread(offsets, item.ends)
                for at in unread:
                    tokens.insert(at, end)
                    learnt.insert(at, True)
            if item.begin and tokens[: len(begin)] != begin:
                tokens, learnt = begin + tokens, [False] * len(begin) + learnt
                unread = [at + len(begin) for at in unread]
            if item.end and end is not None and (not tokens or tokens[-1] != end):
                tokens, learnt = [*tokens, end], [*learnt, bool(learnt) and learnt[-1]]
            yield Sample(
                tuple(tokens[:cutoff]),
                tuple(learnt[:cutoff]),
                item.row,
                cut=max(0, len(tokens) - cutoff),
                lost=hash(tuple(tokens[cutoff:])) if len(tokens) > cutoff else 0,
                unread=tuple(at for at in unread if at < cutoff),
            )


def _unread(offsets: Sequence[tuple[int, int]], ends: Sequence[int]) -> list[int]:
    """Where tokens belong among those of `offsets`, one behind each of the characters `ends`, each counted with those before it."""
    starts = [start for start, _ in offsets]
    return [bisect_left(starts, end) + before for before, end in enumerate(ends)]


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """For each token, whether it overlaps a span; both are in ascending order."""
    result = []
    at = 0
    for start, end in offsets:
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        result.append(at < len(spans) and end > spans[at][0] and end > start)
    return result


def begin_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: the begin token, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return full[: len(full) - len(plain)] if full[-len(plain) :] == plain else full[:1] if full[:1] != plain[:1] else []


def pieces_of_text(text: str, row: int, tokenizer: Any, config: TrainingConfig) -> Iterator[Sample | str]:
    """Plain text in pieces of up to `cutoff` tokens; a text in place of a piece says why a document was left out.

    Each piece shares `overlap` tokens with the one before, ends at a line break where one is near, and no piece reaches
    over the hard cut. A document begins with the begin token and ends with the end token.
    """
    separator = config.hard_cut.replace("\\n", "\n").replace("\\t", "\t")
    text = text.replace("\r\n", "\n")
    for document in text.split(separator) if separator else [text]:
        if not document.strip():
            continue
        if len(document.strip()) < config.min_chars:
            yield f"a document has {len(document.strip())} characters: {document.strip()[:40]!r}"
            continue
        yield from _windows(document, row, tokenizer, config)


def _windows(document: str, row: int, tokenizer: Any, config: TrainingConfig) -> Iterator[Sample]:
    coded = tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)
    begin = begin_tokens(tokenizer)
    end = [tokenizer.eos_token_id] if config.add_eos and tokenizer.eos_token_id is not None else []
    tokens = begin + coded["input_ids"] + end
    breaks = {
        len(begin) + at
        for at, (start, stop) in enumerate(coded["offset_mapping"], 1)
        if "\n" in document[start:stop] and stop > start
    }
    characters = [0] * len(begin) + [stop for _, stop in coded["offset_mapping"]] + [len(document)] * len(end)
    start = 0
    fresh = 0
    while fresh < len(tokens):
        stop = min(start + config.cutoff, len(tokens))
        if stop < len(tokens) and config.newline_favor:
            near = [
                at
                for at in range(fresh + 1, stop + 1)
                if at in breaks and characters[stop - 1] - characters[at - 1] <= config.newline_favor
            ]
            stop = near[-1] if near else stop
        yield Sample(tuple(tokens[start:stop]), (True,) * (stop - start), row)
        fresh = stop
        start = max(stop - min(config.overlap, config.cutoff - 1), start + 1)


def readable(tokenizer: Any, sample: Sample) -> list[tuple[str, bool]]:
    """(text, learnt) of runs of tokens, for people; bytes that are no character yet are joined with those behind them."""
    runs: list[tuple[list[int], bool]] = []
    for token, learnt in zip(sample.tokens, sample.learnt, strict=True):
        if runs and runs[-1][1] == learnt:
            runs[-1][0].append(token)
        else:
            runs.append(([token], learnt))
    return [
        (re.sub("\ufffd+", "\ufffd", tokenizer.decode(tokens, skip_special_tokens=False)), learnt) for tokens, learnt in runs
    ]
