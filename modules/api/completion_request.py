"""The body of /v1/completions: text or tokens to continue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from modules.api.common import MAX_CHOICES, CommonRequest
from modules.generation.sampling import MAX_TOKENS
from modules.settings.declare import setting

MAX_PROMPTS = 2048
Tokens = Annotated[tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...], Field(min_length=1)]


def _kind(value: Any) -> str:
    """Which of the alternatives is meant, so that an error tells of that one."""
    if isinstance(value, str):
        return "Text"
    return "Tokens" if isinstance(value, list | tuple) and value and isinstance(value[0], int) else "Batch"


Prompts = Annotated[
    Annotated[str, Tag("Text")]
    | Annotated[Tokens, Tag("Tokens")]
    | Annotated[tuple[str | Tokens, ...], Field(min_length=1, max_length=MAX_PROMPTS), Tag("Batch")],
    Discriminator(_kind),
]


class CompletionRequest(CommonRequest):
    """Text to continue. Every sampling setting of the Parameters tab is a field."""

    prompt: Prompts
    """A text, the token ids of one, or several of either kind."""
    max_tokens: int = setting(16, min=0, max=MAX_TOKENS, group="Length", aliases=["max_new_tokens"])
    """The most tokens to write; 0 writes none."""
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    """Make this many, and return the n with the best mean log-probability."""
    echo: bool = False
    """Put the prompt before the reply, with its log-probabilities where logprobs asks for them."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Report the log-probability of each token, and of this many alternatives."""
    suffix: str | None = None
    """Not supported: a text can only be continued at its end."""

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        """The name of the length in chat is understood, and logprobs: false is none."""
        values = super().in_our_words({"max_tokens": said.get("max_completion_tokens"), **said})
        values.pop("max_completion_tokens", None)
        if values.get("logprobs") is False:
            del values["logprobs"]
        return values

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*super().names(), "max_completion_tokens")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.suffix:
            raise ValueError("suffix is not supported: a text can only be continued at its end. Leave it out")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of must be at least n ({self.n})")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise ValueError("best_of cannot be streamed, because the best is known only at the end")
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each prompt by itself."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [tuple(token for token in prompt if isinstance(token, int))]
        return [part for part in prompt if not isinstance(part, int)]
