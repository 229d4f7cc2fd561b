"""Decorators: lines of the form `@@name value` before the text of a lore entry, as Character Card V3 has them.

Those of other programs, and those that need what this server does not know, have no effect here, and are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

ROLES: tuple[Literal["system", "user", "assistant"], ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Decorators:
    """What the decorators of an entry say, and its text without them.

    place: before, after, or how many messages from the end; None where it is not said. only_after, only_every: for how many
    replies of the character. without_effect: the names of those that do nothing here.
    """

    text: str
    place: Literal["before", "after"] | int | None = None
    role: Literal["system", "user", "assistant"] | None = None
    scan_depth: int | None = None
    only_after: int | None = None
    only_every: int | None = None
    additional_keys: tuple[str, ...] = ()
    exclude_keys: tuple[str, ...] = ()
    always: bool = False
    never: bool = False
    without_effect: tuple[str, ...] = field(default=())


def read_decorators(content: str) -> Decorators:
    """The decorators at the beginning of `content`. Of several with one name the first counts."""
    groups, text = _split(content)
    values: dict[str, Any] = {}
    unknown: list[str] = []
    seen: set[str] = set()
    for group in groups:
        for name, value in group:  # the first that is understood; those after it are its replacements
            if name in seen:
                break
            read = _KNOWN.get(name)
            found = read(value) if read else None
            if found is not None:
                seen.add(name)
                for field_name, one in found.items():
                    if name == "position" or field_name not in values:  # a position goes before a depth
                        values[field_name] = one
                break
        else:
            unknown.append(group[0][0])
    made = replace(Decorators(text, without_effect=tuple(unknown)), **values)
    return replace(made, never=made.never and not made.always)


def _split(content: str) -> tuple[list[list[tuple[str, str]]], str]:
    """([[(name, value), …replacements], …], the text after them)."""
    groups: list[list[tuple[str, str]]] = []
    lines = content.split("\n")
    while lines and (not (line := lines[0].strip()) or line.startswith("@@")):
        name = line.lstrip("@")
        if name and line.startswith("@@@") and groups:
            groups[-1].append(_named(name))
        elif name:
            groups.append([_named(name)])
        del lines[0]
    return groups, "\n".join(lines).strip()


def _named(line: str) -> tuple[str, str]:
    name, _, value = line.strip().partition(" ")
    return name.lower(), value.strip()


def _number(field_name: str, least: int = 0) -> Callable[[str], dict[str, Any] | None]:
    def read(value: str) -> dict[str, Any] | None:
        try:
            number = int(value)
        except ValueError:
            return None
        return {field_name: number} if least <= number <= 10**6 else None

    return read


def _words(field_name: str) -> Callable[[str], dict[str, Any] | None]:
    def read(value: str) -> dict[str, Any] | None:
        words = tuple(_items(value))
        return {field_name: words} if words else None

    return read


def _items(value: str) -> Iterator[str]:
    return (word.strip() for word in value.split(",") if word.strip())


def _one_of(field_name: str, choices: dict[str, Any]) -> Callable[[str], dict[str, Any] | None]:
    return lambda value: {field_name: choices[value]} if value in choices else None


def _depth(value: str) -> dict[str, Any] | None:
    try:
        return {"place": min(max(int(value), 0), 10**6)}
    except ValueError:
        return None


_KNOWN: dict[str, Callable[[str], dict[str, Any] | None]] = {
    "depth": _depth,
    "role": _one_of("role", {role: role for role in ROLES}),
    "position": _one_of("place", {"before_desc": "before", "after_desc": "after"}),
    "scan_depth": _number("scan_depth"),
    "activate_only_after": _number("only_after"),
    "activate_only_every": _number("only_every", least=1),
    "additional_keys": _words("additional_keys"),
    "exclude_keys": _words("exclude_keys"),
    "activate": lambda value: {"always": True},
    "dont_activate": lambda value: {"never": True},
}
