"""Model runner: one forward pass for new tokens of many sequences, by our own attention."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from modules.generation.local import attention
from modules.generation.local.adapters import Adapters
from modules.generation.local.attention import Pieces
from modules.generation.local.decode_attention import DecodeAttention
from modules.generation.local.graphs import Graphs, can_capture
from modules.generation.local.kv_cache import LayerLayout, Layout, Piece, Store, positions
from modules.generation.local.llama import Decoder, NotLlama

log = logging.getLogger(__name__)


class ModelRunner(Protocol):
    """How a model computes; `BatchedRunner` and `SingleSequenceRunner` are the two.

    batching_unsupported_reason: why there can be but one sequence in a pass; None where there can be several.
    reuses_prefix: whether a sequence can go on from the beginning of another.
    """

    reuses_prefix: bool
    batching_unsupported_reason: str | None
    adapters: Adapters
    device: torch.device

    def new_store(self, capacity: int) -> Any: ...

    def bytes_of(self, capacity: int) -> int: ...

    def logits(
        self, pieces: Sequence[Piece], tokens: Sequence[int], keep: Sequence[int], embeds: Sequence[Tensor | None]
    ) -> Tensor:
        """Logits [len(keep), vocabulary] after those places of `tokens` that `keep` names; tokens of all pieces end to end.

        embeds: for each piece None, or [count, hidden] to use instead of its tokens' embeddings (images).
        """
        ...

    def hidden_states(self, tokens: Sequence[int]) -> Tensor:
        """The last layer's hidden states [tokens, hidden] of one sequence that is not kept."""
        ...


class BatchedRunner:
    """Pieces of any number of sequences in one pass, by our own attention.

    Beyond a `ModelRunner` it copies and shifts keys and values (prefix cache) and gives hidden states (contrastive search).
    """

    reuses_prefix = True
    batching_unsupported_reason: str | None = None

    def __init__(self, model: Any, layout: Layout) -> None:
        self.model = model
        self.layout = layout
        self.decoder: Decoder | None = None
        self.decode_attention: DecodeAttention | None = None
        self.adapters: Adapters
        self.graphs: Graphs | None = None
        self.device = model.get_input_embeddings().weight.device

    def new_store(self, capacity: int) -> Store:
        return Store(self.layout, capacity)

    def bytes_of(self, capacity: int) -> int:
        return self.layout.bytes_of(capacity)

    def use_kernels(self, decode_attention: DecodeAttention | None) -> None:
        """Compute rows of one token by these; None: by torch."""
        self.decode_attention = decode_attention
        if self.decoder is not None:
            self.decoder.decode = decode_attention

    @property
    def supports_shift(self) -> bool:
        return self.decoder is not None

    def copy(self, source: Store, target: Store, first: int, last: int) -> None:
        target.copy(source, first, last)

    def shift(self, store: Store, first: int, last: int, to: int) -> None:
        assert self.decoder is not None
        store.shift(first, last, to, self.decoder.rotate(to - first))

    def logits(
        self, pieces: Sequence[Piece], tokens: Sequence[int], keep: Sequence[int], embeds: Sequence[Tensor | None] = ()
    ) -> Tensor:
        adapt = self.adapters.plan(pieces)
        if self.graphs is not None and adapt is None and len(keep) == len(tokens) == len(pieces):
            return self.graphs.scores(pieces, tokens)
        embedded = self._embedded(tokens, pieces, embeds)
        kept = torch.tensor(keep, dtype=torch.long, device=self.device) if len(keep) < len(tokens) else None
        if self.decoder is not None:
            return self.decoder.logits(pieces, embedded, kept, adapt)
        return self._output(self.model, pieces, embedded, logits_to_keep=kept if kept is not None else 0).logits[0]

    def logits_and_hidden_states(
        self, pieces: Sequence[Piece], tokens: Sequence[int], keep: Sequence[int], embeds: Sequence[Tensor | None] = ()
    ) -> tuple[Tensor, Tensor]:
        """The logits as of `logits`, and the last layer's hidden states [tokens, hidden] of all `tokens`."""
        adapt = self.adapters.plan(pieces)
        embedded = self._embedded(tokens, pieces, embeds)
        kept = torch.tensor(keep, dtype=torch.long, device=self.device)
        if self.decoder is not None:
            states = self.decoder.hidden(pieces, embedded, None, adapt)
            return self.decoder.head(states[kept]), states
        output = self._output(self.model, pieces, embedded, logits_to_keep=kept, output_hidden_states=True)
        return output.logits[0], output.hidden_states[-1][0]

    def hidden_states(self, tokens: Sequence[int]) -> Tensor:
        pieces = [Piece(self.new_store(len(tokens)), 0, len(tokens))]
        embedded = self._embedded(tokens, pieces, ())
        if self.decoder is not None:
            return self.decoder.hidden(pieces, embedded, None, None)
        self.adapters.plan(pieces)
        return self._output(self.model.get_decoder(), pieces, embedded).last_hidden_state[0]

    def _output(self, module: Any, pieces: Sequence[Piece], embedded: Tensor, **more: Any) -> Any:
        """What transformers' own `module` makes of embedded [tokens, hidden]."""
        cache = Pieces(pieces, self.decode_attention)
        return module(
            inputs_embeds=embedded[None],
            position_ids=torch.tensor([positions(pieces)], device=self.device),
            past_key_values=cache,
            use_cache=True,
            pieces=cache,
            **more,
        )

    def _embedded(self, tokens: Sequence[int], pieces: Sequence[Piece], embeds: Sequence[Tensor | None]) -> Tensor:
        """[tokens, hidden]: of each token, or of the part of an image that stands in its place."""
        embedded = self.model.get_input_embeddings()(torch.tensor(tokens, device=self.device))
        if any(part is not None for part in embeds):
            parts = embedded.split([piece.count for piece in pieces])
            embedded = torch.cat([own if part is None else part for own, part in zip(parts, embeds, strict=True)])
        return embedded


@torch.inference_mode()
def batched_runner(model: Any, sub_config: str | None = None) -> BatchedRunner | str:
    """Switch `model` to our attention and compare it with its own; a sentence where they differ, and the model as it was.

    sub_config: the name of the language model's part of the config, in vision models.
    """
    own = model.config._attn_implementation
    language = getattr(model.config, sub_config) if sub_config else model.config
    reason = _unsupported_reason(model, language)
    if reason:
        return reason
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, language.vocab_size, (count,), generator=generator).tolist() for count in (11, 7)]
    outputs = [model(input_ids=torch.tensor([prompt], device=device), use_cache=True) for prompt in prompts]
    expected = [output.logits[0, -1].float() for output in outputs]
    attention.register()
    try:
        _set_attention(model, attention.NAME, sub_config)
        runner = BatchedRunner(model, _layout(outputs[0].past_key_values))
        runner.adapters = Adapters(model, hooks=True)
        _compare(runner, prompts, expected)
    except Exception as error:  # noqa: BLE001 - any failure only means that this model runs one sequence at a time
        _set_attention(model, own, sub_config)
        log.info("several sequences at once were tried and given up: %r", error)
        return "its attention could not be replaced by one for many sequences"
    _quicken(runner, prompts, expected)
    _compile(runner, prompts, expected)
    return runner


def _quicken(runner: BatchedRunner, prompts: list[list[int]], expected: list[Tensor]) -> None:
    """Compute with our own layers where they give the same logits."""
    try:
        # Weights are packed only after the layers are known to be right: packing gives the model's own up.
        runner.decoder = Decoder(runner.model)
        _compare(runner, prompts, expected)
        runner.decoder.pack()
        runner.adapters = Adapters(runner.model, hooks=False)
        if can_capture(runner.decoder, runner.layout):
            _capture(runner, prompts, expected)
    except (NotLlama, AttributeError, RuntimeError, ValueError) as error:
        runner.decoder = None
        log.info("computed by transformers' own layers: %r", error)


def _compile(runner: BatchedRunner, prompts: list[list[int]], expected: list[Tensor]) -> None:
    """Decode by the CPU's compiled kernels, for all rows at once, where they give the same logits."""
    try:
        runner.use_kernels(DecodeAttention(runner.layout))
        _compare(runner, prompts, expected)
    except Exception as error:  # noqa: BLE001 - whatever the compiler says, the steps work without
        runner.use_kernels(None)
        log.info("decode attention: by torch, one call for each row and layer: %s", error)


def _capture(runner: BatchedRunner, prompts: list[list[int]], expected: list[Tensor]) -> None:
    """Decode by captured graphs where they give the same logits."""
    assert runner.decoder is not None
    try:
        runner.graphs = Graphs(runner.decoder, runner.layout)
        _compare(runner, prompts, expected)
    except Exception as error:  # noqa: BLE001 - whatever the driver or the compiler says, the steps work without
        runner.graphs = None
        log.warning("decode steps are not captured as graphs: %r", error)


def _unsupported_reason(model: Any, config: Any) -> str | None:
    kinds = set(getattr(config, "layer_types", None) or ())
    if model.config.is_encoder_decoder:
        return "it has an encoder and a decoder"
    if getattr(model, "_is_stateful", False) or any("linear" in kind or "mamba" in kind or "conv" in kind for kind in kinds):
        return "it keeps a running state that cannot be cut back"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return "its positions are stretched by the length of the text"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    return None


def _set_attention(model: Any, name: str, sub_config: str | None) -> None:
    model.set_attn_implementation({sub_config: name} if sub_config else name)


def _layout(cache: Any) -> Layout:
    """What each layer wants to keep, from a cache that transformers filled."""
    return Layout(
        tuple(
            LayerLayout(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1], layer.keys.dtype, layer.keys.device)
            for layer in cache.layers
        )
    )


def _compare(runner: BatchedRunner, prompts: list[list[int]], expected: list[Tensor]) -> None:
    """Both prompts in one pass, the last token of each in a second one. Raises ValueError where the logits differ."""
    stores = [runner.new_store(16) for _ in prompts]
    first = [Piece(store, 0, len(prompt) - 1) for store, prompt in zip(stores, prompts, strict=True)]
    runner.logits(first, [token for prompt in prompts for token in prompt[:-1]], [0])
    last = [Piece(store, len(prompt) - 1, 1) for store, prompt in zip(stores, prompts, strict=True)]
    logits = runner.logits(last, [prompt[-1] for prompt in prompts], [0, 1]).float()
    for own, theirs in zip(logits, expected, strict=True):
        error = (own - theirs).abs().max() / theirs.std().clamp(min=1e-6)
        # Quantised layers compute in 16 bits or fewer, whatever the others do.
        exact = runner.model.dtype == torch.float32 and getattr(runner.model, "hf_quantizer", None) is None
        if not error < (0.01 if exact else 0.3):
            raise ValueError(f"logits differ by {error:.3g} standard deviations")
