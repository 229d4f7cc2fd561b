"""The tokens of replies on the page: with their probabilities, computed afterwards where that can be, and another one chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from typing import Any

from modules.app import App
from modules.chats.records import Chat, Figures, Run, StoredMessage, TokenStretch
from modules.chats.token_data import Places
from modules.errors import Conflict, UserError
from modules.generation.sampling import SamplingParams
from modules.generation.stop_strings import REPLACEMENT
from modules.generation.types import GenerationRequest, LoadedModel, Started, Token, name_of
from modules.services.chats import ALTERNATIVES, Way, branch_of, request_of, run_of, runs_of, settings_from, way_of, with_runs


def tokens_view(app: App, owner: str, message_id: int) -> dict[str, Any]:
    """The text of a message in order: {"text"} where no tokens are known, {"at", "tokens"} where they are.

    Where none are: why, and whether they can be computed.
    """
    message = app.store.message(owner, message_id)
    stretches = app.store.tokens(owner, message_id)
    if not stretches:
        return {"parts": [], "computable": _can_compute(app, message)}
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


def placed(stretch: TokenStretch, content: str) -> list[list[Any]]:
    """Each token as [the text it stands for, its own text, probability, [[id, text, probability], …], its id]."""
    places = Places(stretch.at)
    places.feed(stretch.tokens, content, last=True)
    begins = [stretch.at, *places.ends[:-1]]
    return [token_row(token, content[begin:end]) for token, begin, end in zip(stretch.tokens, begins, places.ends, strict=True)]


def token_row(token: Token, text: str) -> list[Any]:
    others = [[other.id, name_of(other), round(exp(other.logprob), 4)] for other in token.alternatives]
    return [text, name_of(token), None if token.logprob is None else round(exp(token.logprob), 4), others, token.id]


# --- computed afterwards


def _can_compute(app: App, message: StoredMessage) -> bool:
    model = app.engine.loaded
    return model is not None and model.capabilities.prompt_logprobs and model.name == message.model


def compute(app: App, owner: str, message_id: int) -> None:
    """Score the text of a reply that is there already, with the model that made it, and keep that. Raises UserError."""
    message = app.store.message(owner, message_id)
    model = app.engine.model
    if message.role != "assistant" or message.state == "streaming" or not message.content:
        raise UserError("Only a finished reply has tokens to look at.")
    if not model.capabilities.prompt_logprobs:
        raise UserError(
            f"{model.name} cannot score a text that is there already with its loader. "
            "With the token view on, the tokens of new replies are kept: regenerate this one."
        )
    chat = app.store.chat(owner, message.chat_id)
    way = made_way(app, chat, message)
    base = _before(app, owner, chat, message, way, "")
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
    with app.engine.stream(asked) as events:
        started = next((event for event in events if isinstance(event, Started)), None)
    if started is None:
        raise UserError("The model was stopped before it had read the reply.")
    app.store.set_tokens(owner, message_id, [TokenStretch(0, started.prompt[-len(text) :])])


def made_way(app: App, chat: Chat, message: StoredMessage) -> Way:
    """How a reply was made last; as the chat is set now for replies of older versions."""
    runs = runs_of(message)
    return way_of_run(runs[-1]) if runs else way_of(app, chat)


def way_of_run(run: Run) -> Way:
    """The settings and the sampling of a run, its seed included."""
    return Way(settings_from(run.settings), SamplingParams.read(run.sampling), run.preset)


def _before(app: App, owner: str, chat: Chat, message: StoredMessage, way: Way, begun: str) -> GenerationRequest:
    """The request to go on after `begun`, the beginning of a reply."""
    branch = branch_of(app, owner, chat.id, message.parent_id)
    plain = Way(way.settings.changed({"reply_start": ""}), way.sampling, way.preset)
    if not begun:
        return request_of(app, owner, plain, branch)
    return request_of(app, owner, plain, [*branch, replace(message, content=begun)], continue_reply=True)


# --- another token, and on from there


def choose_token(app: App, owner: str, message_id: int, stretch: int, index: int, alternative: int) -> StoredMessage:
    """A new version of a reply that has another token in place `index` of a stretch, and goes on from there.

    alternative: which of those that are known for the place. Raises UserError.
    """
    message = app.store.message(owner, message_id)
    if message.state == "streaming":
        app.replies.stop(message_id)
        message = app.store.message(owner, message_id)
    model = app.engine.model
    stretches = app.store.tokens(owner, message_id)
    if not 0 <= stretch < len(stretches) or not 0 <= index < len(stretches[stretch].tokens):
        raise Conflict("The reply has changed meanwhile: look at its tokens again.")
    if message.model != model.name:
        raise Conflict(f"This reply was written by {message.model}, and {model.name} is loaded: their tokens differ.")
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
        return _ended_there(app, owner, message, kept, [*stretches[:stretch], TokenStretch(here.at, here.tokens[:index])])
    if REPLACEMENT in chosen.text:
        raise UserError("That token is only a part of a character, so the text up to it cannot be shown. Choose another.")
    text = _in_place_of(replaced, here.tokens[index].text, chosen.text)
    return _go_on(app, owner, message, kept + text, tokens)


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


def _ended_there(app: App, owner: str, message: StoredMessage, content: str, tokens: Sequence[TokenStretch]) -> StoredMessage:
    version = app.store.add(
        owner,
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
    app.store.set_tokens(owner, version.id, tokens)
    return version


def _go_on(app: App, owner: str, message: StoredMessage, content: str, tokens: Sequence[TokenStretch]) -> StoredMessage:
    """A version that begins with `content`, made of `tokens`, and goes on from exactly those, where their ids are known."""
    chat = app.store.chat(owner, message.chat_id)
    way = made_way(app, chat, message)
    way = replace(way, sampling=way.sampling.changed({"seed": -1}))
    exact = all(token.id >= 0 for token in tokens[-1].tokens)
    request = exact_request(app, owner, message, way, tokens) if exact else _before(app, owner, chat, message, way, content)
    request = replace(request, logprobs=ALTERNATIVES)
    made = sum(len(one.tokens) for one in tokens)

    def make() -> StoredMessage:
        run = run_of(app, way, request, at=len(content), exact=exact)
        version = app.store.add(
            owner,
            chat.id,
            message.parent_id,
            "assistant",
            content,
            state="streaming",
            figures=Figures(tokens=made, opened=message.figures.opened),
            extra=with_runs(*runs_of(message), run),
        )
        app.store.set_tokens(owner, version.id, tokens)
        return version

    return app.replies.begin(request, make, preset=way.preset)


def exact_request(app: App, owner: str, message: StoredMessage, way: Way, tokens: Sequence[TokenStretch]) -> GenerationRequest:
    """The request to go on after the last of `tokens`, token by token as they were, whatever their text would be cut into."""
    chat = app.store.chat(owner, message.chat_id)
    last = tokens[-1]
    base = _before(app, owner, chat, message, way, message.content[: last.at])
    ids = (*app.engine.model.render(base).tokens, *(token.id for token in last.tokens))
    return replace(base, prompt=ids, continue_reply=False, template=None)
