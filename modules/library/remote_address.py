"""A model on another engine: NAME.yaml in the models folder with its address."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from modules.errors import Conflict, UserError
from modules.library.entries import read_text
from modules.library.model_spec import ModelSpec
from modules.library.paths import path_inside, write_text
from modules.settings.yaml_text import parse_yaml

SETTINGS_FILES = {"config.yaml", "config-user.yaml", "config.yml", "config-user.yml"}
"""Files of the models folder that are no engines: they keep how models are loaded."""
_ADDRESS = re.compile(r"https?://\S+$")


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
        values = parse_yaml(read_text(path))
    except yaml.YAMLError:
        raise UserError(f"{path.name} is not valid YAML.") from None
    address = values.get("base_url") if isinstance(values, dict) else None
    if not isinstance(address, str) or not _ADDRESS.match(address):
        raise UserError(f"{path.name} has no `base_url: http://…/v1`, the address of an OpenAI-protocol engine.")
    known = {"base_url", "model", "api_key", "context_length"}
    if unknown := next((key for key in values if key not in known), None):
        raise UserError(f"{path.name}: {unknown!r} means nothing here. The keys are {', '.join(sorted(known))}.")
    context = values.get("context_length")
    if context is not None and (not isinstance(context, int) or context < 1):
        raise UserError(f"{path.name}: context_length must be a number of tokens.")
    return RemoteAddress(address, str(values.get("model") or ""), str(values.get("api_key") or ""), context)


def write_address(folder: Path, name: str, address: RemoteAddress) -> Path:
    """Keep `address` as NAME.yaml in `folder`, for its owner's eyes alone. Raises UserError, Conflict."""
    path = path_inside(folder, name, ".yaml", "name of an engine")
    if path.exists() or path.name in SETTINGS_FILES:
        raise Conflict(f"There is a {path.name} already: choose another name, or remove that one first.", param="name")
    if not _ADDRESS.match(address.base_url):
        raise UserError("The address must begin with http:// or https://, such as http://10.0.0.5:8000/v1.", param="base_url")
    values = {key: value for key, value in asdict(address).items() if value}
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True), mode=0o600)
    return path


def describe_remote(path: Path) -> ModelSpec:
    """Never raises for what is in the file: what is wrong with it is in `problem`."""
    try:
        address = read_address(path)
    except (UserError, OSError) as error:
        return ModelSpec(path.stem, path, "remote", 0, problem=str(error))
    return ModelSpec(path.stem, path, "remote", 0, endpoint=address.base_url, context_length=address.context_length)
