"""Controls from a settings class: each field becomes the control that fits its type and bounds."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component
from pydantic.fields import FieldInfo

from modules.errors import UserError
from modules.i18n.catalogs import SETTINGS, say
from modules.settings.declare import Settings, bounds_of, hints_of

MOST_STEPS = 1000
"""A slider with more of them jumps over values that are wanted."""
S = TypeVar("S", bound=Settings)


class Form(Generic[S]):
    """One control for each field of `cls` (or those in `names`); place them with `place` or one by one with `render`."""

    def __init__(self, cls: type[S], names: Iterable[str] | None = None, values: S | None = None) -> None:
        self.cls = cls
        self.fields = {name: cls.model_fields[name] for name in names or cls.model_fields}
        shown = values or cls()
        self.controls: dict[str, Component | BlockContext] = {
            name: _control(name, info, to_control(info, getattr(shown, name)), SETTINGS.get(cls, ""))
            for name, info in self.fields.items()
        }

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group → names of its fields, in the order of the class."""
        groups: dict[str, list[str]] = {}
        for name, info in self.fields.items():
            groups.setdefault(hints_of(info).group, []).append(name)
        return groups

    @property
    def edited(self) -> list[Any]:
        """The events that say that somebody changed something: at once, or for texts when they are left."""
        return [
            control.blur if isinstance(control, gr.Textbox | gr.Number) else control.input  # type: ignore[attr-defined]
            for control in self.controls.values()
        ]

    def place(self, names: Iterable[str]) -> None:
        """Put these controls where the page is being built now."""
        for name in names:
            self.controls[name].render()

    def read(self, values: Mapping[str, Any]) -> S:
        """The settings that the controls show. Raises UserError that names the first field at fault."""
        read = {name: from_control(name, self.fields[name], value) for name, value in values.items() if name in self.fields}
        return self.cls.read(read)

    def show(self, settings: S, **changes: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates that make the controls show `settings`; `changes` adds more to single controls (interactive, info, …)."""
        updates: dict[Any, Any] = {}
        for name, info in self.fields.items():
            value = to_control(info, getattr(settings, name))
            update = {"value": value, **changes.get(name, {})}
            control = self.controls[name]
            if isinstance(control, gr.Slider) and value > _slider_end(info):
                update["maximum"] = value
            updates[control] = gr.update(**update)
        return updates


def setting_label(name: str) -> str:
    """The English name of a setting: its field's, with spaces.

    >>> setting_label("top_p")
    'Top p'
    """
    words = name.replace("_", " ")
    return words[0].upper() + words[1:]


# --- one field


def _plain(info: FieldInfo) -> Any:
    """The type of a field without its None."""
    kind = info.annotation
    if get_origin(kind) in (Union, UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _slider_end(info: FieldInfo) -> float:
    _, high = bounds_of(info)
    return hints_of(info).slider_max or (high if high is not None else 0)


def _step(info: FieldInfo) -> float:
    return hints_of(info).step or (1 if _plain(info) is int else 0.01)


def slides(info: FieldInfo) -> bool:
    """Whether a slider fits a number: within bounds, in few enough steps, of which the default is one.

    Others are written: a touch of a slider from 0 to 10 would make a learning rate of 2e-4 a hundred times as large.
    """
    low, _ = bounds_of(info)
    if _plain(info) not in (int, float) or low is None or not isinstance(info.default, int | float):
        return False
    steps, default = (_slider_end(info) - low) / _step(info), (info.default - low) / _step(info)
    return 0 < steps <= MOST_STEPS and abs(default - round(default)) < 1e-9


def common_look(name: str, value: Any, prefix: str = "") -> dict[str, Any]:
    """What every control of a setting is made with: its words, its value, its place in the page's own names."""
    return {
        "label": say(f"{prefix}setting.{name}"),
        "info": say(f"{prefix}setting.{name}.help"),
        "value": value,
        "render": False,
        "elem_id": f"{prefix.replace('.', '-')}setting-{name}",
    }


def _control(name: str, info: FieldInfo, value: Any, prefix: str) -> Component:
    hints, kind = hints_of(info), _plain(info)
    common = common_look(name, value, prefix)
    if kind is bool:
        return gr.Checkbox(**common)
    if choices := _choices(kind):
        return gr.Dropdown(choices=list(choices), filterable=False, **common)
    if get_origin(kind) is tuple and (choices := _choices(get_args(kind)[0])):
        return gr.Dropdown(choices=list(choices), multiselect=True, **common)
    low, _ = bounds_of(info)
    if slides(info) and low is not None:
        # Its reset button speaks English only.
        return gr.Slider(low, max(_slider_end(info), value), step=_step(info), buttons=[], **common)
    if kind is int:
        return gr.Number(precision=0, step=_step(info), **common)
    if hints.secret:
        return gr.Textbox(type="password", **common)
    return gr.Textbox(lines=hints.lines, **common)


def to_control(info: FieldInfo, value: Any) -> Any:
    """A setting's value as its control shows it: lists as "one", "two", mappings as JSON, fractions that are written as text."""
    kind = _plain(info)
    if value is None:
        return None if kind is int or slides(info) else ""
    if kind is float and not slides(info):
        return show_number(value)
    if get_origin(kind) is dict:
        return json.dumps(value, ensure_ascii=False) if value else ""
    if get_origin(kind) is tuple and not _choices(get_args(kind)[0]):
        return ", ".join(json.dumps(item, ensure_ascii=False) for item in value)
    if get_origin(kind) is tuple:
        return list(value)
    return value


def from_control(name: str, info: FieldInfo, value: Any) -> Any:
    """What a control holds as the setting's value. Raises UserError for a list, mapping or number that cannot be read."""
    kind = _plain(info)
    if kind in (int, float) and isinstance(value, str):
        value = read_number(name, value)
    if get_origin(kind) is dict:
        try:
            return json.loads(value) if value and value.strip() else {}
        except ValueError:
            raise UserError(f'{setting_label(name)}: write it as JSON, like {{"1234": -100}}.', param=name) from None
    if get_origin(kind) is tuple and isinstance(value, str):
        items = read_list(name, value)
        return list(map(str, items)) if get_args(kind)[0] is str else items
    if value is None:
        return None if get_origin(info.annotation) in (Union, UnionType) else info.get_default(call_default_factory=True)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def show_number(value: float) -> str:
    """A number as people write it.

    >>> [show_number(number) for number in (3.0, 2e-4, 5e-6, 1e-08)]
    ['3', '0.0002', '5e-6', '1e-8']
    """
    return re.sub("e([+-])0*", r"e\1", repr(float(value))).removesuffix(".0")


def read_number(name: str, text: str) -> float | None:
    """A number in any usual form, in full-width signs too; None for an empty text. Raises UserError.

    >>> read_number("learning_rate", "2e-4"), read_number("learning_rate", " ")
    (0.0002, None)
    """
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-").strip()
    try:
        return float(plain) if plain else None
    except ValueError:
        raise UserError(f"{setting_label(name)}: write a number, such as 0.0002 or 2e-4.", param=name) from None


def read_list(name: str, text: str) -> list[Any]:
    r"""Items in quotes with commas between them, as in 2023 ("\n", "###"); or one item on each line, without quotes.

    >>> read_list("stop", '"\\nYou:", "###"'), read_list("stop", "###\nEND")
    (['\nYou:', '###'], ['###', 'END'])
    """
    text = text.strip()
    if not text:
        return []
    if text.startswith(('"', "[")) or text.replace(",", "").replace(" ", "").isdigit():
        try:
            items = json.loads(text if text.startswith("[") else f"[{text}]")
        except ValueError:
            raise UserError(f'{setting_label(name)}: write the items as "one", "two".', param=name) from None
        return items if isinstance(items, list) else [items]
    return text.splitlines()
