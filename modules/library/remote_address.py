"""A model on another engine: NAME.yaml in the models folder with its address."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from modules.errors import UserError
from modules.library.spec import ModelSpec


@dataclass(frozen=True)
class RemoteAddress:
    """Where an OpenAI-protocol engine answers. model: its name there, "" for the first one that it lists."""

    base_url: str
    model: str = ""
    api_key: str = field(default="", repr=False)
    context_length: int | None = None


def read_address(path: Path) -> RemoteAddress:
    """Raises UserError where the file does not name an engine, or has a key that means nothing here."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{path.name} is not valid YAML.") from None
    address = values.get("base_url") if isinstance(values, dict) else None
    if not isinstance(address, str) or not re.match(r"https?://\S+$", address):
        raise UserError(f"{path.name} has no `base_url: http://…/v1`, the address of an OpenAI-protocol engine.")
    known = {"base_url", "model", "api_key", "context_length"}
    if unknown := next((key for key in values if key not in known), None):
        raise UserError(f"{path.name}: {unknown!r} means nothing here. The keys are {', '.join(sorted(known))}.")
    context = values.get("context_length")
    if context is not None and (not isinstance(context, int) or context < 1):
        raise UserError(f"{path.name}: context_length must be a number of tokens.")
    return RemoteAddress(address, str(values.get("model") or ""), str(values.get("api_key") or ""), context)


def describe_remote(path: Path) -> ModelSpec:
    """Never raises for what is in the file: what is wrong with it is in `problem`."""
    try:
        address = read_address(path)
    except (UserError, OSError) as error:
        return ModelSpec(path.stem, path, "remote", 0, problem=str(error))
    return ModelSpec(path.stem, path, "remote", 0, endpoint=address.base_url, context_length=address.context_length)
