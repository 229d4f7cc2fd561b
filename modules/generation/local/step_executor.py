"""One scheduled step: a forward pass of the model runner, the choice of tokens, and their way into the requests."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from modules.generation.local.kv_cache import Piece
from modules.generation.local.model_runner import BatchedRunner, ModelRunner
from modules.generation.local.scheduler import Failure, ScheduledTokens
from modules.generation.local.sequence import Sequence, SequenceGroup
from modules.generation.local.threads import OneThread
from modules.generation.samplers.batch_sampler import TokenLogprobs, choose, details, guide, likeliest
from modules.generation.samplers.contrastive import ContrastiveSearchState
from modules.generation.stream import put_together
from modules.generation.types import FinishReason

SMALL = 1 << 18
"""Tokens are chosen on one thread from so few logits."""


class Finish(NamedTuple):
    group: SequenceGroup
    reason: FinishReason


@dataclass(slots=True)
class Outcome:
    """The requests that a step has ended."""

    finished: list[Finish] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


class _Computed(NamedTuple):
    """A forward pass: logits [n, vocabulary], and which of them each complete request's next token is chosen from.

    places: one for each sequence of the `ready` requests. drafted: what is scheduled with a draft to verify, and the place
    of its first logits. tried: candidates of contrastive search with their hidden states [1, hidden].
    """

    logits: Tensor
    ready: list[SequenceGroup]
    places: list[int]
    drafted: list[tuple[ScheduledTokens, int]]
    tried: list[tuple[SequenceGroup, Tensor]]


class StepExecutor:
    """Computes what the scheduler has chosen. A mistake in the choice of a token ends its own request only."""

    def __init__(self, runner: ModelRunner, batched: BatchedRunner | None = None) -> None:
        """batched: the same runner where it gives hidden states; without it no request may use contrastive search."""
        self._runner = runner
        self._batched = batched

    def execute(self, scheduled: Items[ScheduledTokens]) -> Outcome:
        """Compute `scheduled`, and give every request whose sequences are complete its next token.

        Raises whatever the forward pass raises; nothing is noted as computed then.
        """
        computed = self._forward(scheduled)
        outcome, logits = Outcome(), computed.logits
        if computed.ready:
            first = logits if len(computed.places) == len(logits) else logits[_index(computed.places, logits)]
            self._choose(computed.ready, first, outcome)
        for item, place in computed.drafted:
            self._verify(item, logits[place + 1 :], outcome)
        for group, state in computed.tried:
            self._try(group, state, outcome)
        return outcome

    def _forward(self, scheduled: Items[ScheduledTokens]) -> _Computed:
        pieces: list[Piece] = []
        tokens: list[int] = []
        keep: list[int] = []
        embeds: list[Tensor | None] = []
        ready: list[SequenceGroup] = []
        places: list[int] = []
        drafted: list[tuple[ScheduledTokens, int]] = []
        echoed: list[tuple[ScheduledTokens, int]] = []
        searching = False
        for item in scheduled:
            sequence, count, draft = item.sequence, item.count, item.draft
            group, cached = sequence.group, sequence.cached
            assert cached is not None
            start = len(cached.tokens)
            end = len(tokens) + count
            pieces.append(Piece(cached.store, start, count + len(draft), *sequence.key))
            embeds.append(sequence.embedded(start, count))
            tokens += sequence.tokens[start : start + count]
            tokens += draft
            searching = searching or group.contrast is not None
            complete = count > 0 and start + count == len(sequence.tokens)
            if not group.started and group.wants_prompt_logprobs and sequence is group.sequence:
                echoed.append((item, len(keep)))
                keep += range(end - count, end)
            elif complete:
                keep.append(end - 1)
            if complete:
                if sequence is group.sequence:
                    ready.append(group)
                places.append(len(keep) - 1)
                if draft:
                    drafted.append((item, len(keep) - 1))
                    keep += range(end, end + len(draft))
        if searching:
            assert self._batched is not None
            logits, states = self._batched.logits_and_hidden_states(pieces, tokens, keep, embeds)
            tried = _note_states(scheduled, states)
        else:
            logits, tried = self._runner.logits(pieces, tokens, keep, embeds), []
        for item, place in echoed:
            _note_prompt(item.sequence, logits[place : place + item.count])
        _note_computed(scheduled)
        return _Computed(logits, ready, places, drafted, tried)

    def _choose(self, groups: list[SequenceGroup], logits: Tensor, outcome: Outcome) -> None:
        """logits: one line for each sequence of `groups`."""
        try:
            logits = _guided(groups, logits)
        except Exception as error:  # noqa: BLE001 - out of memory, mostly
            outcome.failed += [Failure(group, error) for group in groups]
            return
        searching = [index for index, group in enumerate(groups) if group.contrast is not None]
        if not searching:
            self._sample(groups, logits, outcome)
            return
        others = [index for index, group in enumerate(groups) if group.contrast is None]
        if others:
            self._sample([groups[index] for index in others], logits[others], outcome)
        for index in searching:
            self._propose_candidates(groups[index], logits[index : index + 1], outcome)

    def _sample(self, groups: list[SequenceGroup], logits: Tensor, outcome: Outcome) -> None:
        """Give every request its next token; what fails is found by choosing for each by itself."""
        try:
            for index, group in enumerate(groups):
                if group.on_logits is not None:
                    group.on_logits(logits[index : index + 1])
            with OneThread() if logits.is_cpu and logits.numel() < SMALL else nullcontext():
                chosen = choose(logits, [group.sampler for group in groups], logprobs=[g.request.logprobs for g in groups])
                tokens = chosen.tokens.tolist()
        except Exception as error:  # noqa: BLE001 - it ends one request only
            if len(groups) == 1:
                outcome.failed.append(Failure(groups[0], error))
                return
            for index, group in enumerate(groups):
                self._sample([group], logits[index : index + 1], outcome)
            return
        with put_together():
            for group, token, detail in zip(groups, tokens, chosen.details, strict=True):
                _accept(group, token, detail, outcome)

    def _verify(self, item: ScheduledTokens, logits: Tensor, outcome: Outcome) -> None:
        """Keep of a draft what the request's own sampler chooses; logits [len(draft), vocabulary] after each of its tokens."""
        sequence = item.sequence
        for index, token in enumerate(item.draft):
            if outcome.finished or outcome.failed or sequence.tokens[-1] != token:
                return
            assert sequence.cached is not None
            sequence.cached.tokens.append(token)
            self._choose([sequence.group], logits[index : index + 1], outcome)

    def _propose_candidates(self, group: SequenceGroup, logits: Tensor, outcome: Outcome) -> None:
        """Contrastive search: the candidates for the next token, where there is more than one."""
        assert group.contrast is not None
        try:
            ids, probabilities = likeliest(logits, group.sampler)
            tokens = ids.tolist() or [-1]
            if len(tokens) > 1:
                group.contrast.propose(tokens, probabilities, logits)
                return
            detail = _detail(group, tokens[0], logits)
        except Exception as error:  # noqa: BLE001 - it ends this request only
            outcome.failed.append(Failure(group, error))
            return
        _accept(group, tokens[0], detail, outcome)

    def _try(self, group: SequenceGroup, state: Tensor, outcome: Outcome) -> None:
        """Contrastive search: the hidden state [1, hidden] of one candidate; after the last, the best of them is accepted."""
        assert group.contrast is not None
        try:
            found = group.contrast.add_candidate(state)
            if found is None:
                return
            token, logits = found
            detail = _detail(group, token, logits)
        except Exception as error:  # noqa: BLE001 - it ends this request only
            outcome.failed.append(Failure(group, error))
            return
        _accept(group, token, detail, outcome)


def _detail(group: SequenceGroup, token: int, logits: Tensor) -> TokenLogprobs | None:
    (found,) = details(logits, torch.tensor([token], device=logits.device), [group.request.logprobs])
    return found


def _accept(group: SequenceGroup, token: int, detail: TokenLogprobs | None, outcome: Outcome) -> None:
    try:
        reason = group.accept(token, detail)
    except Exception as error:  # noqa: BLE001 - it ends this request only
        outcome.failed.append(Failure(group, error))
        return
    if reason is not None:
        outcome.finished.append(Finish(group, reason))


def _note_states(scheduled: Iterable[ScheduledTokens], states: Tensor) -> list[tuple[SequenceGroup, Tensor]]:
    """Give requests of contrastive search the hidden states [tokens, hidden] of their text; returns those of candidates."""
    tried: list[tuple[SequenceGroup, Tensor]] = []
    at = 0
    for item in scheduled:
        sequence = item.sequence
        own = states[at : at + item.count + len(item.draft)]
        at += len(own)
        contrast: ContrastiveSearchState | None = sequence.group.contrast
        if contrast is None or sequence is not sequence.group.sequence:
            continue
        if item.count:
            contrast.add(own)
        else:
            tried.append((sequence.group, own))
    return tried


def _note_prompt(sequence: Sequence, logits: Tensor) -> None:
    """Keep the log-probabilities of the prompt: logits [count, vocabulary] after the next tokens of its sequence."""
    group, first = sequence.group, sequence.computed
    following = group.prompt.tokens[first + 1 : first + 1 + len(logits)]
    chosen = torch.tensor(following, dtype=torch.long, device=logits.device)
    group.note_prompt(details(logits[: len(following)], chosen, [group.request.logprobs] * len(following)), first)


def _note_computed(scheduled: Iterable[ScheduledTokens]) -> None:
    for item in scheduled:
        sequence = item.sequence
        cached, group = sequence.cached, sequence.group
        assert cached is not None
        start = len(cached.tokens)
        cached.tokens += sequence.identity[start : start + item.count]
        if not group.started and item.count and sequence is group.sequence:
            group.progress()


def _guided(groups: Items[SequenceGroup], logits: Tensor) -> Tensor:
    """One line of logits for each request; one with a negative prompt has two, and gets their mixture."""
    if len(groups) == len(logits):
        return logits
    own, other, at = [], [], 0
    for group in groups:
        own.append(at)
        at += len(group.sequences)
        other.append(at - 1)
    scale = torch.tensor(
        [group.request.sampling.guidance_scale if len(group.sequences) > 1 else 1.0 for group in groups], device=logits.device
    )
    return guide(logits[own], logits[other], scale)


def _index(places: list[int], like: Tensor) -> Tensor:
    return torch.tensor(places, dtype=torch.long, device=like.device)
