"""Classifier-free guidance: push the reply away from what a negative prompt would bring."""

from __future__ import annotations

import torch
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Mix two log-softmaxed logits: unconditional + scale · (conditional - unconditional) (Sanchez et al. 2023, arXiv:2306.17806).

    conditional, unconditional [rows, vocabulary]: logits after the prompt and after the negative prompt.
    scale [rows], 1 leaves `conditional` as it is. Returns [rows, vocabulary] float32.
    """
    wanted, unwanted = torch.log_softmax(conditional.float(), -1), torch.log_softmax(unconditional.float(), -1)
    mixed = unwanted + scale[:, None] * (wanted - unwanted)
    return torch.where(scale[:, None] == 1, conditional.float(), mixed)
