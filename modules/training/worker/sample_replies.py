"""Replies to fixed prompts while training, beside those of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modules.errors import UserError
from modules.generation.control_tokens import ChatEncoder, render_marked
from modules.generation.types import Message
from modules.training.worker.model import Trainee


class Replies:
    """Greedy replies: no random numbers are used, so that they change nothing in the run."""

    def __init__(self, trainee: Trainee, template: str, prompts: Sequence[str], tokens: int) -> None:
        """template: Jinja source, or empty, and then a prompt is text to continue."""
        self.trainee = trainee
        self.prompts = prompts
        self.limit = tokens
        self._template = template
        self._encoder = ChatEncoder(trainee.tokenizer)
        self._base: list[str] | None = None

    def now(self) -> list[tuple[str, str, str]]:
        """(prompt, reply, the base model's reply) of each. The base is the untrained model in a full training."""
        if self._base is None:
            self._base = self._of_base()
        return list(zip(self.prompts, self._all(), self._base, strict=True))

    def remember_base(self) -> None:
        """Ask the base now, before anything is trained: a full training has no other moment for it."""
        self._base = self._of_base()

    def _of_base(self) -> list[str]:
        if not self.trainee.has_adapter:
            return self._all()
        with self.trainee.model.disable_adapter():
            return self._all()

    def _all(self) -> list[str]:
        model = self.trainee.model
        was_training = model.training
        model.eval()
        try:
            return [self._reply(prompt) for prompt in self.prompts]
        finally:
            model.train(was_training)

    @torch.no_grad()
    def _reply(self, prompt: str) -> str:
        tokenizer = self.trainee.tokenizer
        asked = torch.tensor([self._tokens(prompt)], device=self.trainee.device)
        precision: Any = torch.autocast(
            self.trainee.device.type, dtype=self.trainee.autocast, enabled=self.trainee.autocast is not None
        )
        with precision:
            made = self.trainee.model.generate(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                max_new_tokens=self.limit,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        return tokenizer.decode(made[0, asked.shape[1] :], skip_special_tokens=True).strip()

    def _tokens(self, prompt: str) -> list[int]:
        tokenizer = self.trainee.tokenizer
        if not self._template:
            return tokenizer(prompt)["input_ids"]
        special = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        asked = (Message("user", prompt),)
        try:
            return self._encoder.encode(render_marked(self._encoder.control, self._template, asked, own=special, given={}))
        except UserError:
            return self._encoder.encode_text(prompt)
