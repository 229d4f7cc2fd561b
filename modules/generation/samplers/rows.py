"""One sampler per running row, and the choice of the next token for a whole batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.generation.samplers.noise import uniform
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import SamplingParams


@dataclass(frozen=True)
class Detail:
    """What the model itself thought of a chosen token, as tensors on the device.

    logprob []: natural log of its probability. ids [k], logprobs [k]: the likeliest tokens, best first.
    """

    logprob: Tensor
    ids: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class Choice:
    """The next token of each row. tokens [rows] int64, on the device; details: one per row, None where nobody asked."""

    tokens: Tensor
    details: tuple[Detail | None, ...]


class RowSampler:
    """How one running row chooses its tokens: its parameters, its seed, and what it has said so far."""

    def __init__(
        self, params: SamplingParams, *, prompt: Sequence[int], vocabulary: Vocabulary, device: torch.device | str = "cpu"
    ) -> None:
        self.params = params
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.seed = params.seed if params.seed >= 0 else torch.seed() & (2**63 - 1)
        self.accepted = 0

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete: only an end-of-reply token may follow."""
        return False

    def accept(self, token: int) -> None:
        """Note that `token` was chosen: history, grammar and repetition checks go on from there."""
        self.accepted += 1


def choose(logits: Tensor, rows: Sequence[RowSampler], *, logprobs: Sequence[int | None]) -> Choice:
    """Choose the next token of every row, each by its own parameters.

    logits [rows, vocabulary], any float dtype, not changed; logprobs: for each row None, or how many alternatives to report.
    The details are of the model's own distribution (log-softmax of `logits`), before any sampler, as OpenAI reports them.
    Nothing here waits for the device.
    """
    tokens = logits.argmax(-1)
    drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        scores = logits[drawn].float()
        temperature = torch.tensor([rows[index].params.temperature for index in drawn], device=logits.device)
        cumulated = torch.softmax(scores / temperature[:, None], -1).double().cumsum(-1)
        place = torch.tensor(
            [uniform(rows[index].seed, rows[index].accepted) for index in drawn], dtype=torch.float64, device=logits.device
        )
        picked = torch.searchsorted(cumulated, place[:, None] * cumulated[:, -1:], right=True)[:, 0]
        tokens[drawn] = picked.clamp(max=logits.shape[-1] - 1)
    return Choice(tokens, _details(logits, tokens, logprobs))


def _details(logits: Tensor, tokens: Tensor, logprobs: Sequence[int | None]) -> tuple[Detail | None, ...]:
    if all(count is None for count in logprobs):
        return (None,) * len(logprobs)
    return tuple(None if count is None else detail(logits[index], tokens[index], count) for index, count in enumerate(logprobs))


def detail(logits: Tensor, token: Tensor, count: int) -> Detail:
    """The log-probability of `token` and of the `count` likeliest tokens. logits [vocabulary]; token [] int64."""
    scores = torch.log_softmax(logits.float(), -1)
    best = torch.topk(scores, min(count, len(scores)))
    return Detail(scores[token], best.indices, best.values)


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance (Sanchez et al. 2023, arXiv:2306.17806), as transformers mixes it.

    conditional, unconditional [rows, vocabulary]: logits after the prompt and after the negative prompt; scale [rows], 1 is off.
    Returns [rows, vocabulary] float32.
    """
    wanted, unwanted = torch.log_softmax(conditional.float(), -1), torch.log_softmax(unconditional.float(), -1)
    mixed = unwanted + scale[:, None] * (wanted - unwanted)
    return torch.where(scale[:, None] == 1, conditional.float(), mixed)
