"""Imports that talk or take long: torchao, bitsandbytes and gptqmodel with their notices, gptqmodel where PEFT does not need it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only_errors(*names: str) -> Iterator[None]:
    """The loggers `names` say nothing less than errors meanwhile."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def root_logger_kept() -> Iterator[None]:
    """Undo what an import does to everyone's logging."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def hush_imports() -> None:
    """transformers imports torchao with the first weights, whatever they are, and often bitsandbytes: let both be quiet."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    with only_errors("torchao", "torch.utils._pytree"):
        try:
            import torchao  # noqa: F401
        except ImportError:
            return


def import_gptqmodel() -> None:
    """gptqmodel with as many threads as there are cores, and without its banner and notes. Raises ImportError."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(os.cpu_count() or 1))
    with root_logger_kept(), only_errors("torchao", "torch.utils._pytree"):
        from logbar import LogBar

        LogBar.shared().setLevel(logging.ERROR)
        import gptqmodel  # noqa: F401
    logging.getLogger("tokenicer").setLevel(logging.ERROR)


def keep_peft_from_gptqmodel() -> None:
    """PEFT imports gptqmodel (3 s) to ask of each layer whether it is one of its: none is while nobody has imported it."""
    from peft.tuners.lora import awq, gptq
    from peft.utils import other, quantization_utils

    for module in (awq, gptq, other, quantization_utils):
        module.is_gptqmodel_available = lambda: "gptqmodel" in sys.modules  # pyright: ignore[reportAttributeAccessIssue]
