"""Tokens of replies: with their probabilities, computed afterwards where that can be, and another one chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from typing import Any

from modules.chats.records import Figures, StoredMessage, TokenStretch
from modules.chats.token_data import Places
from modules.errors import Conflict, UserError
from modules.generation.leased_model import LeasedModel
from modules.generation.sampling import SamplingParams
from modules.generation.stop_strings import REPLACEMENT
from modules.generation.types import LoadedModel, Started, Token, name_of
from modules.services.reply_builder import ALTERNATIVES, ReplyService, runs_of, with_runs


class Tokens(ReplyService):
    """The tokens of one's own replies."""

    def view(self, message_id: int) -> dict[str, Any]:
        """The text of a message in order: {"text"} where no tokens are known, {"at", "tokens"} where they are.

        Where none are: why, and whether they can be computed.
        """
        message = self.history.messages.get(message_id)
        stretches = self.history.tokens.get(message_id)
        if not stretches:
            return {"parts": [], "computable": self._can_compute(message)}
        parts: list[dict[str, Any]] = []
        shown = 0
        for number, stretch in enumerate(stretches):
            last = number == len(stretches) - 1
            content = message.content if last else message.content[: stretches[number + 1].at]
            if stretch.at > shown:
                parts.append({"text": message.content[shown : stretch.at]})
            parts.append({"at": stretch.at, "tokens": placed(stretch, content)})
            shown = len(content)
        return {"parts": parts}

    def _can_compute(self, message: StoredMessage) -> bool:
        model = self.app.manager.loaded
        return model is not None and model.capabilities.prompt_logprobs and model.name == message.model

    def compute(self, message_id: int) -> None:
        """Score the text of a reply that is there already, with the model that made it, and keep that. Raises UserError."""
        message = self.history.messages.get(message_id)
        if message.role != "assistant" or message.state == "streaming" or not message.content:
            raise UserError("Only a finished reply has tokens to look at.")
        chat = self.history.chats.get(message.chat_id)
        how = self.builder.settings_of_reply(chat, message)
        with self.app.manager.lease(wait=True) as model:
            if not model.capabilities.prompt_logprobs:
                raise UserError(
                    f"{model.name} cannot score a text that is there already with its loader. "
                    "With the token view on, the tokens of new replies are kept: regenerate this one."
                )
            base = self.builder.request_after(model, chat, message, how, "")
            text = tuple(model.tokenize(message.content))
            asked = replace(
                base,
                prompt=(*model.render(base).tokens, *text),
                sampling=SamplingParams(max_tokens=1),
                logprobs=ALTERNATIVES,
                echo=True,
                continue_reply=False,
                overflow="refuse",
            )
            scored = model.stream(asked)
        with scored as events:
            started = next((event for event in events if isinstance(event, Started)), None)
        if started is None:
            raise UserError("The model was stopped before it had read the reply.")
        self.history.tokens.replace(message_id, [TokenStretch(0, started.prompt[-len(text) :])])

    def choose(self, message_id: int, stretch: int, index: int, alternative: int) -> StoredMessage:
        """A new version of a reply that has another token in place `index` of a stretch, and goes on from there.

        alternative: which of those that are known for the place. Raises UserError.
        """
        message = self.history.messages.get(message_id)
        if message.state == "streaming":
            self.replies.stop(message_id)
            message = self.history.messages.get(message_id)
        stretches = self.history.tokens.get(message_id)
        if not 0 <= stretch < len(stretches) or not 0 <= index < len(stretches[stretch].tokens):
            raise Conflict("The reply has changed meanwhile: look at its tokens again.")
        with self.app.manager.lease(wait=True) as model:
            if message.model != model.name:
                raise Conflict(f"This reply was written by {message.model}, and {model.name} is loaded: their tokens differ.")
            return self._choose(model, message, stretches, stretch, index, alternative)

    def _choose(
        self,
        model: LeasedModel,
        message: StoredMessage,
        stretches: Sequence[TokenStretch],
        stretch: int,
        index: int,
        alternative: int,
    ) -> StoredMessage:
        here = stretches[stretch]
        others = here.tokens[index].alternatives
        if not 0 <= alternative < len(others):
            raise UserError("That token is none of the alternatives that are known for this place.")
        chosen = others[alternative]
        begin, end = span_of(here, index, message.content)
        replaced = message.content[begin:end]
        kept = message.content[:begin]
        other = Token(chosen.id, chosen.text, chosen.logprob, here.tokens[index].alternatives, chosen.raw)
        tokens = [*stretches[:stretch], TokenStretch(here.at, (*here.tokens[:index], other))]
        if is_mark(model, chosen.id, chosen.text):
            return self._ended_there(message, kept, [*stretches[:stretch], TokenStretch(here.at, here.tokens[:index])])
        if REPLACEMENT in chosen.text:
            raise UserError("That token is only a part of a character, so the text up to it cannot be shown. Choose another.")
        text = _in_place_of(replaced, here.tokens[index].text, chosen.text)
        return self._go_on(model, message, kept + text, tokens)

    def _ended_there(self, message: StoredMessage, content: str, tokens: Sequence[TokenStretch]) -> StoredMessage:
        version = self.history.messages.add(
            message.chat_id,
            message.parent_id,
            "assistant",
            content,
            model=message.model,
            sampling=message.sampling,
            figures=Figures(
                tokens=sum(len(one.tokens) for one in tokens),
                ending="stop",
                seed=message.figures.seed,
                opened=message.figures.opened,
            ),
            extra=dict(message.extra),
        )
        self.history.tokens.replace(version.id, tokens)
        return version

    def _go_on(self, model: LeasedModel, message: StoredMessage, content: str, tokens: Sequence[TokenStretch]) -> StoredMessage:
        """A version that begins with `content`, made of `tokens`, and goes on from exactly those, where their ids are known."""
        chat = self.history.chats.get(message.chat_id)
        how = self.builder.settings_of_reply(chat, message)
        how = replace(how, sampling=how.sampling.changed({"seed": -1}))
        exact = all(token.id >= 0 for token in tokens[-1].tokens)
        request = (
            self.builder.exact_request(model, message, how, tokens)
            if exact
            else self.builder.request_after(model, chat, message, how, content)
        )
        request = replace(request, logprobs=ALTERNATIVES)
        made = sum(len(one.tokens) for one in tokens)

        def make() -> StoredMessage:
            run = self.builder.run(model, how, request, at=len(content), exact=exact)
            version = self.history.messages.add(
                chat.id,
                message.parent_id,
                "assistant",
                content,
                state="streaming",
                figures=Figures(tokens=made, opened=message.figures.opened),
                extra=with_runs(*runs_of(message), run),
            )
            self.history.tokens.replace(version.id, tokens)
            return version

        return self.replies.begin(model, request, make, preset=how.preset)


def placed(stretch: TokenStretch, content: str) -> list[list[Any]]:
    """Each token as [the text it stands for, its own text, probability, [[id, text, probability], …], its id]."""
    places = Places(stretch.at)
    places.feed(stretch.tokens, content, last=True)
    begins = [stretch.at, *places.ends[:-1]]
    return [token_row(token, content[begin:end]) for token, begin, end in zip(stretch.tokens, begins, places.ends, strict=True)]


def token_row(token: Token, text: str) -> list[Any]:
    others = [[other.id, name_of(other), round(exp(other.logprob), 4)] for other in token.alternatives]
    return [text, name_of(token), None if token.logprob is None else round(exp(token.logprob), 4), others, token.id]


def span_of(stretch: TokenStretch, index: int, content: str) -> tuple[int, int]:
    """Where token `index` of a stretch begins and ends in the text."""
    places = Places(stretch.at)
    places.feed(stretch.tokens, content, last=True)
    return places.ends[index - 1] if index else stretch.at, places.ends[index]


def is_mark(model: LoadedModel, token: int, text: str) -> bool:
    """Whether a token is not text but a mark, such as the end of the turn."""
    if not text:
        return True
    if token < 0:  # an engine that does not tell its tokens
        return bool(re.fullmatch(r"<\|.*\|>|</?s>", text.strip()))
    if not re.fullmatch(r"<[^\s]+>|\[[^\s]+\]|<\|.*\|>", text.strip()):
        return False
    return token in model.tokenize(text.strip(), special=True) and token not in model.tokenize(text.strip())


def _in_place_of(shown: str, own: str, other: str) -> str:
    """Some tokenizers leave the space before a word out of a token's text: it is put where the old token had one."""
    lost = shown[: -len(own)] if own and shown.endswith(own) and shown != own else ""
    return lost + other if lost.isspace() and not other[:1].isspace() else other
