"""A setting is one annotated field: its bounds, its group, and its help text as the docstring under it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from modules.errors import UserError


class Settings(BaseModel):
    """Base of every settings class: frozen, compared by content, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Validate `values` (field name → value). Raises UserError naming the first field at fault."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise user_error(error) from None

    def changed(self, values: Mapping[str, Any]) -> Self:
        """A copy with `values` put over it, validated. Raises UserError."""
        return type(self).read({**self.given(), **values})

    def given(self) -> dict[str, Any]:
        """The fields that were set explicitly, whatever their value."""
        return self.model_dump(include=set(self.model_fields_set))

    def differences(self) -> dict[str, Any]:
        """The fields whose value is not the default: what a preset file keeps."""
        return self.model_dump(exclude_defaults=True)


@dataclass(frozen=True)
class Hints:
    """What a form and a help text need beyond pydantic's own field information."""

    group: str = ""
    step: float | None = None
    slider_max: float | None = None
    loaders: tuple[str, ...] = ()
    secret: bool = False
    aliases: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    lines: int = 1


def setting(
    default: Any,
    *,
    min: float | None = None,
    max: float | None = None,
    step: float | None = None,
    slider_max: float | None = None,
    group: str = "",
    loaders: Iterable[str] = (),
    secret: bool = False,
    aliases: Iterable[str] = (),
    former: Iterable[str] = (),
    lines: int = 1,
) -> Any:
    """Declare one field of a Settings class.

    min, max: bounds, both allowed. slider_max: where the slider on the page ends if max is further than anybody wants; a number
    that may be of any magnitude has none, and is written.
    loaders: the loaders that use it; empty means all. aliases: older names of the flag, without dashes.
    former: names that this program had for it: they are taken, with a warning.
    secret: never shown or logged. lines: height of the text box for long texts.
    """
    hints = Hints(
        group=group,
        step=step,
        slider_max=slider_max,
        loaders=tuple(loaders),
        secret=secret,
        aliases=tuple(aliases),
        former=tuple(former),
        lines=lines,
    )
    extra: dict[str, Any] = {"ge": min, "le": max}
    bounds = {key: value for key, value in extra.items() if value is not None}
    if isinstance(default, list | dict | set):
        info = Field(default_factory=default.copy, repr=not secret, **bounds)
    else:
        info = Field(default, repr=not secret, **bounds)
    info.metadata.append(hints)
    return info


def hints_of(field: FieldInfo) -> Hints:
    """The Hints that `setting` attached to a field; plain pydantic fields have neutral ones."""
    return next((item for item in field.metadata if isinstance(item, Hints)), Hints())


def former_names(cls: type[Settings]) -> dict[str, str]:
    """Former name → the name of the field now."""
    return {former: name for name, info in cls.model_fields.items() for former in hints_of(info).former}


def bounds_of(field: FieldInfo) -> tuple[float | None, float | None]:
    """(lowest, highest) allowed value of a field, None where it is open."""
    low = next((item.ge for item in field.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in field.metadata if hasattr(item, "le")), None)
    return low, high


def user_error(error: ValidationError) -> UserError:
    """The first problem of a pydantic error as one sentence that names the field."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UserError(f"There is no setting called {where}.", param=where)
    reason = first["msg"].removeprefix("Value error, ")
    return UserError(f"{where}: {reason}." if where else f"{reason}.", param=where or None)
