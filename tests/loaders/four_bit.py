"""bitsandbytes' 4-bit layers as a reference."""

from __future__ import annotations

from typing import Any


def compute_as_asked(model: Any) -> None:
    """Keep its 4-bit layers, if any, from bfloat16: on some processors bitsandbytes takes it whatever was asked for."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
