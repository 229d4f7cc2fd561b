"""The loss of several rows at once: flattened into one line without padding, blind to each other, logits only where a label is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from modules.training.samples import Sample
from modules.training.worker.model import Trainee

_LOGITS_AT_ONCE = 64 << 20  # numbers; 256 MiB in float32


class Forward:
    """Computes losses for one model, after finding out how this model may be asked.

    flattens: rows can stand in one line without seeing each other. own_head: the output layer can be called by itself.
    """

    def __init__(self, trainee: Trainee, *, alone: bool = True) -> None:
        """alone: this process holds all weights, so that parts of the model can be called by themselves."""
        self.trainee = trainee
        inner = trainee.model.get_base_model() if trainee.has_adapter else trainee.model
        self._body: Any = inner.get_decoder() if hasattr(inner, "get_decoder") else None
        self._head: Any = inner.get_output_embeddings()
        self._alone = alone
        self.flattens, self.own_head = self._try()

    def loss_sum(self, samples: Sequence[Sample]) -> Tensor:
        """Sum of the cross-entropies of the learnt tokens of `samples`: a float32 number with its graph."""
        return self._token_losses(samples).sum()

    def losses(self, samples: Sequence[Sample]) -> Tensor:
        """[samples]: the sum for each of them; minus the log-probability of its learnt tokens together."""
        owners = [at for at, sample in enumerate(samples) for _ in range(sample.labels)]
        sums = torch.zeros(len(samples), device=self.trainee.device)
        return sums.index_add(0, torch.tensor(owners, device=self.trainee.device), self._token_losses(samples))

    def _token_losses(self, samples: Sequence[Sample]) -> Tensor:
        """[learnt tokens]: the cross-entropy of each, those of the first sample first."""
        if not self.flattens and len(samples) > 1:
            return torch.cat([self._token_losses([sample]) for sample in samples])
        tokens, positions, keep, targets = flatten(samples, self.trainee.device)
        with self._precision():
            if self.own_head:
                hidden = self._body(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state[0]
                return self._head_loss(hidden.index_select(0, keep), targets)
            logits = self.trainee.model(input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=keep).logits[
                0
            ]
            return functional.cross_entropy(logits.float(), targets, reduction="none")

    def _head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Few logits at a time: what a part of them needs is computed anew in the backward pass."""
        size = max(1, _LOGITS_AT_ONCE // self._head.weight.shape[0])
        if len(targets) <= size:
            return self._part_loss(hidden, targets)
        parts = [
            checkpoint(self._part_loss, one, other, use_reentrant=False)
            for one, other in zip(hidden.split(size), targets.split(size), strict=True)
        ]
        return torch.cat(parts)  # type: ignore[arg-type]

    def _part_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self._head(hidden).float(), targets, reduction="none")

    def _precision(self) -> Any:
        kind = self.trainee.autocast
        return nullcontext() if kind is None else torch.autocast(self.trainee.device.type, dtype=kind)

    @torch.no_grad()
    def _try(self) -> tuple[bool, bool]:
        """(flattens, own_head), by comparing the ways on two short rows with the plain way: one row at a time.

        A model with state, or with scaled logits, gives other numbers; then the plain way is taken.
        """
        model = self.trainee.model
        size = min(100, self._head.weight.shape[0] if self._head is not None else 100)
        rows = [torch.arange(7, 31) % size, torch.arange(40, 3, -1) % size]
        was_training = model.training
        model.eval()
        device = self.trainee.device
        with self._precision():
            plain = [model(input_ids=row[None].to(device), use_cache=False).logits[0].float() for row in rows]
            spread = torch.cat(plain).std()

            def same(logits: Tensor, wanted: Tensor) -> bool:
                return bool((logits.float() - wanted).abs().max() < 0.05 * spread)

            flat = torch.cat(rows)[None].to(device)
            places = torch.cat([torch.arange(len(row)) for row in rows])[None].to(device)
            together = model(input_ids=flat, position_ids=places, use_cache=False).logits[0]
            own_head = False
            if self._alone and self._body is not None and self._head is not None and hasattr(self._head, "weight"):
                hidden = self._body(input_ids=flat[:, : len(rows[0])], use_cache=False).last_hidden_state[0]
                own_head = hidden.shape[-1] == self._head.weight.shape[-1] and same(self._head(hidden), plain[0])
        model.train(was_training)
        return same(together, torch.cat(plain)), own_head


def flatten(samples: Sequence[Sample], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(tokens [1, n], positions [1, n] from 0 in each sample, places whose next token is learnt [labels], those tokens).

    What stands behind the last learnt token changes nothing, and is left out; so is that token itself, as nothing follows it,
    and so are unread ones: they are learnt at the place of what stands before them.
    """
    tokens: list[int] = []
    positions: list[int] = []
    keep: list[int] = []
    targets: list[int] = []
    for sample in samples:
        learnt = [at for at in range(1, len(sample.tokens)) if sample.learnt[at]]
        unread = sample.unread
        read = [token for at, token in enumerate(sample.tokens[: learnt[-1]]) if at not in unread]
        keep += [len(tokens) + at - 1 - bisect_left(unread, at) for at in learnt]
        targets += [sample.tokens[at] for at in learnt]
        tokens += read
        positions += range(len(read))
    one, two = (torch.tensor([values], device=device) for values in (tokens, positions))
    return one, two, torch.tensor(keep, device=device), torch.tensor(targets, device=device)
