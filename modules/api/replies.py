"""The answers of chat and completions as OpenAI's protocol writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from modules.api.progress import Progress, lengths
from modules.generation.types import Token, TokenAlternative, Usage, name_of, own_bytes

LOWEST = -9999.0
"""What the protocol says for a probability of nought, because JSON has no minus infinity."""


class PromptDetails(BaseModel):
    """More about the prompt. dropped_messages, dropped_tokens: what was left out because truncate asked for it."""

    cached_tokens: int = 0
    dropped_messages: int = 0
    dropped_tokens: int = 0


class UsageReply(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(BaseModel):
    """A token that could stand in a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the reply."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The log-probabilities of a chat reply."""

    content: list[TokenLogprob]
    refusal: list[TokenLogprob] | None = None


class FunctionCall(BaseModel):
    """What the model wants to have called; arguments is JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCallReply(BaseModel):
    """One call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ReplyMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: list[ToolCallReply] | None = None


class ChatChoice(BaseModel):
    """One of n replies."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "abort"]
    """abort: the reply was cut, because the model was unloaded, the server ended, or an administrator stopped it."""


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply
    system_fingerprint: str
    """The same as long as the model, its options and this program are."""


class CompletionLogprobs(BaseModel):
    """The log-probabilities of a completion, in four lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of the replies: n for each prompt, in the order of the prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length", "abort"]
    """abort: the reply was cut, because the model was unloaded, the server ended, or an administrator stopped it."""


class Completion(BaseModel):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply
    system_fingerprint: str
    """The same as long as the model, its options and this program are."""


def usage_of(counts: Iterable[tuple[Usage, PromptDetails]], completions: Iterable[Usage]) -> UsageReply:
    """counts: one for each prompt; completions: one for each reply that was made."""
    prompts = list(counts)
    read = sum(usage.prompt_tokens for usage, _ in prompts)
    written = sum(usage.completion_tokens for usage in completions)
    details = PromptDetails(
        cached_tokens=sum(usage.cached_tokens for usage, _ in prompts),
        dropped_messages=sum(dropped.dropped_messages for _, dropped in prompts),
        dropped_tokens=sum(dropped.dropped_tokens for _, dropped in prompts),
    )
    return UsageReply(prompt_tokens=read, completion_tokens=written, total_tokens=read + written, prompt_tokens_details=details)


def counts_so_far(reply: Progress) -> dict[str, int] | None:
    """The counts of one reply as a chunk in the middle has them; None until the prompt is counted."""
    if reply.started is None and reply.finished is None:
        return None
    usage = reply.usage
    read, written = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def chat_logprobs(tokens: Iterable[Token]) -> dict[str, Any]:
    """Tokens as the chat protocol lists them."""
    return {
        "content": [{**_top(token), "top_logprobs": [_top(other) for other in token.alternatives]} for token in tokens],
        "refusal": None,
    }


def _top(token: Token | TokenAlternative) -> dict[str, Any]:
    """bytes is null for what adds nothing to the text."""
    return {
        "token": name_of(token),
        "logprob": _finite(token.logprob, LOWEST),
        "bytes": list(own_bytes(token)) if token.raw != b"" else None,
    }


def completion_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """Tokens as the completions protocol lists them; offset: characters before the first of them."""
    offsets = []
    for length in lengths(tokens):
        offsets.append(max(offset, 0))
        offset += length
    return {
        "tokens": [_name(token) for token in tokens],
        "token_logprobs": [_finite(token.logprob, None) for token in tokens],
        "top_logprobs": [_by_text(token) for token in tokens],
        "text_offset": offsets,
    }


def _by_text(token: Token) -> Mapping[str, float] | None:
    if token.logprob is None:
        return None
    likeliest: dict[str, float] = {}
    for other in (*token.alternatives, token):
        value = _finite(other.logprob, LOWEST)
        likeliest[_name(other)] = max(value, likeliest.get(_name(other), LOWEST))
    return likeliest


def _name(token: Token | TokenAlternative) -> str:
    """A part of a character as vLLM and OpenAI write it: `bytes:\\xe4`."""
    return f"bytes:{name_of(token)}" if token.raw else token.text


def _finite(logprob: float | None, missing: Any) -> Any:
    return missing if logprob is None else max(logprob, LOWEST)
