"""The words that every layer speaks: a request, the events that answer it, and what a loaded model can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from modules.generation.sampling import SamplingParams
from modules.generation.stream import EventStream

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]
"""abort: the engine was stopped, or kept the rest to itself; what is there is not the whole reply."""


@dataclass(frozen=True)
class Image:
    """One picture of a message: its bytes as they came, in a format Pillow reads."""

    data: bytes


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `extra` is handed to the chat template as it is (name, tool_calls, …)."""

    role: Role
    content: str
    images: tuple[Image, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


Messages = tuple[Message, ...]
Prompt = str | tuple[int, ...] | Messages
"""Text to continue, token ids to continue, or a conversation to answer."""


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that decides a reply.

    template: Jinja source used instead of the model's own chat template; template_variables go into it (tools, …).
    continue_reply: the last message is the beginning of the reply and is continued.
    adapter: name of a loaded LoRA, None for the base model; adapter_strength 0..2.
    logprobs: None, or how many alternatives to report for each token (0 = the chosen token alone).
    echo: report the prompt's tokens (with logprobs, where asked) in `Started`.
    overflow: what to do when the prompt does not fit: refuse, or drop the oldest turns (the start of a text).
    """

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    template: str | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    continue_reply: bool = False
    adapter: str | None = None
    adapter_strength: float = 1.0
    logprobs: int | None = None
    echo: bool = False
    overflow: Literal["refuse", "drop_oldest"] = "refuse"


@dataclass(frozen=True)
class TokenAlternative:
    """A token that could stand in a place: its id, its text, and the natural log of its probability.

    raw: its bytes where they are not those of `text`: part of a character, or none for a marker that is left out of the text.
    """

    id: int
    text: str
    logprob: float
    raw: bytes | None = None


@dataclass(frozen=True)
class Token:
    """One token of a reply or prompt; logprob is None where nobody asked (and for the very first of a prompt). raw: as above."""

    id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[TokenAlternative, ...] = ()
    raw: bytes | None = None


def own_bytes(token: Token | TokenAlternative) -> bytes:
    """What a token adds to the UTF-8 of its text."""
    return token.text.encode("utf-8", "replace") if token.raw is None else token.raw


def name_of(token: Token | TokenAlternative) -> str:
    """A token's text, or its bytes where it is a part of a character: `\\xe4`."""
    return "".join(f"\\x{byte:02x}" for byte in token.raw) if token.raw else token.text


@dataclass(frozen=True)
class NextTokens:
    """The likeliest tokens that could come next, best first.

    model: as the model itself has them. left: as the request's sampling leaves them; None where the engine cannot tell.
    """

    model: tuple[TokenAlternative, ...]
    left: tuple[TokenAlternative, ...] | None


@dataclass(frozen=True)
class Usage:
    """Counts of tokens. cached_tokens: how many of the prompt's were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds: waiting for a slot; from the request to the first token; from the first token to the last."""

    queued: float
    first_token: float
    decode: float

    def tokens_per_second(self, completion_tokens: int) -> float | None:
        """Speed after the first token; None for replies too short to tell."""
        return (completion_tokens - 1) / self.decode if completion_tokens > 1 and self.decode > 0 else None


@dataclass(frozen=True)
class Queued:
    """Waiting for a slot; place 1 is next."""

    place: int


@dataclass(frozen=True)
class Prefill:
    """The prompt is being read: `done` of `total` tokens, cached ones counted as done."""

    done: int
    total: int


@dataclass(frozen=True)
class Started:
    """The prompt is read: comes once, before the first text.

    dropped_messages: how many of the oldest turns did not fit. prompt: its tokens, where echo was asked for. opened: the mark
    of thinking that it ended with (reasoning.opened_by); None where nobody here sees how it ended.
    """

    prompt_tokens: int
    cached_tokens: int
    dropped_messages: int = 0
    prompt: tuple[Token, ...] = ()
    opened: str | None = None


@dataclass(frozen=True)
class TextDelta:
    """More text: whole characters, never part of a stop text. It may be empty when tokens have no text yet.

    tokens: how many tokens were made since the last event. details: those tokens, where logprobs were asked for.
    """

    text: str
    tokens: int = 1
    details: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end: exactly one, always last. stop_text: the stop text that ended the reply, if one did."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_text: str | None = None


GenerationEvent = Queued | Prefill | Started | TextDelta | Finished
"""Zero or more Queued and Prefill, one Started, TextDeltas, one Finished. A failure is an exception instead."""


@dataclass(frozen=True)
class Capabilities:
    """What a loaded model can do. samplers: the names of SamplingParams fields that have an effect."""

    samplers: frozenset[str]
    adapters: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False
    grammar: bool = False
    images: bool = False
    embeddings: bool = False
    max_parallel: int = 1


@dataclass(frozen=True)
class ModelStatus:
    """What a loaded model is busy with; bytes are of the key–value cache."""

    running: int = 0
    waiting: int = 0
    cache_bytes: int = 0
    cache_limit: int | None = None
    cached_tokens: int = 0


@dataclass(frozen=True)
class RenderedPrompt:
    """What the model will see: text with template tokens, its token ids, and how many old turns were left out."""

    text: str
    tokens: tuple[int, ...]
    dropped_messages: int = 0


class LoadedModel(Protocol):
    """The one seam for all kinds of model. Safe to call from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt and its reply may have together."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's own chat template; None where it has none."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRAs that a request can choose."""
        ...

    def stream(self, request: GenerationRequest) -> EventStream:
        """Answer one request. Raises UserError at once for what can be told before the first token."""
        ...

    def render(self, request: GenerationRequest) -> RenderedPrompt:
        """The exact prompt of `request`, without computing anything. Raises UserError."""
        ...

    def next_tokens(self, request: GenerationRequest, count: int) -> NextTokens:
        """What could follow the prompt of `request`, at most `count` tokens of each kind. Waits its turn. Raises UserError."""
        ...

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`; special reads markers such as <|im_end|> as tokens and adds what the model adds."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str: ...

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text, of unit length. Raises UserError where the model cannot."""
        ...

    def load_adapter(self, name: str, path: str) -> None:
        """Make a LoRA (a PEFT folder or a GGUF adapter) available under `name`. Raises UserError where it does not fit."""
        ...

    def unload_adapter(self, name: str) -> None: ...

    def status(self) -> ModelStatus: ...

    def close(self) -> None:
        """End what runs and give all memory back. Idempotent."""
        ...
