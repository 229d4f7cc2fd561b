"""Jinja for templates from strangers: what one may take is bounded in steps, letters and processor time.

Loops, calls, filters and operators are counted, what they would make is measured before it is made, and nothing is folded
when a template is compiled.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Sized, ValuesView
from contextvars import ContextVar
from functools import update_wrapper, wraps
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Template, pass_context, pass_environment
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.nodes import Compare, Concat, Const, Dict, Expr, Getitem, Node, Output, Slice, TemplateData
from jinja2.nodes import List as ListNode
from jinja2.nodes import Tuple as TupleNode
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.utils import Namespace

STEPS = 1_000_000
LETTERS = 16_000_000
"""Of all texts that are made on the way, the result among them; an item of a list counts as eight."""
SECONDS = 1.0
"""Of the processor, in the thread that renders: a busy machine takes nothing from it."""
LONGEST_SOURCE = 200_000
_PER_VALUE = (100, 1_000, 20e-6)
"""What each value of the conversation adds: steps, letters, seconds. Each of its letters adds 32 letters."""
_STEPS_PER_LOOK = 64
_ITEM = 8
_SCALARS = frozenset((str, int, float, bool, type(None)))
_WIDEST_INDENT = 64
_LARGEST_POWER = 16_384
_LARGEST_INTEGER = 64
"""Bits. Larger ones could all have the same hash, and a dictionary of such keys takes the square of its size."""
_LETTERS_PER_STEP = 1024
"""Of a text that is read through once; also pairs of letters that a search may compare are counted so, 16 for one."""
_MOST_COMPARED = 1 << 30
"""Pairs of letters."""


class TooMuch(Exception):
    """A template went beyond its allowance."""


class Allowance:
    """What one rendering may still use."""

    __slots__ = ("_end", "_look_at", "largest", "letters", "steps")

    def __init__(self, *given: Any) -> None:
        """given: the values that the template gets; more of them allow more."""
        self.steps, self.letters = STEPS, LETTERS
        values, letters, _ = _weight(given, math.inf)
        self.largest = STEPS // 5 + values
        self.steps += values * _PER_VALUE[0]
        self.letters += values * _PER_VALUE[1] + letters * 32
        self._end = time.thread_time() + SECONDS + values * _PER_VALUE[2]
        self._look_at = self.steps - _STEPS_PER_LOOK

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < self._look_at:
            self._look_at = self.steps - _STEPS_PER_LOOK
            if self.steps < 0:
                raise TooMuch("it takes too many steps")
            if time.thread_time() > self._end:
                raise TooMuch("it takes too long")

    def read(self, letters: int) -> None:
        """So many letters are gone through."""
        self.step(letters // _LETTERS_PER_STEP)

    def reserve(self, letters: int) -> None:
        """Raises TooMuch where something of so many letters must not be made."""
        if letters > self.letters:
            raise TooMuch("it makes too much text")

    def write(self, letters: int) -> None:
        self.letters -= letters
        if self.letters < 0:
            raise TooMuch("it makes too much text")


def _weight(value: Any, limit: float) -> tuple[int, int, int]:
    """(values in it, their letters, how deep they are nested). What is shared counts as often as it is met, as for str()."""
    values, letters, deepest = 0, 0, 0
    waiting = [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if values > limit:
            raise TooMuch("it takes too many steps")
        if isinstance(value, str | bytes):
            letters += len(value)
            continue
        if isinstance(value, dict):
            inner: Collection[Any] = (*value.keys(), *value.values())
        elif isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
            inner = value
        elif type(value) is Namespace:
            inner = object.__getattribute__(value, "_Namespace__attrs").values()
        else:
            letters += value.bit_length() // 3 if type(value) is int else 0
            continue
        if values + len(inner) > limit:
            raise TooMuch("it takes too many steps")
        deepest = max(deepest, depth + 1)
        waiting.extend((item, depth + 1) for item in inner)
    return values, letters, deepest


_allowance: ContextVar[Allowance] = ContextVar("allowance")


class _Code(CodeGenerator):
    """Python that counts: a step for each block, and a look at what containers, slices and comparisons hold."""

    def blockvisit(self, nodes: Iterable[Node], frame: Frame) -> None:
        nodes = list(nodes)
        plain = (child for node in nodes if isinstance(node, Output) for child in node.nodes)
        letters = sum(len(child.data) for child in plain if isinstance(child, TemplateData))
        self.writeline(f"environment.step({letters})")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: Compare, frame: Frame) -> None:
        if len(node.ops) == 1 and isinstance(node.ops[0].expr, Const):
            return super().visit_Compare(node, frame)  # to compare with a text or number costs nothing
        self.write("(")
        self._light(node.expr, frame)
        for operand in node.ops:
            self.write(f" {operators[operand.op]} ")
            self._light(operand.expr, frame)
        self.write(")")
        return None

    def _light(self, node: Expr, frame: Frame) -> None:
        if isinstance(node, Const):
            self.visit(node, frame)
        else:
            self._within("light", lambda: self.visit(node, frame))

    def visit_List(self, node: ListNode, frame: Frame) -> None:
        self._counted(node.items, lambda: super(_Code, self).visit_List(node, frame))

    def visit_Tuple(self, node: TupleNode, frame: Frame) -> None:
        if node.ctx == "store":
            super().visit_Tuple(node, frame)
        else:
            self._counted(node.items, lambda: super(_Code, self).visit_Tuple(node, frame))

    def visit_Dict(self, node: Dict, frame: Frame) -> None:
        self.write("environment.made({")
        for pair in node.items:
            self._light(pair.key, frame)
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("})")

    def visit_Getitem(self, node: Getitem, frame: Frame) -> None:
        def write() -> None:
            super(_Code, self).visit_Getitem(node, frame)

        if isinstance(node.arg, Slice):
            self._within("made", write)
        else:
            write()

    def _counted(self, items: Sequence[Expr], write: Callable[[], None]) -> None:
        if len(items) <= _ITEM and all(isinstance(item, Const) for item in items):
            write()
        else:
            self._within("made", write)

    def _within(self, method: str, write: Callable[[], None]) -> None:
        self.write(f"environment.{method}(")
        write()
        self.write(")")


class _Formatter(SandboxedFormatter):
    """str.format, with the width of each field measured before it is made."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        super().__init__(environment)
        self._bounded = environment

    def format_field(self, value: Any, format_spec: str) -> str:
        allowed = _allowance.get()
        allowed.reserve(sum(map(int, re.findall(r"\d+", format_spec[:100]))) if len(format_spec) <= 100 else LETTERS * 100)
        text = format(self._bounded.light(value), format_spec)
        allowed.write(len(text))
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(self._bounded.light(value), conversion)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which every rendering has an Allowance. It is shared: nothing of a rendering is kept in it."""

    code_generator_class = _Code
    intercepted_binops = frozenset(("+", "-", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, optimized=False, finalize=_finalized)
        del self.globals["lipsum"]
        self.globals["range"] = self.range
        filters = {**self.filters, "tojson": _to_json, "join": _join, "sum": _sum, "format": _format}
        self.filters = {name: self._counted_filter(name, function) for name, function in filters.items()}
        self.tests = {name: self._counted_test(name, function) for name, function in self.tests.items()}

    def compile_bounded(self, source: str) -> Template:
        """Raises what Jinja and Python raise for it, and TooMuch."""
        if len(source) > LONGEST_SOURCE:
            raise TooMuch(f"it is longer than {LONGEST_SOURCE} letters")
        return _allowed(Allowance(), lambda: self.from_string(source))

    def render(self, template: Template, values: Mapping[str, Any]) -> str:
        """The text. Raises whatever the template leads to, and TooMuch."""
        return _allowed(Allowance(values), lambda: template.render(**values))

    # --- called by the compiled templates

    def step(self, letters: int) -> None:
        allowed = _allowance.get()
        allowed.step()
        if letters:
            allowed.write(letters)

    def light(self, value: Any) -> Any:
        """`value`, once it is known to be small enough to be compared or written."""
        if type(value) not in _SCALARS:
            allowed = _allowance.get()
            values, letters, _ = _weight(value, allowed.largest)
            allowed.step(values)
            allowed.reserve(letters)
        else:
            letters = len(value) if isinstance(value, str) else 0
        _allowance.get().read(letters)
        return value

    def range(self, *bounds: int) -> range:
        for bound in bounds:
            self.made(bound)
        return safe_range(*bounds)

    def counted(self, values: Iterable[Any], steps: int = 1) -> Iterator[Any]:
        """`values`, each of which takes so many steps."""
        allowed = _allowance.get()
        for value in values:
            allowed.step(steps)
            yield value

    def made(self, value: Any) -> Any:
        """`value`, which was just made, and counts."""
        if isinstance(value, str | bytes):
            _allowance.get().write(len(value))
        elif isinstance(value, list | tuple | dict | set):
            allowed = _allowance.get()
            allowed.step()
            allowed.write(_ITEM * (len(value) + _ITEM))
        elif isinstance(value, int) and value.bit_length() > _LARGEST_INTEGER:
            raise TooMuch("it makes too large a number")
        return value

    def text(self, value: Any) -> str:
        return self.made(str(self.light(value)))

    def joined(self, parts: Sequence[Any], between: str = "") -> str:
        texts = [part if type(part) is str else self.text(part) for part in parts]
        _allowance.get().reserve(sum(map(len, texts)) + len(between) * len(texts))
        return self.made(between.join(texts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return self.operated(operator, left, right)

    def operated(self, operator: str, left: Any, right: Any) -> Any:
        """`left` operator `right`, measured before."""
        allowed = _allowance.get()
        allowed.step()
        match operator:
            case "*":
                allowed.reserve(_product(left, right))
            case "**":
                if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _LARGEST_POWER:
                    raise TooMuch("it makes too large a number")
            case "%":
                if isinstance(left, str | bytes):
                    allowed.reserve(_width_of(left, right))
                    self.light(right)
        return self.made(self.binop_table[operator](left, right))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        _allowance.get().step()
        if isinstance(obj, BuiltinMethodType | MethodType):
            self._check_method(obj.__self__, obj.__name__, args, kwargs)
        elif obj is dict:
            self.light((args, kwargs))
        return self.made(super().call(context, obj, *args, **kwargs))

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(owner, bytes | int | float | type) or name in ("translate", "maketrans"):
            raise SecurityError(f"{name} is not for templates")
        for value in (*args, *kwargs.values()):
            self.light(value)
        if isinstance(owner, str):
            if name in _COMPARING_METHODS:
                _check_compared(owner, args, kwargs)
            self.light(owner)
            _allowance.get().reserve(_text_size(owner, name, args, kwargs))
        elif isinstance(owner, list | tuple) and name in ("index", "count"):
            self.light(owner)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self.light(argument))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, BuiltinMethodType | MethodType) or value.__name__ not in ("format", "format_map"):
            return None
        source = value.__self__
        if not isinstance(source, str):
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (mapping,) = args
                if not isinstance(mapping, Mapping):
                    raise TypeError("format_map needs a mapping")
                args, kwargs = (), dict(mapping)
            _allowance.get().step(len(source) // 8)
            return self.made(_Formatter(self).vformat(str(source), args, kwargs))

        return update_wrapper(formatted, value)

    # --- filters and tests

    def _counted_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passed = getattr(function, "jinja_pass_arg", None)

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            given = args[1:] if passed is not None else args
            _allowance.get().step()
            if name not in _SHALLOW:
                for value in (*given, *kwargs.values()):
                    self.light(value)
            if given:
                _check_filter(name, given[0], given[1:], kwargs)
                if name in _BY_ATTRIBUTE and isinstance(given[0], Sized) and given[0]:
                    parts = 1 + sum(
                        len(re.findall("[.,]", text)) for text in (*given[1:], *kwargs.values()) if isinstance(text, str)
                    )
                    args = (*args[: len(args) - len(given)], self.counted(given[0], parts), *given[1:])  # type: ignore[arg-type]
            return self.made(function(*args, **kwargs))

        return counted

    def _counted_test(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passed = getattr(function, "jinja_pass_arg", None)

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            _allowance.get().step()
            if name in _COMPARING:
                for value in args[1:] if passed is not None else args:
                    self.light(value)
            return function(*args, **kwargs)

        return counted


def _allowed(allowance: Allowance, work: Callable[[], Any]) -> Any:
    token = _allowance.set(allowance)
    try:
        return work()
    finally:
        _allowance.reset(token)


@pass_context
def _finalized(context: Context, value: Any) -> Any:
    """Each value that is written goes through here; as it takes the context, Jinja writes no constants when it compiles."""
    if type(value) is str:
        _allowance.get().write(len(value))
        return value
    environment: BoundedEnvironment = context.environment  # type: ignore[assignment]
    return environment.text(value)


# --- how much an operation would make


def _product(left: Any, right: Any) -> int:
    if isinstance(left, int) and not isinstance(right, int | float):
        left, right = right, left
    if not isinstance(right, int) or isinstance(left, int | float) or not hasattr(left, "__len__"):
        return 0
    return len(left) * right * (1 if isinstance(left, str | bytes) else _ITEM)


_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d+)?(?:\.(\*|\d+))?")


def _width_of(form: str | bytes, values: Any) -> int:
    """The letters that the widths of a %-format ask for."""
    text = form.decode("latin-1") if isinstance(form, bytes) else form
    numbers = [abs(value) for value in (values if isinstance(values, tuple) else (values,)) if isinstance(value, int)]
    widest = max(numbers, default=0)
    found = [part for pair in _PERCENT.findall(text) for part in pair if part]
    return sum(widest if part == "*" else int(part[:20]) for part in found)


def _text_size(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The letters that a method of `text` may make, where these are more than a few times its own."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    match name:
        case "center" | "ljust" | "rjust" | "zfill":
            return first if isinstance(first, int) else 0
        case "expandtabs":
            return len(text) * (first if isinstance(first, int) else 8)
        case "replace":
            return _replaced_size(text, *args, **kwargs)
        case "join" if isinstance(first, Iterable):
            if not isinstance(first, str | list | tuple | dict):
                raise SecurityError("join takes a list")
            return sum(len(part) for part in first if isinstance(part, str)) + len(text) * len(first)
        case "split" | "rsplit":
            parts = text.count(first) if isinstance(first, str) and first else len(text) // 2
            return _ITEM * _at_most(parts, args[1] if len(args) > 1 else kwargs.get("maxsplit"))
        case "splitlines":
            return _ITEM * len(text)
        case _:
            return 0


def _at_most(count: int, most: Any) -> int:
    return min(count, most) if isinstance(most, int) and most >= 0 else count


def _replaced_size(text: Any, old: Any = "", new: Any = "", count: Any = None, *_: Any) -> int:
    text, old, new = (part if isinstance(part, str) else "" for part in (text, old, new))
    return len(text) + _at_most(text.count(old), count) * max(0, len(new) - len(old))


def _check_compared(text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    longest = max((len(part) for part in (*args, *kwargs.values()) if isinstance(part, str)), default=0)
    pairs = len(text) * longest if isinstance(text, str) else 0
    if pairs > _MOST_COMPARED:
        raise TooMuch("it searches too long a text")
    _allowance.get().read(pairs // 16)


_SHALLOW = frozenset(
    ("attr", "batch", "count", "d", "default", "first", "items", "join", "last", "length", "list", "map", "random", "reject")
    + ("rejectattr", "reverse", "select", "selectattr", "slice", "sum", "tojson")
)
"""Filters that look at no more than the first level of a value, or measure it themselves."""
_BY_ATTRIBUTE = frozenset(
    ("groupby", "join", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique")
)
"""Filters that do something with each item, such as looking up an attribute with several parts."""
_QUICK = frozenset(
    ("attr", "batch", "center", "count", "d", "default", "e", "escape", "first", "forceescape", "format", "indent", "int")
    + ("float", "items", "join", "last", "length", "list", "lower", "map", "random", "reject", "rejectattr", "replace")
    + ("reverse", "safe", "select", "selectattr", "slice", "string", "sum", "tojson", "trim", "truncate", "upper")
)
"""Filters that go through a text once, in native code, or count each letter themselves. Others get no very long text."""
_LONGEST_TEXT = 100_000
_COMPARING_METHODS = frozenset(("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"))
"""Methods of texts that may compare each letter with each letter of what they get."""
_SLOW = {
    "urlize": 10_000,
    "striptags": 10_000,
    "pprint": 10_000,
}
"""Filters that take more than one way through a text, and the longest that they get."""
_SPLITTING = frozenset(("batch", "groupby", "list", "max", "min", "reverse", "slice", "sort", "unique"))
"""Filters that make a list of the letters of a text."""
_COMPARING = frozenset(
    ("==", "!=", ">", ">=", "<", "<=", "eq", "equalto", "ne", "gt", "greaterthan", "ge", "lt", "lessthan", "le", "in")
)


def _check_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    allowed = _allowance.get()
    numbers = [abs(number) for number in (*args, *kwargs.values()) if isinstance(number, int)]
    largest = max(numbers, default=0)
    longest = max((len(text) for text in (*args, *kwargs.values()) if isinstance(text, str)), default=0)
    if name in _SPLITTING and isinstance(value, str):
        allowed.reserve(_ITEM * len(value))
    if name in _SLOW or (name not in _QUICK and isinstance(value, str)) or name == "xmlattr":
        values, letters, _ = _weight(value, allowed.largest)
        if values + letters > _SLOW.get(name, _LONGEST_TEXT):
            raise TooMuch(f"it gives {name} too long a text")
    match name:
        case "trim":
            _check_compared(value, args, kwargs)
        case "center":
            allowed.reserve(largest)
        case "indent":
            lines = value.count("\n") + 1 if isinstance(value, str) else 1
            allowed.reserve(lines * (max(largest, longest) or 4))
        case "wordwrap":
            allowed.reserve((len(str(value)) + 1) * longest)
        case "replace":
            allowed.reserve(_replaced_size(value if isinstance(value, str) else str(value), *args, **kwargs))
        case "batch" | "slice":
            allowed.reserve(_ITEM * largest)
        case "round" if largest > 100:
            raise TooMuch("it rounds to too many digits")


@pass_environment
def _join(environment: BoundedEnvironment, value: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)  # counted as the filter's input
    return environment.joined(list(value), environment.text(d))


@pass_environment
def _sum(environment: BoundedEnvironment, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if attribute is not None:
        steps = str(attribute).count(".")
        iterable = map(make_attrgetter(environment, attribute), environment.counted(iterable, steps))
    for value in iterable:
        start = environment.operated("+", start, value)
    return start


@pass_environment
def _format(environment: BoundedEnvironment, value: Any, *args: Any, **kwargs: Any) -> str:
    return environment.operated("%", environment.text(value), kwargs or args)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **options: Any) -> str:
    """As transformers writes it: no escapes of HTML, letters as they are."""
    allowed = _allowance.get()
    values, letters, depth = _weight(value, allowed.largest)
    allowed.step(values)
    wide = indent if isinstance(indent, int) else len(indent or "")
    if wide > _WIDEST_INDENT:
        raise TooMuch("it indents too far")
    between = sum(len(part) for part in separators) if separators else 4
    allowed.reserve(letters + values * (wide * depth + between))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **options)
