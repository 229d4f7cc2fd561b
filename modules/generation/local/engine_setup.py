"""The parts of an engine for one model runner: prefix cache, scheduler, step executor, loop."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from typing import Any

import torch

from modules.errors import UserError
from modules.generation.local.engine_loop import EngineLoop
from modules.generation.local.model_runner import BatchedRunner, batched_runner
from modules.generation.local.prefill_budget import PrefillBudget
from modules.generation.local.prefix_cache import PrefixCache
from modules.generation.local.scheduler import Scheduler
from modules.generation.local.single_runner import SingleSequenceRunner
from modules.generation.local.speculative import DraftModelProposer, PromptLookupProposer, Proposer
from modules.generation.local.step_executor import StepExecutor

log = logging.getLogger(__name__)
DRAFT_TOKENS = 4
"""How many tokens a draft model proposes."""
FIRST_CHUNK_ON_CPU = 64


@dataclass(frozen=True)
class Limits:
    """context_length 0: what the model was made for. cache_bytes 0: by the memory that is free. threads 0: all cores."""

    context_length: int = 0
    max_parallel: int = 8
    cache_bytes: int = 0
    prefill_chunk: int = 512
    prompt_lookup: int = 0
    threads: int = 0


def start_engine(runner: BatchedRunner | SingleSequenceRunner, limits: Limits, draft: Any = None) -> EngineLoop:
    """draft: a small transformers model of the same vocabulary. Raises UserError where it cannot be used."""
    cache_bytes = limits.cache_bytes or _free_memory(runner.device)
    if isinstance(runner, SingleSequenceRunner):
        scheduler = Scheduler(PrefixCache(runner, cache_bytes, max_sequences=4), max_running=1, budget=None)
        return EngineLoop(scheduler, StepExecutor(runner), threads=limits.threads)
    first_chunk = FIRST_CHUNK_ON_CPU if runner.device.type == "cpu" else limits.prefill_chunk
    scheduler = Scheduler(
        PrefixCache(runner, cache_bytes, max_sequences=max(64, 2 * limits.max_parallel), mover=runner),
        max_running=limits.max_parallel,
        budget=PrefillBudget(limits.prefill_chunk, first_chunk),
        proposer=_proposer(limits, draft),
    )
    return EngineLoop(scheduler, StepExecutor(runner, runner), threads=limits.threads)


def _proposer(limits: Limits, draft: Any) -> Proposer | None:
    if draft is not None:
        found = batched_runner(draft.eval())
        if isinstance(found, str):
            raise UserError(f"The draft model cannot guess ahead: {found}.", param="draft_model")
        return DraftModelProposer(found, limits.prompt_lookup or DRAFT_TOKENS)
    return PromptLookupProposer(limits.prompt_lookup) if limits.prompt_lookup else None


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


def _free_memory(device: torch.device) -> int:
    """What the cache may take by itself: most of a GPU's free memory, half of the computer's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.85)
    import psutil

    return psutil.virtual_memory().available // 2
