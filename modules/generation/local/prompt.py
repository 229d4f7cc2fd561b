"""From a request to the tokens that the model reads: templates, begin-of-text tokens, and what does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from modules.errors import NoChatTemplate, UserError
from modules.generation.context_overflow import far_too_long, fit_messages, fit_tokens, refuse_far_too_long, window
from modules.generation.control_tokens import ChatEncoder, render_marked, without_marks
from modules.generation.local.vision import VisionInputs
from modules.generation.types import GenerationRequest, Messages


@dataclass(frozen=True)
class Prompt:
    """text is what `tokens` were made of. starts_reply: the reply is a text of its own, not the continuation of one.

    dropped: how many of the oldest messages were left out. truncated: whether these, or the start of a text, were.
    identity: the tokens with images told apart; vision: what the vision part of the model gets.
    """

    tokens: list[int]
    text: str
    dropped: int = 0
    truncated: bool = False
    starts_reply: bool = True
    identity: list[int] | None = None
    vision: Mapping[str, Any] | None = None


class PromptBuilder:
    """Makes prompts for one model. Thread-safe: it only reads the tokenizer."""

    def __init__(
        self, tokenizer: Any, chat_template: str | None, context_length: int, vision: VisionInputs | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.context_length = context_length
        self._vision = vision
        self._encoder = ChatEncoder(tokenizer)

    def prompt(self, request: GenerationRequest) -> Prompt:
        """Raises UserError where there is no template, or the prompt does not fit."""
        asked = request.prompt
        if isinstance(asked, str):
            if window(request, self.context_length)[1] == "refuse" and far_too_long(
                asked, lambda text: self.tokenize(text, begin=False), self.context_length
            ):
                refuse_far_too_long(self.context_length)
            tokens = self.tokenize(asked, begin=request.sampling.add_bos)
            return self._plain(request, tokens, asked)
        if not asked:
            raise UserError("The prompt is empty.", param="prompt")
        if isinstance(asked[0], int):
            return self._plain(request, list(cast("tuple[int, ...]", asked)), None)
        return self._conversation(request, cast(Messages, asked))

    def tokenize(self, text: str, *, begin: bool) -> list[int]:
        """Token ids, markers in the text read as tokens; `begin` adds what the model wants before a text."""
        return self.tokenizer(text, add_special_tokens=begin)["input_ids"]

    def tokenize_text(self, text: str) -> list[int]:
        """Token ids of a text in which nothing is a marker."""
        return self._encoder.encode_text(text)

    def _plain(self, request: GenerationRequest, tokens: list[int], text: str | None) -> Prompt:
        begins = self.tokenizer.bos_token_id
        if not tokens:
            if begins is None:
                raise UserError("The prompt is empty.", param="prompt")
            tokens = [begins]
        size = len(self.tokenizer)
        if any(not 0 <= token < size for token in tokens):
            raise UserError(
                f"The prompt has token ids that the model does not know; they go from 0 to {size - 1}.", param="prompt"
            )
        limit, overflow = window(request, self.context_length)
        kept = fit_tokens(tokens, limit, request.sampling.max_tokens, overflow, keep_first=int(tokens[0] == begins))
        if text is None or len(kept) < len(tokens):
            text = str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return Prompt(kept, text, truncated=len(kept) < len(tokens), starts_reply=False)

    def _conversation(self, request: GenerationRequest, messages: Messages) -> Prompt:
        template = request.template or self.chat_template
        if template is None:
            raise NoChatTemplate
        if self._vision is None and any(message.images for message in messages):
            raise UserError("This model cannot see pictures. Leave them out, or load a model that can.", param="messages")
        done: dict[int, Prompt | None] = {}

        def count(part: Messages) -> float:
            # What is left after dropping old turns is told apart by its length.
            if len(part) not in done:
                done[len(part)] = self._read(request, part, template)
            prompt = done[len(part)]
            return len(prompt.tokens) if prompt is not None else math.inf

        limit, overflow = window(request, self.context_length)
        kept, dropped = fit_messages(messages, count, limit, request.sampling.max_tokens, overflow)
        count(kept)
        prompt = done[len(kept)]
        assert prompt is not None  # it fits
        if not prompt.tokens:
            raise UserError("The chat template made an empty prompt of this conversation.", param="template")
        return replace(prompt, dropped=dropped, truncated=dropped > 0)

    def _read(self, request: GenerationRequest, messages: Messages, template: str) -> Prompt | None:
        """None for a conversation that is far too long."""
        text = render_marked(
            self._encoder.control,
            template,
            messages,
            own=self._markers(),
            given=request.template_variables,
            continue_reply=request.continue_reply,
        )
        shown, starts = without_marks(text), not request.continue_reply
        images = [image for message in messages for image in message.images]
        if not images and far_too_long(text, self._encoder.encode, self.context_length):
            return None
        if not images or self._vision is None:
            return Prompt(self._encoder.encode(text), shown, starts_reply=starts)
        tokens, identity, inputs = self._vision.read(text, images, self._encoder)
        return Prompt(tokens, shown, starts_reply=starts, identity=identity, vision=inputs)

    def _markers(self) -> Mapping[str, Any]:
        return {name: str(text) for name, text in self.tokenizer.special_tokens_map.items() if isinstance(text, str)}


def chat_template_of(tokenizer: Any) -> str | None:
    """The tokenizer's chat template; of several, the one called "default"; None for one without text."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()), None)
    return template if template and template.strip() else None
