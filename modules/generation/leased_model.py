"""A loaded model while a lease pins it. `ModelManager.lease` makes leases and says what they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from modules.generation.stream import EventStream
from modules.generation.types import Capabilities, GenerationRequest, LoadedModel, ModelStatus, NextTokens, RenderedPrompt


class LeasedModel:
    """A LoadedModel whose streams the manager tracks; closing it gives the lease back and leaves the model loaded.

    stream, give_back: the manager's side of both.
    """

    def __init__(
        self,
        model: LoadedModel,
        stream: Callable[[LeasedModel, LoadedModel, GenerationRequest], EventStream],
        give_back: Callable[[LeasedModel], None],
    ) -> None:
        self._model = model
        self._stream = stream
        self._give_back = give_back
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def stream(self, request: GenerationRequest) -> EventStream:
        """Answer a request that was built for this model. Closing the stream stops it; it outlives the lease.

        Raises UserError, Unavailable where the lease was revoked.
        """
        if self._over:
            raise RuntimeError("the lease is over")
        return self._stream(self, self._model, request)

    def close(self) -> None:
        """Give the lease back. Idempotent."""
        self._over = True
        self._give_back(self)

    # --- the model as it is

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def context_length(self) -> int:
        return self._model.context_length

    @property
    def capabilities(self) -> Capabilities:
        return self._model.capabilities

    @property
    def chat_template(self) -> str | None:
        return self._model.chat_template

    @property
    def adapters(self) -> tuple[str, ...]:
        return self._model.adapters

    def render(self, request: GenerationRequest) -> RenderedPrompt:
        return self._model.render(request)

    def next_tokens(self, request: GenerationRequest, count: int) -> NextTokens:
        return self._model.next_tokens(request, count)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return self._model.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._model.detokenize(tokens)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return self._model.embed(texts)

    def load_adapter(self, name: str, path: str) -> None:
        self._model.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        self._model.unload_adapter(name)

    def status(self) -> ModelStatus:
        return self._model.status()
