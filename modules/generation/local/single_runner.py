"""Single-sequence runner: models that compute one sequence at a time, with transformers' own attention and cache."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modules.errors import UserError
from modules.generation.local.adapters import Adapters
from modules.generation.local.kv_cache import Piece

log = logging.getLogger(__name__)


class SingleSequenceStore:
    """One sequence in a transformers cache, with the encoder's output where there is an encoder."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.capacity = 1 << 60
        self.reset()

    def reset(self) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        config = self._model.config
        if config.is_encoder_decoder:
            decoder = config.get_text_config(decoder=True)
            self.cache: Any = EncoderDecoderCache(DynamicCache(config=decoder), DynamicCache(config=decoder))
        else:
            self.cache = DynamicCache(config=config)
        self.encoded: Any = None

    @property
    def bytes(self) -> int:
        return 0 if self.cache is None else sum(_bytes(layer) for layer in getattr(self.cache, "layers", ()))

    @staticmethod
    def is_state(layer: Any) -> bool:
        """Whether a layer of a transformers cache keeps a state rather than keys and values."""
        from transformers.cache_utils import LinearAttentionCacheLayerMixin

        return isinstance(layer, LinearAttentionCacheLayerMixin)

    def resize(self, capacity: int, keep: int) -> None:
        """transformers' caches grow by themselves."""

    def truncate(self, tokens: int, keep: int) -> int:
        """Forget all but the first `keep` of `tokens`; returns how many are still there: none, where the state cannot be cut."""
        if keep == tokens:
            return keep
        if keep and self.encoded is None and getattr(self.cache, "is_croppable", False):
            try:
                self.cache.crop(keep - tokens)
                return keep
            except (ValueError, RuntimeError) as error:
                log.info("the cache could not be cut back: %s", error)
        self.reset()
        return 0

    def valid_after_failure(self, tokens: int) -> int:
        """None: the pass may have changed the cache of some layers and not of others."""
        self.reset()
        return 0


class SingleSequenceRunner:
    """One sequence in a pass, by the model's own attention and transformers' own cache."""

    def __init__(self, model: Any, reason: str) -> None:
        self.model = model
        self.batching_unsupported_reason: str | None = reason
        self.device = model.get_input_embeddings().weight.device
        self.adapters = Adapters(model, hooks=True)
        accepted = inspect.signature(model.forward).parameters
        names = [name for name in ("past_key_values", "cache_params") if name in accepted]
        if not names:
            raise UserError(f"The engine cannot run {type(model).__name__}: it takes no cache.")
        self._cache_name = names[0]
        # A running state can neither be cut back nor, in many models, be continued by several tokens at once.
        layers = getattr(SingleSequenceStore(model).cache, "layers", ())
        self.reuses_prefix = (
            bool(layers)
            and not model.config.is_encoder_decoder
            and not any(SingleSequenceStore.is_state(layer) for layer in layers)
        )

    def new_store(self, capacity: int) -> SingleSequenceStore:
        return SingleSequenceStore(self.model)

    def bytes_of(self, capacity: int) -> int:
        return 0

    def logits(
        self, pieces: Sequence[Piece], tokens: Sequence[int], keep: Sequence[int], embeds: Sequence[Tensor | None] = ()
    ) -> Tensor:
        (piece,) = pieces
        self.adapters.plan(pieces)
        store: Any = piece.store
        ids = torch.tensor([tokens], device=self.device)
        if self.model.config.is_encoder_decoder:
            return self._decoder_logits(store, ids, piece.start)
        inputs: dict[str, Any] = {"input_ids": ids} if not embeds or embeds[0] is None else {"inputs_embeds": embeds[0][None]}
        output = self.model(**inputs, use_cache=True, **{self._cache_name: store.cache})
        return output.logits[0, list(keep)]

    def hidden_states(self, tokens: Sequence[int]) -> Tensor:
        self.adapters.plan(())
        output = self.model.base_model(input_ids=torch.tensor([tokens], device=self.device), use_cache=False)
        return output.last_hidden_state[0]

    def _decoder_logits(self, store: Any, ids: Tensor, start: int) -> Tensor:
        """The first piece is the whole prompt, for the encoder; later ones are for the decoder."""
        if start == 0:
            store.encoded = self.model.get_encoder()(input_ids=ids)
            config = self.model.generation_config
            first = config.decoder_start_token_id
            ids = torch.tensor([[first if first is not None else config.bos_token_id or 0]], device=self.device)
        output = self.model(encoder_outputs=store.encoded, decoder_input_ids=ids, past_key_values=store.cache, use_cache=True)
        return output.logits[0, -1:]


def _bytes(layer: Any) -> int:
    tensors = [value for value in vars(layer).values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
