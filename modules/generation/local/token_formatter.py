"""Token texts for log-probabilities and echoed prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Self

from modules.generation.stop_strings import REPLACEMENT
from modules.generation.types import Token, TokenAlternative

if TYPE_CHECKING:
    from modules.generation.samplers.batch_sampler import TokenLogprobs
    from modules.generation.samplers.vocabulary import Vocabulary

Spelling = tuple[str, bytes | None]
"""A token's text, and its bytes where they are not those of the text."""


@dataclass(frozen=True)
class TokenFormatter:
    """Tokens as `Token` and `TokenAlternative`.

    spelled: a token within a text. at_head: the first of a reply of its own, which may lose a space there.
    left_out: the tokens that add nothing to a text.
    """

    spelled: Callable[[int], Spelling]
    at_head: Callable[[int], Spelling]
    left_out: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: Any, vocabulary: Vocabulary) -> Self:
        """The token texts of one model, remembered."""
        within = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        remembered = lru_cache(maxsize=65_536)
        spelled = partial(_spelled, tokenizer, vocabulary)
        return cls(remembered(partial(spelled, within)), remembered(partial(spelled, [])))

    def token(self, token: int, detail: TokenLogprobs | None, *, head: bool = False) -> Token:
        text, raw = (self.at_head if head else self.spelled)(token)
        raw = b"" if token in self.left_out else raw
        if detail is None:
            return Token(token, text, raw=raw)
        pairs = zip(detail.ids.tolist(), detail.logprobs.tolist(), strict=True)
        alternatives = tuple(self.alternative(other, value, head=head) for other, value in pairs)
        return Token(token, text, float(detail.logprob), alternatives, raw)

    def alternative(self, token: int, logprob: float, *, head: bool = False) -> TokenAlternative:
        text, raw = (self.at_head if head else self.spelled)(token)
        return TokenAlternative(token, text, logprob, b"" if token in self.left_out else raw)


def _spelled(tokenizer: Any, vocabulary: Vocabulary, before: list[int], token: int) -> Spelling:
    """A token's text behind others, where some tokenizers begin it with a space, or at the head of a text."""
    start = _decoded(tokenizer, before)
    text = _decoded(tokenizer, [*before, token])
    text = text[len(start) :] if text.startswith(start) else _decoded(tokenizer, [token])
    if REPLACEMENT not in text:
        return text, None
    try:
        raw = vocabulary.bytes_of(token)
    except ValueError:  # the bytes of this kind of vocabulary are not known
        return text, None
    return text, None if raw == text.encode() else raw or None


def _decoded(tokenizer: Any, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
