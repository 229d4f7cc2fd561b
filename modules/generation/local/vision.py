"""Vision inputs of LLaVA-style models: image features stand where the prompt has image tokens."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modules.errors import UserError
from modules.generation.control_tokens import MARK, ChatEncoder
from modules.generation.types import Image

KINDS = {"llava", "llava_next", "vipllava", "idefics3", "smolvlm", "mistral3"}
"""Models whose picture tokens have ordinary positions and see only what came before them, as text does."""


class VisionInputs:
    """Images in the prompts of one vision model. `read` is for any thread, `embedded` for the model's own."""

    def __init__(self, model: Any, processor: Any) -> None:
        """Raises UserError for kinds of models whose pictures need more than features in their place."""
        if model.config.model_type not in KINDS:
            raise UserError(f"Pictures are not supported for models of the kind {model.config.model_type}.")
        self._model = model
        self._processor = processor
        self._token: int = model.config.image_token_id

    def read(self, text: str, images: Sequence[Image], encoder: ChatEncoder) -> tuple[list[int], list[int], dict[str, Any]]:
        """(tokens with all places of the pictures, identity, what the vision part gets) of a rendered prompt.

        In the identity the places of a picture are a negative number that is made of its bytes.
        """
        processor = self._processor if MARK not in text else _encoding_with(self._processor, encoder)
        read = processor(
            text=[text], images=[_opened(image) for image in images], return_tensors="pt", add_special_tokens=False
        )
        tokens: list[int] = read["input_ids"][0].tolist()
        places = sum(token == self._token for token in tokens)
        if not places or places % len(images):
            raise UserError("The chat template does not show the pictures of this conversation to the model.", param="messages")
        seen = {key: value for key, value in read.items() if key not in ("input_ids", "attention_mask", "token_type_ids")}
        return tokens, self._identity(tokens, images), seen

    def _identity(self, tokens: list[int], images: Sequence[Image]) -> list[int]:
        # All pictures are in the number of each: a split of the places among them is not needed to tell prompts apart.
        running, marks = hashlib.sha256(), []
        for image in images:
            running.update(hashlib.sha256(image.data).digest())
            marks.append(-int.from_bytes(running.digest()[:7]) - 1)
        share = sum(token == self._token for token in tokens) // len(images)
        identity, place = [], 0
        for token in tokens:
            identity.append(marks[place // share] if token == self._token else token)
            place += token == self._token
        return identity

    def embedded(self, tokens: Sequence[int], seen: dict[str, Any]) -> Tensor:
        """[tokens, hidden]: the embeddings of the tokens, with the pictures' features in their places. Raises UserError."""
        table = self._model.get_input_embeddings()
        ids = torch.tensor(tokens, device=table.weight.device)
        inputs = {key: self._placed(value, table.weight) for key, value in seen.items()}
        features = self._model.get_image_features(**inputs)
        features = getattr(features, "pooler_output", features)
        flat = (
            torch.cat([part.flatten(0, -2) for part in features])
            if isinstance(features, list | tuple)
            else features.flatten(0, -2)
        )
        embedded = table(ids)
        places = ids == self._token
        if int(places.sum()) != flat.shape[0]:
            raise UserError("The pictures do not fit their places in the prompt.", param="messages")
        embedded[places] = flat.to(embedded)
        return embedded

    def _placed(self, value: Any, like: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(like.device, like.dtype if value.is_floating_point() else None)


def _encoding_with(processor: Any, encoder: ChatEncoder) -> Any:
    """The processor with a tokenizer that tells a control token, such as a picture's, from one that a person spelled."""
    other = copy.copy(processor)
    other.tokenizer = _Tokenizer(processor.tokenizer, encoder)
    return other


class _Tokenizer:
    """What a processor uses of its tokenizer: the call, by `encoder`, and its attributes."""

    def __init__(self, own: Any, encoder: ChatEncoder) -> None:
        self._own = own
        self._encoder = encoder

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [self._encoder.encode(text) for text in texts]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def _opened(image: Image) -> Any:
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    try:
        return pillow.open(io.BytesIO(image.data)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, pillow.DecompressionBombError):
        raise UserError("A picture of this conversation cannot be read. Send PNG, JPEG or WebP.", param="messages") from None
