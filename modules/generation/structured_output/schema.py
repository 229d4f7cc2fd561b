"""A JSON schema as tools of the field write it, made one that can be held; what cannot be held is named, not dropped in silence."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from modules.errors import UserError

FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
"""The formats of texts that llguidance holds; by the standard, any other is an annotation."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = (
    "items",
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_LARGEST_INTEGER = 1 << 53
"""llguidance has numbers as floats of 64 bits, and writes and compares no larger integer exactly."""
_VALUES = ("const", "enum")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_MOST = {"maxItems": "minItems", "maxLength": "minLength", "maxProperties": "minProperties"}
_UNREACHED = 100_000
"""An upper bound above this means the same as none: a reply ends before."""
_OUTERMOST = {"minimum": -(1 << 63), "maximum": (1 << 63) - 1}
"""Generators write the range of their 64-bit integers; nobody means a number beyond it."""
_LEAST = ("minItems", "minLength", "minProperties", "minContains")
_Place = tuple[str, ...]


def prepare(schema: Any, most: int) -> tuple[Any, tuple[str, ...]]:
    """(the schema without what is only an annotation, the places of what it asks and is not held). Raises UserError.

    most: how often something may have to come.
    """
    ignored: list[str] = []
    for place, node in _nodes(schema):
        form = node.get("format")
        if "format" in node and (not isinstance(form, str) or form not in FORMATS):
            ignored.append(_path(*place, "format"))
            del node["format"]
        if node.pop("uniqueItems", False) and not _at_most_one(node):
            ignored.append(_path(*place, "uniqueItems"))
        for keyword, outermost in _OUTERMOST.items():
            bound = node.get(keyword)
            if isinstance(bound, int) and (bound <= outermost if outermost < 0 else bound >= outermost):
                ignored.append(_path(*place, keyword))
                del node[keyword]
        for keyword in _VALUES + _BOUNDS:
            if keyword in node:
                _check_numbers((*place, keyword), node[keyword])
        for keyword, opposite in _MOST.items():
            if _number(node.get(keyword)) > max(_UNREACHED, _number(node.get(opposite))):
                del node[keyword]
        for keyword in _LEAST:
            least = node.get(keyword)
            if isinstance(least, int | float) and least > most:
                where = _path(*place, keyword)
                raise UserError(
                    f"The JSON schema cannot be used at {where}: no reply is long enough for {least:.15g}. Lower it.",
                    param=f"json_schema.{where}",
                )
    return schema, tuple(ignored)


def _check_numbers(place: _Place, value: Any) -> None:
    """Refuse numbers that would become others in silence. value: of a keyword, with all that is in it."""
    waiting = [(place, value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*place, name), part) for name, part in value.items()]
        elif isinstance(value, list):
            waiting += [((*place, str(at)), part) for at, part in enumerate(value)]
        elif isinstance(value, int | float) and not _is_held(place[-1], value):
            where = _path(*place)
            raise UserError(
                f"The JSON schema cannot be used at {where}: so large a number cannot be held exactly. "
                "Use integers between -2^53 and 2^53, or a text.",
                param=f"json_schema.{where}",
            )


def _is_held(keyword: str, value: float) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if keyword in ("minimum", "maximum"):
        return abs(value) < 1 << 63 and int(float(value)) == value
    return abs(value) < _LARGEST_INTEGER if keyword.startswith("exclusive") else abs(value) <= _LARGEST_INTEGER


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0


def places_of(keyword: str, schema: Any) -> tuple[str, ...]:
    """Where a keyword is in a schema."""
    return tuple(_path(*place, keyword) for place, node in _nodes(schema) if keyword in node)


def place_of_fault(schema: Any, problem: str, fails: Callable[[Any], bool]) -> str:
    """The innermost part of a schema that fails by itself, with the keyword at fault where one is; "" for the whole.

    problem: what was said of it, which may name the keyword. fails: whether a schema cannot be used.
    """
    shared = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, dict) and key in schema}
    innermost: _Place = ()
    node = schema
    for place, part in _nodes(schema, all_kinds=True):
        if len(place) > len(innermost) and place[: len(innermost)] == innermost:
            alone = {**shared, **part} if isinstance(part, dict) else part
            if fails(alone):
                innermost, node = place, part
    if not isinstance(node, dict):
        return _path(*innermost)
    for keyword in sorted(node, key=lambda keyword: (keyword not in problem, keyword == "type")):
        if keyword not in shared and not fails({**shared, **{key: node[key] for key in node if key != keyword}}):
            return _path(*innermost, keyword)
    for keyword in node:  # there may be more than one at fault
        alone = {"type": node["type"]} if "type" in node else {}
        if keyword not in shared and keyword != "type" and fails({**shared, **alone, keyword: node[keyword]}):
            return _path(*innermost, keyword)
    return _path(*innermost)


def _at_most_one(node: dict[str, Any]) -> bool:
    most = node.get("maxItems")
    return isinstance(most, int | float) and most <= 1


def _path(*place: str) -> str:
    return ".".join(place)


def _nodes(schema: Any, *, all_kinds: bool = False) -> Iterator[tuple[_Place, Any]]:
    """Every schema within a schema with its place, outer ones first. all_kinds: also true, false and what is none at all."""
    waiting: deque[tuple[_Place, Any]] = deque([((), schema)])
    while waiting:
        place, node = waiting.popleft()
        if not isinstance(node, dict):
            if all_kinds:
                yield place, node
            continue
        yield place, node
        for keyword in _NAMED:
            if isinstance(children := node.get(keyword), dict):
                waiting += [((*place, keyword, name), child) for name, child in children.items()]
        for keyword in _LISTED:
            if isinstance(children := node.get(keyword), list):
                waiting += [((*place, keyword, str(at)), child) for at, child in enumerate(children)]
        for keyword in _SINGLE:
            if keyword in node and not isinstance(node[keyword], list):
                waiting.append(((*place, keyword), node[keyword]))
