"""The settings as Markdown tables, for docs/settings.md; tools/settings_table.py writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args, get_origin

from pydantic.fields import FieldInfo

from modules.settings.declare import Settings, bounds_of, hints_of

HEADER = """# Settings

Made by `python -m tools.settings_table`; a test fails when it is out of date.

Every setting is a flag (`--min-p 0.05`; underscores work too), an environment variable (`TEXTLOOM_MIN_P=0.05`) and a line
of `settings.yaml` (`min_p: 0.05`). Sampling settings are also fields of the API, keys of `presets/NAME.yaml` and controls of
the Parameters tab; loading settings are controls of the Models tab. Flags win over the environment, the environment over
`settings.yaml`.
"""


def settings_page(sections: Sequence[tuple[str, type[Settings]]], header: str = HEADER, flags: bool = True) -> str:
    """The whole page: one heading for each (title, class), one table for each group of its fields.

    flags: name the fields as on the command line; otherwise as keys of a file.
    """
    parts = [header]
    for title, cls in sections:
        parts.append(f"## {title}\n")
        groups: dict[str, list[str]] = {}
        for name, info in cls.model_fields.items():
            groups.setdefault(hints_of(info).group, []).append(_row(name, info, flags))
        for group, rows in groups.items():
            parts.append(
                f"### {group}\n\n| {'flag' if flags else 'key'} | values | default | what it does |\n|---|---|---|---|\n"
                + "\n".join(rows)
                + "\n"
            )
    return "\n".join(parts)


def _row(name: str, info: FieldInfo, flags: bool) -> str:
    hints = hints_of(info)
    default = info.get_default(call_default_factory=True)
    shown = (
        ""
        if default in ("", (), {})
        else f"`{default}`"
        if not isinstance(default, tuple)
        else "all"
        if len(default) > 5
        else f"`{list(default)}`"
    )
    note = f" Used by: {', '.join(hints.loaders)}." if hints.loaders else ""
    names = [f"--{key.replace('_', '-')}" if flags else key for key in (name, *(hints.aliases if flags else ()))]
    text = (info.description or "").replace("|", "\\|")
    return f"| {', '.join(f'`{key}`' for key in names)} | {_values(info)} | {shown} | {text}{note} |"


def _values(info: FieldInfo) -> str:
    low, high = bounds_of(info)
    if choices := get_args(info.annotation) if get_origin(info.annotation) is not tuple else ():
        if get_origin(info.annotation) is dict:
            return "JSON"
        return ", ".join(f"`{choice}`" for choice in choices)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}" if high < 10**9 else f"from {low:g}"
    kinds = {bool: "on or off", str: "text", int: "number", float: "number"}
    return kinds.get(info.annotation, "several values")  # type: ignore[arg-type]
