"""A transformers model as a LoadedModel: what a request needs before it goes to the thread that owns the weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.errors import Conflict, NotFound, UserError
from modules.generation.context_overflow import fit_tokens
from modules.generation.local.engine_setup import Limits, give_memory_back, start_engine
from modules.generation.local.group_builder import SequenceGroupBuilder
from modules.generation.local.model_config import context_length_of, eos_tokens, vocabulary_size
from modules.generation.local.model_runner import BatchedRunner, batched_runner
from modules.generation.local.prompt import PromptBuilder, chat_template_of
from modules.generation.local.single_runner import SingleSequenceRunner
from modules.generation.local.token_formatter import TokenFormatter
from modules.generation.local.vision import VisionInputs
from modules.generation.samplers.batch_sampler import remaining
from modules.generation.samplers.candidates import NEG_INF
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import SamplingParams
from modules.generation.stream import EventStream
from modules.generation.structured_output.process import Trials
from modules.generation.types import (
    Capabilities,
    GenerationRequest,
    ModelStatus,
    NextTokens,
    RenderedPrompt,
    TokenAlternative,
)

log = logging.getLogger(__name__)


class LocalModel:
    """Many requests on one transformers model. Safe to call from any thread. It has all methods of LoadedModel: more than twenty."""

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        limits: Limits | None = None,
        *,
        chat_template: str | None = None,
        draft: Any = None,
        processor: Any = None,
        report: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """model: a causal language model of transformers, on its devices; it belongs to this object from now on.

        processor: the AutoProcessor of a vision model.
        draft: a small model of the same vocabulary for speculative decoding while one reply runs alone.
        """
        limits = limits or Limits()
        self._name = name
        self._tokenizer = tokenizer
        model.eval()
        self._vision = VisionInputs(model, processor) if processor is not None else None
        found = batched_runner(model, "text_config" if processor is not None else None)
        if isinstance(found, str):
            sentence = f"{name} answers one request at a time: {found}."
            log.info(sentence)
            report(sentence)
            found = SingleSequenceRunner(model, found)
        self._runner: BatchedRunner | SingleSequenceRunner = found
        self._embeddings = not model.config.is_encoder_decoder
        self._context_length = limits.context_length or context_length_of(model.config)
        self._prompt_builder = PromptBuilder(
            tokenizer, chat_template or chat_template_of(tokenizer), self._context_length, self._vision
        )
        self._vocabulary = _vocabulary(name, model, tokenizer, report)
        self._formatter = TokenFormatter.of(tokenizer, self._vocabulary)
        self._trials = Trials("transformers", lambda text: [name for name in _added_tokens(tokenizer) if name in text])
        self._groups = SequenceGroupBuilder(
            self._prompt_builder, self._vocabulary, self._formatter, self._trials, found, self._vision
        )
        self._max_parallel = limits.max_parallel if self._supports_batching else 1
        self._loop = start_engine(found, limits, draft)

    # --- what it is

    @property
    def name(self) -> str:
        return self._name

    @property
    def _supports_batching(self) -> bool:
        return self._runner.batching_unsupported_reason is None

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def chat_template(self) -> str | None:
        return self._prompt_builder.chat_template

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            samplers=frozenset(SamplingParams.model_fields) - (set() if self._supports_batching else {"penalty_alpha"}),
            adapters=True,
            logprobs=True,
            prompt_logprobs=self._supports_batching,
            grammar=True,
            images=self._vision is not None and self._supports_batching,
            embeddings=self._embeddings,
            max_parallel=self._max_parallel,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        return self._runner.adapters.names

    def status(self) -> ModelStatus:
        return self._loop.status()

    # --- text and tokens

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        if special:
            return self._prompt_builder.tokenize(text, begin=True)
        return self._prompt_builder.tokenize_text(text)

    def detokenize(self, tokens: Items[int]) -> str:
        if tokens and max(tokens) >= self._vocabulary.size:
            raise UserError(f"{self._name} has no token {max(tokens)}.", param="tokens")
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def render(self, request: GenerationRequest) -> RenderedPrompt:
        prompt = self._prompt_builder.prompt(request)
        return RenderedPrompt(prompt.text, tuple(prompt.tokens), prompt.dropped)

    # --- requests

    def stream(self, request: GenerationRequest) -> EventStream:
        if request.adapter is not None and request.adapter not in self.adapters:
            raise NotFound(f"There is no adapter {request.adapter} loaded. Load it on the Models tab.", param="adapter")
        group = self._groups.build(request)
        self._loop.submit(group)
        return group.events

    def next_tokens(self, request: GenerationRequest, count: int) -> NextTokens:
        once = request.sampling.model_copy(update={"max_tokens": 1, "stop": (), "max_tokens_per_second": 0.0})
        group = self._groups.build(replace(request, sampling=once, logprobs=None, echo=False))
        group.contrast = None  # nobody reads the token that is chosen
        found: list[NextTokens] = []

        def note(logits: Tensor) -> None:
            left = remaining(logits, [group.sampler])
            found.append(NextTokens(self._likeliest(logits, count), self._likeliest(left, count)))

        group.on_logits = note
        self._loop.submit(group)
        with group.events as events:
            for _ in events:
                pass
        return found[0]

    def _likeliest(self, logits: Tensor, count: int) -> tuple[TokenAlternative, ...]:
        """The best of logits [1, vocabulary] that may come at all."""
        best = torch.log_softmax(logits[0].float(), -1).topk(min(count, logits.shape[-1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple(self._formatter.alternative(token, value) for token, value in pairs if value > NEG_INF)

    # --- the rest of LoadedModel

    def embed(self, texts: Items[str]) -> list[list[float]]:
        if not self._embeddings:
            raise UserError(f"{self._name} makes no embeddings: {self._runner.batching_unsupported_reason}.")
        return [self._loop.call(partial(self._embedding, self._embeddable(text))) for text in texts]

    def _embeddable(self, text: str) -> list[int]:
        tokens = self._prompt_builder.tokenize(text, begin=True)
        if not tokens:
            raise UserError("An empty text has no embedding.", param="input")
        return fit_tokens(tokens, self._context_length, 1, "refuse")

    def _embedding(self, tokens: list[int]) -> list[float]:
        """The mean of the last layer's states, of unit length."""
        return torch.nn.functional.normalize(self._runner.hidden_states(tokens).float().mean(0), dim=0).tolist()

    def load_adapter(self, name: str, path: str) -> None:
        self._loop.call(lambda: self._runner.adapters.load(name, Path(path)))

    def unload_adapter(self, name: str) -> None:
        self._loop.call(partial(self._unload_adapter, name))

    def _unload_adapter(self, name: str) -> None:
        users = self._loop.users_of(name)
        if users:
            raise Conflict(
                f"The adapter {name} is in use by {users} replies. Stop them, or wait for their end.", param="adapter"
            )
        self._runner.adapters.unload(name)
        self._loop.cache.forget_idle(name)

    def close(self) -> None:
        self._loop.close()
        self._trials.close()
        self._runner.model = None
        give_memory_back()


def _vocabulary(name: str, model: Any, tokenizer: Any, report: Callable[[str], None]) -> Vocabulary:
    """As wide as the logits; numbers of end-of-sequence tokens that are beyond it are reported and left out."""
    width = vocabulary_size(model)
    eos, beyond = eos_tokens(model, width)
    if beyond:
        sentence = (
            f'generation_config.json or config.json of {name} has {beyond} as "eos_token_id", and no token has that number.'
        )
        log.warning("%s", sentence)
        report(sentence)
    return Vocabulary(tokenizer, size=width, eos=eos)


def _added_tokens(tokenizer: Any) -> list[str]:
    """The tokens that a tokenizer has besides its vocabulary of texts; which are control tokens, llguidance decides."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]
