"""From a GenerationRequest to the SequenceGroup that the engine runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from modules.errors import UserError
from modules.generation.local.model_runner import ModelRunner
from modules.generation.local.prefix_cache import Key
from modules.generation.local.prompt import Prompt, PromptBuilder
from modules.generation.local.reply_text import ReplyText
from modules.generation.local.sequence import Sequence, SequenceGroup
from modules.generation.local.token_formatter import TokenFormatter
from modules.generation.local.vision import VisionInputs
from modules.generation.samplers.batch_sampler import SequenceSampler
from modules.generation.samplers.contrastive import ContrastiveSearchState
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import SamplingParams
from modules.generation.structured_output.process import Trials
from modules.generation.types import GenerationRequest


class SequenceGroupBuilder:
    """Makes the groups of one model. Thread-safe."""

    def __init__(
        self,
        prompter: PromptBuilder,
        vocabulary: Vocabulary,
        formatter: TokenFormatter,
        trials: Trials,
        runner: ModelRunner,
        vision: VisionInputs | None,
    ) -> None:
        self._prompt_builder = prompter
        self._tokenizer = prompter.tokenizer
        self._context_length = prompter.context_length
        self._vocabulary = vocabulary
        self._eos = frozenset(vocabulary.eos)
        self._formatter = formatter
        markers = frozenset(token for token, added in self._tokenizer.added_tokens_decoder.items() if added.special)
        self._without_markers = replace(formatter, left_out=markers)
        self._trials = trials
        self._device = runner.device
        self._batching_unsupported_reason = runner.batching_unsupported_reason
        self._vision = vision

    def build(self, request: GenerationRequest) -> SequenceGroup:
        """Raises UserError for what cannot be answered."""
        prompt = self._prompt_builder.prompt(request)
        sampling = request.sampling
        form = self._trials.form(sampling)
        sampler = SequenceSampler(
            sampling,
            prompt=prompt.tokens,
            vocabulary=self._vocabulary,
            device=self._device,
            lark=form.lark if form is not None else None,
        )
        key = (request.adapter, request.adapter_strength if request.adapter else 1.0)
        sequences = [self._sequence(prompt, key)]
        if sampling.guidance_scale != 1:
            sequences.append(Sequence(self._negative(sampling, prompt), key))
        before = () if prompt.starts_reply else prompt.tokens
        text = ReplyText(self._tokenizer, before, skip_special=sampling.skip_special_tokens)
        max_tokens = min(sampling.max_tokens, self._context_length - max(len(sequence.tokens) for sequence in sequences))
        searches = sampling.contrastive and self._batching_unsupported_reason is None
        contrast = ContrastiveSearchState(sampling.penalty_alpha) if searches else None
        formatter = self._without_markers if sampling.skip_special_tokens else self._formatter
        group = SequenceGroup(request, prompt, sampler, sequences, text, self._eos, max_tokens, formatter, contrast)
        group.events.ignored = form.ignored if form is not None else ()
        return group

    def _sequence(self, prompt: Prompt, key: Key) -> Sequence:
        if prompt.vision is None or self._vision is None:
            return Sequence(list(prompt.tokens), key, truncated=prompt.truncated)
        embed = partial(self._vision.embedded, list(prompt.tokens), dict(prompt.vision))
        return Sequence(list(prompt.tokens), key, list(prompt.identity or ()), embed, prompt.truncated)

    def _negative(self, sampling: SamplingParams, prompt: Prompt) -> list[int]:
        """The sequence that guidance pushes away from: the negative prompt, or nothing but the prompt's last token."""
        if self._batching_unsupported_reason is not None:
            raise UserError(
                f"Guidance needs two sequences at once, and this model computes one: {self._batching_unsupported_reason}.",
                param="guidance_scale",
            )
        if not sampling.negative_prompt:
            return prompt.tokens[-1:]
        tokens = self._prompt_builder.tokenize(sampling.negative_prompt, begin=sampling.add_bos)
        if len(tokens) >= self._context_length:
            raise UserError("The negative prompt does not fit the context.", param="negative_prompt")
        return tokens
