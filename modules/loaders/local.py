"""What the loaders of weight folders share: devices, number formats, the tokenizer, and the way into the engine."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.errors import UserError
from modules.library.model_spec import ModelSpec
from modules.library.models import describe
from modules.loaders.options import LoadOptions
from modules.loaders.pretrained import as_listed, explained, load_tokenizer, load_whole
from modules.loaders.quiet_imports import hush_imports

if TYPE_CHECKING:
    import torch

    from modules.generation.local.model import LocalModel
    from modules.loaders.choose import Report

log = logging.getLogger(__name__)
GIB = 1 << 30


def folder_problem(spec: ModelSpec, options: LoadOptions) -> str | None:
    """Why no loader of weight folders can take `spec`; None where one can."""
    if spec.format != "folder":
        return f"{spec.name} is not a folder with weights. Choose the loader auto."
    if spec.problem:
        return spec.problem
    if spec.custom_code and not options.trust_remote_code:
        log.info("%s brings code of its own, which is not run without --trust-remote-code", spec.name)
    return None


def load_folder(
    spec: ModelSpec,
    options: LoadOptions,
    report: Report,
    *,
    folder: Path | None = None,
    prepare: Callable[[Any], None] = lambda model: None,
    **more: Any,
) -> LocalModel:
    """Load the weights with transformers and start the engine on them.

    folder: where transformers reads the files, where that is not the model's own folder.
    prepare: what is done to the model before its first use.
    more: what else `from_pretrained` gets (quantization_config, …); `dtype` there replaces the choice made here.
    Raises UserError for what the options or files cause, Unavailable where memory is short.
    """
    with as_listed(spec) if folder is None else nullcontext(folder) as place, passing_thread("load") as thread:
        return thread.submit(_load_folder, spec, place, options, report, prepare, more).result()


def passing_thread(name: str) -> ThreadPoolExecutor:
    """One thread, which ends with the `with` block.

    What computes with torch beside the engine is done in one: every thread that torch computes in keeps helpers of its own for as
    long as it lives, and libgomp lets all of them sleep after every operation, also the engine's, once they outnumber the cores.
    """
    return ThreadPoolExecutor(1, name)


def _load_folder(
    spec: ModelSpec,
    folder: Path,
    options: LoadOptions,
    report: Report,
    prepare: Callable[[Any], None],
    more: dict[str, Any],
) -> LocalModel:
    from modules.generation.local.model import LocalModel

    report(f"Loading {spec.name}")
    hush_imports()
    with explained(spec), quiet(), _reported(spec, report):
        config = _config(spec, folder, options)
        arguments = {
            "config": config,
            "dtype": dtype_for(spec, options),
            "trust_remote_code": options.trust_remote_code,
            **placement(options),
            **more,
        }
        if options.attn_implementation != "auto":
            arguments["attn_implementation"] = options.attn_implementation
        tokenizer = load_tokenizer(spec.name, folder, trust_remote_code=options.trust_remote_code)
        model = load_whole(_model_class(config), spec.name, folder, report=report, **arguments)
        prepare(model)
        return LocalModel(
            spec.name,
            model,
            tokenizer,
            limits(options),
            chat_template=spec.chat_template,
            draft=_draft(spec, options, tokenizer),
            processor=_processor(spec, folder, options, config, report),
            report=report,
        )


def limits(options: LoadOptions) -> Any:
    """The options that the engine itself needs, as its Limits."""
    from modules.generation.local.model import Limits

    return Limits(
        context_length=options.ctx_size,
        max_parallel=options.max_parallel,
        cache_bytes=int(options.cache_memory * GIB),
        prefill_chunk=max(options.prefill_chunk, 16) if options.prefill_chunk else 512,
        prompt_lookup=options.prompt_lookup,
        threads=options.threads,
    )


def dtype_for(spec: ModelSpec, options: LoadOptions) -> torch.dtype:
    """The number format of the weights: as asked for, else the files' own where this machine computes it quickly."""
    import torch

    if options.bf16 or options.dtype != "auto":
        return getattr(torch, "bfloat16" if options.bf16 else options.dtype)
    own = getattr(torch, spec.dtype or "float32", torch.float32)
    if own not in (torch.float32, torch.float16, torch.bfloat16):
        own = torch.bfloat16
    if device_for(options) != "cpu":
        return own
    if own == torch.bfloat16 and processor_has_bfloat16():
        return own
    return torch.float32 if _fits_as_float32(spec) else torch.bfloat16


def processor_has_bfloat16() -> bool:
    """Without the instructions for it, several rows in 16 bits take several times as long as in 32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _fits_as_float32(spec: ModelSpec) -> bool:
    import psutil

    return (spec.parameters or 0) * 4 < 0.8 * psutil.virtual_memory().available


def placement(options: LoadOptions) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where the weights go."""
    device = device_for(options)
    spread = options.auto_devices or options.gpu_memory or options.cpu_memory or options.disk
    if device == "cpu" and not options.disk:
        return {"device_map": {"": "cpu"}}
    if not spread:
        return {"device_map": {"": 0 if device == "cuda" else device}}
    arguments: dict[str, Any] = {"device_map": "auto"}
    memory: dict[int | str, str] = {}
    for index, amount in enumerate(options.gpu_memory):
        memory[index] = amount_of_memory(amount, "gpu_memory")
    if options.cpu_memory:
        memory["cpu"] = amount_of_memory(options.cpu_memory, "cpu_memory")
    if memory:
        arguments["max_memory"] = _all_devices(memory)
    if options.disk:
        arguments |= {"offload_folder": options.disk_cache_dir, "offload_state_dict": True}
    return arguments


def _all_devices(memory: dict[int | str, str]) -> dict[int | str, Any]:
    """accelerate takes a device that is not named for one that must not be used: name the others with what they have."""
    from accelerate.utils import get_max_memory

    return {**get_max_memory(), **memory}


def amount_of_memory(text: str, field: str) -> str:
    """ "10" is GiB, "3500MiB" is itself.

    >>> amount_of_memory("10", "gpu_memory"), amount_of_memory("3500 mib", "gpu_memory")
    ('10GiB', '3500MiB')
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b)?", text.strip().lower())
    if match is None:
        raise UserError(f"{text!r} is not an amount of memory. Write 10 for GiB, or 3500MiB.", param=field)
    number, unit = match[1], match[2] or "gib"
    if "." in number:
        factor = {"k": 1, "m": 2, "g": 3, "t": 4}[unit[0]]
        number, unit = str(int(float(number) * (1024 if "i" in unit else 1000) ** factor) >> 20), "mib"
    return number + unit[:-1].replace("i", "i").title().replace("I", "i") + "B"


def device_for(options: LoadOptions) -> str:
    import torch

    if options.cpu:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _config(spec: ModelSpec, folder: Path, options: LoadOptions) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=options.trust_remote_code)
    if options.compress_pos_emb != 1 or options.alpha_value != 1:
        _stretch_positions(config.get_text_config(decoder=True), options, spec)
    return config


def _stretch_positions(config: Any, options: LoadOptions, spec: ModelSpec) -> None:
    """Linear and NTK scaling of RoPE, and the longer context that comes with them."""
    rope = getattr(config, "rope_parameters", None)
    if not rope or "rope_theta" not in rope:
        raise UserError(f"{spec.name} has no rotary positions to stretch. Leave compress_pos_emb and alpha_value at 1.")
    rope = dict(rope)
    if options.alpha_value != 1:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rope["rope_theta"] = rope["rope_theta"] * options.alpha_value ** (size / (size - 2))
    if options.compress_pos_emb != 1:
        rope |= {"rope_type": "linear", "factor": options.compress_pos_emb}
    config.rope_parameters = rope
    longer = max(options.compress_pos_emb, options.alpha_value)
    config.max_position_embeddings = int(config.max_position_embeddings * longer)


def _model_class(config: Any) -> Any:
    import transformers

    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    if getattr(config, "vision_config", None) is not None:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _processor(spec: ModelSpec, folder: Path, options: LoadOptions, config: Any, report: Report) -> Any:
    """What reads pictures for a model that sees; None where it only reads text."""
    from transformers import AutoProcessor

    from modules.generation.local.vision import KINDS

    if getattr(config, "vision_config", None) is None:
        return None
    if config.model_type not in KINDS:
        report(f"{spec.name} can see, but its kind ({config.model_type}) is used for text only here.")
        return None
    return AutoProcessor.from_pretrained(str(folder), trust_remote_code=options.trust_remote_code)


def _draft(spec: ModelSpec, options: LoadOptions, tokenizer: Any) -> Any:
    """The small model that guesses ahead, from the folder beside `spec`; None where none is chosen."""
    if not options.draft_model:
        return None
    from transformers import AutoModelForCausalLM

    path = spec.path.parent / options.draft_model
    if not (path / "config.json").exists():
        raise UserError(f"There is no draft model {options.draft_model} beside {spec.name}.", param="draft_model")
    draft = describe(path)
    if draft.problem:
        raise UserError(f"The draft model cannot be loaded: {draft.problem}", param="draft_model")
    with explained(draft), as_listed(draft) as folder:
        if load_tokenizer(draft.name, folder).get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"{options.draft_model} cannot guess for {spec.name}: their vocabularies differ.", param="draft_model"
            )
        return load_whole(AutoModelForCausalLM, draft.name, folder, dtype=dtype_for(spec, options), **placement(options))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars on the terminal: progress goes through `report`."""
    from transformers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()


class _Bar:
    """Stands in for a progress bar, and reports how far the loading is."""

    def __init__(self, items: Any, tell: Callable[[int, int], None]) -> None:
        self._items = items
        self._tell = tell

    def __iter__(self) -> Iterator[Any]:
        total = len(self._items)
        for index, item in enumerate(self._items):
            self._tell(index, total)
            yield item

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def _reported(spec: ModelSpec, report: Report) -> Iterator[None]:
    from transformers.utils import logging as theirs

    said = -1

    def tell(done: int, total: int) -> None:
        nonlocal said
        percent = 100 * done // max(total, 1)
        if percent >= said + 5:
            said = percent
            report(f"Loading {spec.name}: {percent} %")

    def hook(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        items = args[0] if args else kwargs.get("iterable")
        return _Bar(items, tell) if hasattr(items, "__len__") else factory(*args, **kwargs)

    before = theirs.set_tqdm_hook(hook)
    try:
        yield
    finally:
        theirs.set_tqdm_hook(before)
