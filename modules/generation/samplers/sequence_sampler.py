"""Sampler of one sequence: its parameters, its seed, and its token history."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch

from modules.errors import UserError
from modules.generation.samplers.banned_strings import BannedStrings
from modules.generation.samplers.candidates import NEG_INF
from modules.generation.samplers.chain import numbers, sampler_chain
from modules.generation.samplers.dry import dry_penalties
from modules.generation.samplers.grammar import Constraint
from modules.generation.samplers.history import SequenceBreakers, TokenHistory
from modules.generation.samplers.penalties import ends_of_repeated_ngrams, frequency_and_presence
from modules.generation.samplers.rng import uniform
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import SamplingParams

Amounts = tuple[np.ndarray, np.ndarray]
"""Token ids (int64), and what to add to the score of each (float32)."""


class SequenceSampler:
    """Made for each reply; `batch_sampler.choose` asks it, and `accept` tells it what was chosen. Raises UserError for a bad grammar.

    chain: the steps from the model's logits to the choice; rows with the same chain are computed together.
    seed: the one of `params`, or a new one where they have none.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt: Sequence[int],
        vocabulary: Vocabulary,
        device: torch.device | str = "cpu",
        lark: str | None = None,
    ) -> None:
        """lark: the form that `params` ask for, tried and translated by `forms`."""
        self.params = params
        self.vocabulary = vocabulary
        self.seed = params.seed if params.seed >= 0 else secrets.randbits(63)
        self.accepted = 0
        self.chain = sampler_chain(params)
        self.numbers = numbers(params)
        self.history = TokenHistory(prompt) if {"penalties", "dry"} & {*self.chain} else None
        self.breaks = SequenceBreakers(params.dry_sequence_breakers, prompt, vocabulary) if "dry" in self.chain else None
        self.mu = torch.tensor(2 * params.mirostat_tau, device=device) if "mirostat" in self.chain else None
        self._banned = BannedStrings(params.banned_strings, vocabulary) if params.banned_strings else None
        self._fixed = _fixed_bias_and_bans(params, vocabulary.size)
        self.constraint = Constraint(lark, vocabulary) if lark is not None else None

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete: only an end-of-reply token may follow."""
        return self.constraint is not None and self.constraint.finished

    def accept(self, token: int) -> None:
        """Note that `token` was chosen. Raises UserError where `choose` found no token that may come (-1)."""
        if token < 0:
            raise UserError("No token can be chosen: the settings exclude all, or the model's logits are not numbers.")
        if self.constraint is not None:
            self.constraint.accept(token)
        if self.history is not None:
            self.history.add(token)
        if self.breaks is not None:
            self.breaks.add(token)
        if self._banned is not None:
            self._banned.add(token)
        self.accepted += 1

    def draw(self, stream: int) -> float:
        """The random number of this step, in [0, 1); `stream` 0 or 1 tells two uses apart."""
        return uniform(self.seed, 2 * self.accepted + stream)

    def prompt_tokens(self) -> np.ndarray:
        """Ids of the prompt's tokens, each once, where the encoder repetition penalty wants them."""
        assert self.history is not None
        return self.history.prompt if self.params.encoder_repetition_penalty != 1 else self.history.prompt[:0]

    def repeated_tokens(self) -> np.ndarray:
        """Ids of the tokens that the repetition penalty is for, each once."""
        assert self.history is not None
        seen = self.history.seen(self.params.repetition_penalty_range)
        return seen if self.params.repetition_penalty != 1 else seen[:0]

    def overused_tokens(self) -> Amounts:
        """Frequency and presence penalties of the reply's tokens, and -inf for what would repeat an n-gram."""
        assert self.history is not None
        params = self.params
        ids, counts = self.history.said(params.repetition_penalty_range)
        ends = ends_of_repeated_ngrams(self.history.tokens, params.no_repeat_ngram_size)
        amounts = frequency_and_presence(counts, params.frequency_penalty, params.presence_penalty)
        return np.concatenate([ids, ends]), np.concatenate([amounts, np.full(len(ends), NEG_INF, np.float32)])

    def repeating_tokens(self) -> Amounts:
        """The DRY penalties of this step."""
        assert self.history is not None and self.breaks is not None
        params, reach = self.params, self.params.repetition_penalty_range
        return dry_penalties(
            self.history.last(reach),
            self.breaks.at[-reach:] if reach else self.breaks.at,
            multiplier=params.dry_multiplier,
            base=params.dry_base,
            allowed_length=params.dry_allowed_length,
        )

    def bias_and_bans(self) -> Amounts:
        """Biases, and -inf for what is banned at this step."""
        ids, amounts = [self._fixed[0]], [self._fixed[1]]
        banned = [self._banned.next()] if self._banned is not None else []
        if (self.params.ban_eos or self.accepted < self.params.min_tokens) and not self.finished:
            banned.append(np.array(self.vocabulary.eos, dtype=np.int64))
        for part in banned:
            ids.append(part)
            amounts.append(np.full(len(part), NEG_INF, np.float32))
        return np.concatenate(ids), np.concatenate(amounts)


def _fixed_bias_and_bans(params: SamplingParams, size: int) -> Amounts:
    amounts = {int(token): bias for token, bias in params.logit_bias.items()} | dict.fromkeys(params.banned_tokens, NEG_INF)
    unknown = next((token for token in amounts if not 0 <= token < size), None)
    if unknown is not None:
        field = "banned_tokens" if unknown in params.banned_tokens else "logit_bias"
        raise UserError(f"{field}: the model has no token {unknown}; its ids go from 0 to {size - 1}.", param=field)
    return np.array([*amounts], dtype=np.int64), np.array([*amounts.values()], dtype=np.float32)
