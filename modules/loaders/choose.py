"""Which loader fits a model, and the way through it: every loader is a module here with `why_not` and `load`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast, get_args

from pydantic.fields import FieldInfo

from modules.errors import UserError
from modules.generation.types import LoadedModel
from modules.library.model_spec import ModelSpec
from modules.loaders.options import LoaderName, LoadOptions
from modules.settings.declare import hints_of

log = logging.getLogger(__name__)

Report = Callable[[str], None]
"""Takes the progress of a load in short sentences."""
_SWITCHES = ("load_in_8bit", "load_in_4bit")
LOADERS: tuple[LoaderName, ...] = tuple(name for name in get_args(LoaderName) if name != "auto")


class Loader(Protocol):
    """What a module of this folder offers."""

    @staticmethod
    def why_not(spec: ModelSpec, options: LoadOptions) -> str | None:
        """Why this loader cannot take the model, in a sentence that says what to do; None where it fits."""
        ...

    @staticmethod
    def load(spec: ModelSpec, options: LoadOptions, report: Report) -> LoadedModel:
        """The loaded model. Raises UserError."""
        ...


def loader(name: LoaderName) -> Loader:
    """The module of a loader; importing it imports no heavy library."""
    return cast(Loader, import_module(f"modules.loaders.{name}"))


def choose(spec: ModelSpec, options: LoadOptions) -> LoaderName:
    """The loader that was asked for; with "auto", the one that the files call for."""
    if options.loader != "auto":
        return options.loader
    if spec.format == "remote" or options.base_url:
        return "remote"
    if spec.format == "gguf":
        return "llamacpp"
    method = spec.quantization.method if spec.quantization else ""
    if method in ("gptq", "awq"):
        return "gptq"
    if method == "bitsandbytes" or options.load_in_8bit or options.load_in_4bit:
        return "bitsandbytes"
    return "transformers"


def load(spec: ModelSpec, options: LoadOptions, report: Report) -> LoadedModel:
    """Load `spec` with the loader that `choose` names. Raises UserError where it does not fit."""
    if spec.problem:
        raise UserError(spec.problem, param="model")
    name = choose(spec, options)
    module = loader(name)
    if reason := module.why_not(spec, options):
        raise UserError(reason, param="loader")
    for sentence in (*spec.warnings, *ignored(options, name)):
        log.warning("%s", sentence)
        report(sentence)
    return module.load(spec, options, report)


def ignored(options: LoadOptions, name: LoaderName) -> list[str]:
    """One sentence for each option that was given although this loader has no use for it."""
    return [
        f"--{field.replace('_', '-')} has no effect with the {name} loader."
        for field, info in LoadOptions.model_fields.items()
        if field in options.differences() and not _is_used(info, name)
    ]


def used_options(name: LoaderName) -> frozenset[str]:
    """The options that a form shows for a loader: those that it reads, and those by which transformers becomes bitsandbytes."""
    switches = _SWITCHES if name == "transformers" else ()
    return frozenset(field for field, info in LoadOptions.model_fields.items() if field in switches or _is_used(info, name))


def _is_used(info: FieldInfo, name: LoaderName) -> bool:
    users = hints_of(info).loaders
    return not users or name in users
