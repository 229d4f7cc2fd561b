"""Which layers of a model an adapter can sit in, by their names alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from modules.errors import UserError

_ATTENTION = re.compile(r"(^|\.)[\w-]*(attn|attention)[\w-]*\.([\w-]+\.)*[\w-]+$")
_OUTSIDE = re.compile(r"(^|\.)(lm_head|embed_out|embed_tokens|wte|wpe|word_embeddings|score|classifier)$")


def choose_targets(wanted: str, linear: Iterable[str]) -> list[str]:
    """Last parts of the names of the layers that `wanted` means, out of the model's `linear` layers (full names).

    wanted: "attention", "all-linear", or names with commas. Raises UserError that lists what there is.
    """
    inner = [name for name in linear if not _OUTSIDE.search(name)]
    known = sorted({name.rsplit(".", 1)[-1] for name in inner})
    match wanted.strip():
        case "all-linear":
            chosen = known
        case "attention":
            chosen = sorted({name.rsplit(".", 1)[-1] for name in inner if _ATTENTION.search(name)})
        case _:
            chosen = [part.strip() for part in wanted.split(",") if part.strip()]
            missing = [part for part in chosen if not any(name == part or name.endswith(f".{part}") for name in linear)]
            if missing:
                near = difflib.get_close_matches(missing[0], known, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise UserError(
                    f"The model has no layer called {', '.join(missing)}.{hint} There are: {', '.join(known)}.",
                    param="target_modules",
                )
    if not chosen:
        raise UserError(f"No layer of this model fits {wanted!r}. There are: {', '.join(known)}.", param="target_modules")
    return chosen
