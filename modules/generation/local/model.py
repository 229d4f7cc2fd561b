"""A transformers model as a LoadedModel: what a request needs before it goes to the thread that owns the weights."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.errors import Conflict, NotFound, UserError
from modules.generation.context_overflow import fit_tokens
from modules.generation.local.engine_loop import Loop
from modules.generation.local.model_runner import Together, together_or_why_not
from modules.generation.local.prefix_cache import Key
from modules.generation.local.prompt import Prompt, Prompter, chat_template_of
from modules.generation.local.reply_text import ReplyText
from modules.generation.local.sequence import Lane, Naming, Row, Spelling
from modules.generation.local.single_runner import Alone
from modules.generation.local.speculative import Draft, Guesser, Lookup
from modules.generation.local.vision import Eyes
from modules.generation.samplers.batch_sampler import RowSampler, remaining
from modules.generation.samplers.candidates import NEVER
from modules.generation.samplers.contrastive import Contrast
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import SamplingParams
from modules.generation.stop_strings import REPLACEMENT
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
DEFAULT_CONTEXT = 4096
"""For models whose configuration does not say."""
GUESSES = 4
"""How far a draft model guesses ahead."""


@dataclass(frozen=True)
class Limits:
    """context_length 0: what the model was made for. cache_bytes 0: by the memory that is free. threads 0: all cores."""

    context_length: int = 0
    max_parallel: int = 8
    cache_bytes: int = 0
    prefill_chunk: int = 512
    prompt_lookup: int = 0
    threads: int = 0


class LocalModel:
    """Many requests on one transformers model. Safe to call from any thread."""

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

        processor: what reads the pictures for a model that sees.
        draft: a small model of the same vocabulary that guesses ahead while one reply runs alone.
        """
        limits = limits or Limits()
        self._name = name
        self._tokenizer = tokenizer
        model.eval()
        self._eyes = Eyes(model, processor) if processor is not None else None
        found = together_or_why_not(model, "text_config" if processor is not None else None)
        if isinstance(found, str):
            sentence = f"{name} answers one request at a time: {found}."
            log.info(sentence)
            report(sentence)
            found = Alone(model, found)
        self._compute: Together | Alone = found
        self._embeddings = not model.config.is_encoder_decoder
        self._context_length = limits.context_length or _context_of(model.config)
        self._prompter = Prompter(tokenizer, chat_template or chat_template_of(tokenizer), self._context_length, self._eyes)
        text_config = model.config.get_text_config(decoder=True)
        width = _width(model, text_config)
        eos, beyond = _eos(model, width)
        if beyond:
            sentence = (
                f'generation_config.json or config.json of {name} has {beyond} as "eos_token_id", and no token has that number.'
            )
            log.warning("%s", sentence)
            report(sentence)
        self._vocabulary = Vocabulary(tokenizer, size=width, eos=eos)
        self._eos = frozenset(self._vocabulary.eos)
        self._markers = frozenset(token for token, added in tokenizer.added_tokens_decoder.items() if added.special)
        self._within = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        remembered = lru_cache(maxsize=65_536)
        self._naming = Naming(
            remembered(partial(self._spelled, before=self._within)), remembered(partial(self._spelled, before=[]))
        )
        self._trials = Trials("transformers", lambda text: [name for name in _markers(tokenizer) if name in text])
        self._device = model.get_input_embeddings().weight.device
        self._parallel = limits.max_parallel if self._compute.together else 1
        self._loop = Loop(
            self._compute,
            parallel=self._parallel,
            cache_limit=limits.cache_bytes or _free_memory(self._device),
            chunk=limits.prefill_chunk,
            first_chunk=64 if self._device.type == "cpu" else limits.prefill_chunk,
            threads=limits.threads,
            guesser=self._guesser(limits, draft),
        )

    def _guesser(self, limits: Limits, draft: Any) -> Guesser | None:
        if not self._compute.together:
            return None
        if draft is not None:
            found = together_or_why_not(draft.eval())
            if isinstance(found, str):
                raise UserError(f"The draft model cannot guess ahead: {found}.", param="draft_model")
            return Draft(found, limits.prompt_lookup or GUESSES)
        return Lookup(limits.prompt_lookup) if limits.prompt_lookup else None

    # --- what it is

    @property
    def name(self) -> str:
        return self._name

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def chat_template(self) -> str | None:
        return self._prompter.chat_template

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            samplers=frozenset(SamplingParams.model_fields) - (set() if self._compute.together else {"penalty_alpha"}),
            adapters=True,
            logprobs=True,
            prompt_logprobs=self._compute.together,
            grammar=True,
            images=self._eyes is not None and self._compute.together,
            embeddings=self._embeddings,
            max_parallel=self._parallel,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        return self._compute.adapters.names

    def status(self) -> ModelStatus:
        return self._loop.status()

    # --- text and tokens

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        if special:
            return self._prompter.tokenize(text, begin=True)
        return self._prompter.tokenize_text(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        if tokens and max(tokens) >= self._vocabulary.size:
            raise UserError(f"{self._name} has no token {max(tokens)}.", param="tokens")
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def render(self, request: GenerationRequest) -> RenderedPrompt:
        prompt = self._prompter.prompt(request)
        return RenderedPrompt(prompt.text, tuple(prompt.tokens), prompt.dropped)

    def _spelled(self, token: int, *, before: list[int]) -> Spelling:
        """A token's text behind others, where some tokenizers begin it with a space, or at the head of a text."""
        start = self._decoded(before)
        text = self._decoded([*before, token])
        text = text[len(start) :] if text.startswith(start) else self._decoded([token])
        if REPLACEMENT not in text:
            return text, None
        try:
            raw = self._vocabulary.bytes_of(token)
        except ValueError:  # the bytes of this kind of vocabulary are not known
            return text, None
        return text, None if raw == text.encode() else raw or None

    def _decoded(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    # --- requests

    def stream(self, request: GenerationRequest) -> EventStream:
        if request.adapter is not None and request.adapter not in self.adapters:
            raise NotFound(f"There is no adapter {request.adapter} loaded. Load it on the Models tab.", param="adapter")
        prompt = self._prompter.prompt(request)
        row = self._row(request, prompt)
        self._loop.submit(row)
        return row.events

    def _row(self, request: GenerationRequest, prompt: Prompt) -> Row:
        sampling = request.sampling
        form = self._trials.form(sampling)
        sampler = RowSampler(
            sampling,
            prompt=prompt.tokens,
            vocabulary=self._vocabulary,
            device=self._device,
            lark=form.lark if form is not None else None,
        )
        key = (request.adapter, request.adapter_strength if request.adapter else 1.0)
        lanes = [self._lane(prompt, key)]
        if sampling.guidance_scale != 1:
            lanes.append(Lane(self._negative(sampling, prompt), key))
        before = () if prompt.starts_reply else prompt.tokens
        text = ReplyText(self._tokenizer, before, skip_special=sampling.skip_special_tokens)
        most = min(sampling.max_tokens, self._context_length - max(len(lane.tokens) for lane in lanes))
        contrast = Contrast(sampling.penalty_alpha) if sampling.contrastive and self._compute.together else None
        naming = replace(self._naming, left_out=self._markers) if sampling.skip_special_tokens else self._naming
        row = Row(request, prompt, sampler, lanes, text, self._eos, most, naming, contrast)
        row.events.ignored = form.ignored if form is not None else ()
        return row

    def _lane(self, prompt: Prompt, key: Key) -> Lane:
        if prompt.seen is None or self._eyes is None:
            return Lane(list(prompt.tokens), key, shortened=prompt.shortened)
        see = partial(self._eyes.embedded, list(prompt.tokens), dict(prompt.seen))
        return Lane(list(prompt.tokens), key, list(prompt.identity or ()), see, prompt.shortened)

    def _negative(self, sampling: SamplingParams, prompt: Prompt) -> list[int]:
        """The sequence that guidance pushes away from: the negative prompt, or nothing but the prompt's last token."""
        if not self._compute.together:
            raise UserError(
                f"Guidance needs two sequences at once, and this model computes one: {self._compute.why_alone}.",
                param="guidance_scale",
            )
        if not sampling.negative_prompt:
            return prompt.tokens[-1:]
        tokens = self._prompter.tokenize(sampling.negative_prompt, begin=sampling.add_bos)
        if len(tokens) >= self._context_length:
            raise UserError("The negative prompt does not fit the context.", param="negative_prompt")
        return tokens

    def next_tokens(self, request: GenerationRequest, count: int) -> NextTokens:
        once = request.sampling.model_copy(update={"max_tokens": 1, "stop": (), "max_tokens_per_second": 0.0})
        row = self._row(replace(request, sampling=once, logprobs=None, echo=False), self._prompter.prompt(request))
        row.contrast = None  # nobody reads the token that is chosen
        found: list[NextTokens] = []
        row.look = lambda scores: found.append(self._next_tokens(scores, row, count))
        self._loop.submit(row)
        with row.events as events:
            for _ in events:
                pass
        return found[0]

    def _next_tokens(self, scores: Tensor, row: Row, count: int) -> NextTokens:
        return NextTokens(self._likeliest(scores, count), self._likeliest(remaining(scores, [row.sampler]), count))

    def _likeliest(self, scores: Tensor, count: int) -> tuple[TokenAlternative, ...]:
        """The best of scores [1, vocabulary] that may come at all."""
        best = torch.log_softmax(scores[0].float(), -1).topk(min(count, scores.shape[-1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple(self._naming.alternative(token, value) for token, value in pairs if value > NEVER)

    # --- the rest of LoadedModel

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if not self._embeddings:
            raise UserError(f"{self._name} makes no embeddings: {self._compute.why_alone}.")
        return [self._loop.call(partial(self._embedding, self._embeddable(text))) for text in texts]

    def _embeddable(self, text: str) -> list[int]:
        tokens = self._prompter.tokenize(text, begin=True)
        if not tokens:
            raise UserError("An empty text has no embedding.", param="input")
        return fit_tokens(tokens, self._context_length, 1, "refuse")

    def _embedding(self, tokens: list[int]) -> list[float]:
        """The mean of the last layer's states, of unit length."""
        return torch.nn.functional.normalize(self._compute.hidden(tokens).float().mean(0), dim=0).tolist()

    def load_adapter(self, name: str, path: str) -> None:
        self._loop.call(lambda: self._compute.adapters.load(name, Path(path)))

    def unload_adapter(self, name: str) -> None:
        self._loop.call(partial(self._unload_adapter, name))

    def _unload_adapter(self, name: str) -> None:
        users = self._loop.users_of(name)
        if users:
            raise Conflict(
                f"The adapter {name} is in use by {users} replies. Stop them, or wait for their end.", param="adapter"
            )
        self._compute.adapters.unload(name)
        self._loop.slots.forget_idle(name)

    def close(self) -> None:
        self._loop.close()
        self._trials.close()
        self._compute.model = None
        give_memory_back()


def give_memory_back() -> None:
    """Hand freed memory to the system: what Python, CUDA and the C library would keep for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        log.debug("no malloc_trim here")


def _context_of(config: Any) -> int:
    text = config.get_text_config(decoder=True)
    for field in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"):
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_CONTEXT


def _width(model: Any, config: Any) -> int:
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return getattr(head, "out_features", None) or (weight.shape[0] if weight is not None else config.vocab_size)


def _markers(tokenizer: Any) -> list[str]:
    """The tokens that a tokenizer has besides its vocabulary of texts; which are control tokens, llguidance decides."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def _eos(model: Any, width: int) -> tuple[list[int], list[int]]:
    """The tokens that end a reply, and those that the files name although there are only `width`."""
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    if eos is None:
        eos = getattr(model.config, "eos_token_id", None)
    named = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return [token for token in named if 0 <= token < width], [token for token in named if token >= width]


def _free_memory(device: torch.device) -> int:
    """What the cache may take by itself: most of a GPU's free memory, half of the computer's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.85)
    import psutil

    return psutil.virtual_memory().available // 2
