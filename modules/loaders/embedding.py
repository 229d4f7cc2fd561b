"""A model that makes embeddings, beside the chat model: an encoder's folder, read as sentence-transformers wrote it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from modules.errors import UserError
from modules.library.json_files import read_json
from modules.library.model_spec import ModelSpec
from modules.loaders.local import dtype_for, folder_problem, passing_thread, placement, quiet
from modules.loaders.options import LoadOptions
from modules.loaders.pretrained import as_listed, explained, load_tokenizer, load_whole

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TOKENS = 16_384
"""Of one forward pass, padding included."""
_UNUSED = r"(^|\.)pooler\."
"""BERT's own head for the first token, which is not what we pool by; many folders leave it out."""
Pooling = Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"]


@dataclass(frozen=True)
class Recipe:
    """How token states become one vector. length: tokens of a text at most, None where only the model limits it.

    prompt: text that is put before each text.
    """

    pooling: Pooling = "mean"
    length: int | None = None
    lower_case: bool = False
    prompt: str = ""


def read_recipe(folder: Path) -> Recipe:
    """From the files that sentence-transformers keeps in a model's folder; mean pooling where there are none. Raises UserError."""
    if not (folder / "modules.json").is_file():
        return Recipe()
    pooling, inner = "mean", folder
    for module in _list_of_modules(folder):
        kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], folder / Path(str(module.get("path", ""))).name
        match kind:
            case "Transformer":
                inner = path
            case "Pooling":
                pooling = _pooling_of(read_json(path / "config.json"))
            case "Normalize":
                pass  # all vectors are made so here
            case _:
                raise UserError(f"{folder.name} has a part called {kind}, which is not known here. Choose another model.")
    settings = read_json(inner / "sentence_bert_config.json") if (inner / "sentence_bert_config.json").is_file() else {}
    own = folder / "config_sentence_transformers.json"
    prompts = read_json(own) if own.is_file() else {}
    return Recipe(
        pooling,
        settings.get("max_seq_length"),
        bool(settings.get("do_lower_case")),
        str((prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")) or ""),
    )


def _list_of_modules(folder: Path) -> list[dict[str, Any]]:
    import json

    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise UserError(f"modules.json in {folder.name} is not a list. Download it again.")
    return listed


def _pooling_of(config: dict[str, Any]) -> Pooling:
    """The one way that the file switches on."""
    if "pooling_mode" in config:
        chosen = [config["pooling_mode"]]
    else:
        on = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True and key.startswith("pooling")]
        chosen = [way.removesuffix("_tokens") for way in on]
        chosen = ["mean_sqrt_len_tokens" if way == "mean_sqrt_len" else way.removesuffix("_token") for way in chosen]
    known: list[Pooling] = [way for way in get_args(Pooling) if way in chosen]
    if len(chosen) != 1 or not known:
        raise UserError(f"Vectors that are pooled as {' and '.join(map(str, chosen)) or 'nothing'} are not made here.")
    return known[0]


class EmbeddingModel:
    """Texts as vectors. Safe to use from any thread; one batch at a time."""

    def __init__(self, spec: ModelSpec, model: Any, tokenizer: Any, recipe: Recipe) -> None:
        self.name = spec.name
        self._model = model
        self._tokenizer = tokenizer
        self._recipe = recipe
        limits = (recipe.length, spec.context_length, getattr(tokenizer, "model_max_length", None))
        self.context_length = min(limit for limit in limits if limit)
        self._lock = threading.Lock()

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """The ids that the model reads for a text, with its prompt and (`special`) its marks."""
        text = self._recipe.prompt + text
        return self._tokenizer(text.lower() if self._recipe.lower_case else text, add_special_tokens=special)["input_ids"]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Raises UserError for ids that are none."""
        if bad := [token for token in tokens if token >= len(self._tokenizer)]:
            raise UserError(f"{bad[0]} is not a token of {self.name}.", param="input")
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector of unit length for each text."""
        tokens = [self.tokenize(text, special=True) for text in texts]
        with self._lock, passing_thread("embed") as thread:
            return thread.submit(self._all_embedded, tokens).result()

    def _all_embedded(self, texts: list[list[int]]) -> list[list[float]]:
        vectors: list[list[float]] = [[] for _ in texts]
        for batch in _batches([len(text) for text in texts]):
            for at, vector in zip(batch, self._embedded([texts[at] for at in batch]), strict=True):
                vectors[at] = vector
        return vectors

    def _embedded(self, texts: list[list[int]]) -> list[list[float]]:
        import torch

        longest = max(map(len, texts))
        filler = self._tokenizer.pad_token_id or 0
        device = self._model.device
        ids = torch.tensor([[*text, *[filler] * (longest - len(text))] for text in texts], device=device)
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts], device=device)
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            return torch.nn.functional.normalize(pooled(states, mask, self._recipe.pooling), dim=-1).tolist()


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """[texts, tokens, hidden] → [texts, hidden], where `mask` [texts, tokens] is 1 for tokens of the text."""
    import torch

    weights = mask[:, :, None].to(states)
    match pooling:
        case "cls":
            return states[:, 0]
        case "max":
            return states.masked_fill(weights == 0, -torch.inf).amax(1)
        case "lasttoken":
            return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        case "weightedmean":
            weights = weights * torch.arange(1, states.shape[1] + 1, device=states.device)[None, :, None]
            return (states * weights).sum(1) / weights.sum(1)
        case "mean_sqrt_len_tokens":
            return (states * weights).sum(1) / weights.sum(1).sqrt()
        case "mean":
            return (states * weights).sum(1) / weights.sum(1)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of texts that are computed together: alike in length, so that little is padded."""
    batches: list[list[int]] = [[]]
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if (len(batches[-1]) + 1) * lengths[at] > BATCH_TOKENS and batches[-1]:
            batches.append([])
        batches[-1].append(at)
    return batches


def load(spec: ModelSpec, options: LoadOptions) -> EmbeddingModel:
    """The model of a folder, on the device that `options` name. Raises UserError, and Unavailable where memory is short."""
    if problem := folder_problem(spec, options):
        raise UserError(problem, param="model")
    recipe = read_recipe(spec.path)
    with as_listed(spec) as folder, passing_thread("load") as thread:
        return thread.submit(_load, spec, folder, options, recipe).result()


def _load(spec: ModelSpec, folder: Path, options: LoadOptions, recipe: Recipe) -> EmbeddingModel:
    from transformers import AutoModel

    where = LoadOptions(cpu=options.cpu, trust_remote_code=options.trust_remote_code)
    with explained(spec), quiet():
        trust = where.trust_remote_code
        tokenizer = load_tokenizer(spec.name, folder, trust_remote_code=trust)
        model = load_whole(
            AutoModel,
            spec.name,
            folder,
            unused=_UNUSED,
            dtype=dtype_for(spec, where),
            trust_remote_code=trust,
            **placement(where),
        )
    return EmbeddingModel(spec, model.eval(), tokenizer, recipe)
