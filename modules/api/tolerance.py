"""Fields of a request that nobody here knows: they have no effect and are told, and a slip of the pen is refused with the right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator

from modules.errors import UserError
from modules.settings.declare import Settings

_LEAST = 5
"""Letters that a name has at least to be taken for a slip: shorter ones are too alike."""
MAX_UNKNOWN = 256
"""Unknown names that a request may have: each is compared with ours, and told."""
_REPLACED = {"functions": "Use 'tools' instead."}
"""What would change the form of the answer, and has a newer name."""
_NO_SLIPS = frozenset({"models"})
"""Fields of other servers that look like a slip: OpenRouter's list of models to fall back on."""


class UnknownField(UserError):
    code = "invalid_value"


class Tolerant(Settings):
    """Base of everything inside a client's request: null is the same as leaving a field out, and unknown fields are remembered."""

    model_config = ConfigDict(extra="ignore")
    _unknown: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        """What a client said, under the names and with the values that the fields have here."""
        return dict(said)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every name that a client can write here: the fields, and what `in_our_words` understands besides."""
        return tuple(info.alias or field for field, info in cls.model_fields.items())

    @model_validator(mode="wrap")
    @classmethod
    def _take_what_is_known(cls, said: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(said, dict):
            return read(said)
        values = {name: value for name, value in cls.in_our_words(said).items() if value is not None}
        made = read(values)
        if unknown := values.keys() - _known(cls):
            made._unknown = tuple(name for name in values if name in unknown)
        return made

    def ignored(self, *, strict: bool = False) -> list[str]:
        """The fields without effect, those of lists once: `messages.*.x`. Raises UserError for a slip, and for too many; strict: for every one."""
        found: dict[str, None] = {}
        for place, shown, kind, name in _unknown_fields(self, "", ""):
            if f"{shown}{name}" not in found:
                found[f"{shown}{name}"] = None
                if len(found) > MAX_UNKNOWN:
                    raise UnknownField(f"More than {MAX_UNKNOWN} fields of this request are not known here. Leave them out.")
                refuse_slip(name, kind.names(), place=place, strict=strict)
        return list(found)


@cache
def _known(kind: type[Tolerant]) -> frozenset[str]:
    return frozenset(kind.names())


def _unknown_fields(model: Tolerant, place: str, shown: str) -> Iterator[tuple[str, str, type[Tolerant], str]]:
    """(its place for an error, its place in general, the class that it is not a field of, its name)."""
    for name in model._unknown:
        yield place, shown, type(model), name
    for field in model.model_fields_set:
        value = getattr(model, field)
        for at, item in enumerate(value if isinstance(value, tuple) else ()):
            if isinstance(item, Tolerant):
                yield from _unknown_fields(item, f"{place}{field}.{at}.", f"{shown}{field}.*.")
        if isinstance(value, Tolerant):
            yield from _unknown_fields(value, f"{place}{field}.", f"{shown}{field}.")


def refuse_slip(name: str, known: Sequence[str], *, place: str = "", strict: bool = False) -> None:
    """Raise UserError where an unknown `name` was meant to be a known one, or at all where strict."""
    where = f"{place}{name}"
    if not place and name in _REPLACED:
        raise UnknownField(f"There is no field '{name}'. {_REPLACED[name]}", param=name)
    meant = next((other for other in known if _one_slip(name, other)), None) if name not in _NO_SLIPS else None
    if strict and meant is None:
        meant = next(iter(difflib.get_close_matches(name, known, 1, 0.7)), None)
    if meant is not None:
        raise UnknownField(f"There is no field '{where}'. Did you mean '{meant}'?", param=where)
    if strict:
        raise UnknownField(f"There is no field '{where}'. Leave it out, or see /openapi.json for those there are.", param=where)


def _one_slip(said: str, known: str) -> bool:
    """Whether a letter is missing, doubled, wrong or exchanged with its neighbour, or only case, dashes and underscores differ."""
    if _plain(said) == _plain(known):
        return True
    if min(len(said), len(known)) < _LEAST or abs(len(said) - len(known)) > 1:
        return False
    at = next((place for place, (a, b) in enumerate(zip(said, known, strict=False)) if a != b), min(len(said), len(known)))
    mine, theirs = said[at:], known[at:]
    if len(said) != len(known):
        return mine[1:] == theirs or mine == theirs[1:]
    return mine[1:] == theirs[1:] or (mine[1:2], mine[:1], mine[2:]) == (theirs[:1], theirs[1:2], theirs[2:])


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
