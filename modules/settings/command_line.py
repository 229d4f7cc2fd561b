"""Settings classes become flags: one argument group for each class, and every value checked by the class itself."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from modules.errors import UserError
from modules.settings.declare import Settings, bounds_of, former_names, hints_of

ENVIRONMENT_PREFIX = "TEXTLOOM_"


@dataclass(frozen=True)
class RetiredFlag:
    """A flag of older documents that no longer does anything: how many values it takes, and what to know instead."""

    note: str
    values: int | Literal["many"] = 0


@dataclass(frozen=True)
class Parsed:
    """The settings of each class, and one sentence for every flag that was accepted without effect."""

    settings: Mapping[type[Settings], Settings]
    notes: tuple[str, ...] = ()


@dataclass
class _Flags:
    fields: dict[str, tuple[type[Settings], str, FieldInfo]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    former: dict[str, str] = field(default_factory=dict)


def parse(
    arguments: Sequence[str],
    classes: Sequence[type[Settings]],
    *,
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    retired: Mapping[str, RetiredFlag] | None = None,
    program: str = "server.py",
    description: str = "",
) -> Parsed:
    """Read flags into `classes`.

    Later wins: defaults (by field name, from a settings file), environment (TEXTLOOM_NAME), arguments.
    Dashes and underscores are the same; nothing is abbreviated. Raises UserError that names the flag; --help exits.
    """
    flags = _collect(classes)
    parser = _build_parser(flags, classes, program, description)
    words, notes = _without_retired(_normalised(arguments, flags), retired or {}, flags)
    notes += _renamed(arguments, defaults or {}, environment or {}, flags)
    given = vars(parser.parse_args(words))
    values: dict[str, Any] = {
        **_checked_defaults(defaults or {}, flags),
        **_from_environment(environment or {}, flags),
        **given,
    }
    result = {}
    for cls in classes:
        own = {name: _converted(value, cls.model_fields[name]) for name, value in values.items() if name in cls.model_fields}
        try:
            result[cls] = cls.read(own)
        except UserError as error:
            name = (error.param or "").split(".")[0]
            raise UserError(error.message.replace(name, _flag(name), 1) if name else error.message, param=error.param) from None
    return Parsed(result, tuple(notes))


def read_flags_file(path: Path) -> list[str]:
    """The flags of a CMD_FLAGS.txt: as on the command line, over several lines, with # comments. [] where it does not exist."""
    if not path.is_file():
        return []
    return shlex.split(path.read_text(encoding="utf-8"), comments=True)


def read_settings_file(path: Path, *, required: bool) -> dict[str, Any]:
    """Defaults by field name from a YAML file. Raises UserError where it is not a mapping, or required and missing."""
    import yaml

    from modules.settings.yaml_text import parse_yaml

    if not path.exists():
        if required:
            raise UserError(f"--settings: there is no file {path}.")
        return {}
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of the form name: value.")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _collect(classes: Sequence[type[Settings]]) -> _Flags:
    flags = _Flags()
    for cls in classes:
        for name, info in cls.model_fields.items():
            if name in flags.fields:
                raise ValueError(f"{name} is declared by {cls.__name__} and by {flags.fields[name][0].__name__}")
            flags.fields[name] = (cls, name, info)
            for alias in hints_of(info).aliases:
                flags.aliases[alias.replace("-", "_")] = name
        flags.former |= former_names(cls)
    flags.aliases |= flags.former
    return flags


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises a UserError with the nearest known flag instead of ending the process."""

    known: Iterable[str] = ()

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if not unknown:
            raise UserError(message[0].upper() + message[1:] + ". See --help.")
        word = unknown[1].split("=")[0]
        near = difflib.get_close_matches(word, list(self.known), n=1)
        hint = f" Did you mean {near[0]}?" if near else " See --help."
        what = "There is no flag" if word.startswith("-") else "I do not know what to do with"
        raise UserError(f"{what} {word}.{hint}")


def _build_parser(flags: _Flags, classes: Sequence[type[Settings]], program: str, description: str) -> _Parser:
    parser = _Parser(prog=program, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.known = [_flag(name) for name in (*flags.fields, *flags.aliases)]
    groups: dict[str, Any] = {}
    for cls in classes:
        for name, info in cls.model_fields.items():
            title = hints_of(info).group or cls.__name__
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            _add_argument(parser, groups[title], name, info)
    return parser


def _add_argument(parser: _Parser, group: Any, name: str, info: FieldInfo) -> None:
    help_text = (info.description or "").replace("%", "%%")
    if info.annotation is bool:
        group.add_argument(_flag(name), dest=name, action="store_true", help=help_text)
        if not name.startswith("no_"):
            parser.add_argument(_flag("no_" + name), dest=name, action="store_false", help=argparse.SUPPRESS)
        return
    default = info.get_default(call_default_factory=True)
    shown = "" if default in ("", (), {}) else f" [{default}]"
    many = get_origin(info.annotation) is tuple
    group.add_argument(
        _flag(name),
        dest=name,
        metavar=_metavar(info),
        help=help_text + shown.replace("%", "%%"),
        **({"nargs": "+"} if many else {}),
    )


def _metavar(info: FieldInfo) -> str:
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    names = {int: "N", float: "X", str: "TEXT"}
    low, high = bounds_of(info)
    if info.annotation in (int, float) and low is not None and high is not None and high <= 100_000:
        return f"{low:g}..{high:g}"
    return names.get(info.annotation, "VALUE")  # type: ignore[arg-type]


def _normalised(arguments: Sequence[str], flags: _Flags) -> list[str]:
    """Underscores of a flag's name become dashes, and older names the current ones."""
    words = []
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            word = _flag(flags.aliases.get(name, name)) + equals + value
        words.append(word)
    return words


def _renamed(arguments: Iterable[str], defaults: Iterable[str], environment: Iterable[str], flags: _Flags) -> list[str]:
    """One sentence for each setting that was given by a former name."""
    words = [word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")]
    variables = [name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in environment if name.startswith(ENVIRONMENT_PREFIX)]
    given = dict.fromkeys([*words, *defaults, *variables])
    return [f"{name} is called {flags.former[name]} now." for name in given if name in flags.former]


def _without_retired(words: list[str], retired: Mapping[str, RetiredFlag], flags: _Flags) -> tuple[list[str], list[str]]:
    kept: list[str] = []
    notes: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        name, equals, _ = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        entry = retired.get(name.replace("-", "_")) if name.replace("-", "_") not in flags.fields else None
        if entry is None:
            kept.append(word)
            continue
        notes.append(f"--{name} {entry.note}")
        limit = len(words) if entry.values == "many" else entry.values
        while not equals and limit > 0 and at < len(words) and not words[at].startswith("--"):
            at += 1
            limit -= 1
    return kept, notes


def _checked_defaults(defaults: Mapping[str, Any], flags: _Flags) -> dict[str, Any]:
    known = {}
    for name, value in defaults.items():
        name = flags.aliases.get(name, name)
        if name not in flags.fields:
            near = difflib.get_close_matches(name, list(flags.fields), n=1)
            raise UserError(
                f"The settings file names {name}, which does not exist." + (f" Did you mean {near[0]}?" if near else "")
            )
        known[name] = value
    return known


def _from_environment(environment: Mapping[str, str], flags: _Flags) -> dict[str, Any]:
    found = {}
    for variable, value in environment.items():
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if variable.startswith(ENVIRONMENT_PREFIX) and (name := flags.aliases.get(name, name)) in flags.fields:
            many = get_origin(flags.fields[name][2].annotation) is tuple
            found[name] = shlex.split(value) if many else value
    return found


def _converted(value: Any, info: FieldInfo) -> Any:
    """Mappings come as JSON on a command line; literal numbers as digits."""
    if isinstance(value, str) and get_origin(info.annotation) is dict:
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    if isinstance(value, str) and get_origin(info.annotation) is Literal:
        return next((choice for choice in get_args(info.annotation) if str(choice).lower() == value.lower()), value)
    return value
