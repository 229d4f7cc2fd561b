"""A setting is declared once, and what is derived from it agrees."""

from __future__ import annotations

import pytest

from modules.errors import UserError
from modules.settings.declare import Settings, bounds_of, hints_of, setting


class Spice(Settings):
    heat: float = setting(0.5, min=0, max=1, step=0.1, group="Taste")
    """How hot; 0 is mild."""
    herbs: tuple[str, ...] = setting(())
    """What else is in it."""


def test_bounds_and_hints_come_from_the_declaration():
    field = Spice.model_fields["heat"]
    assert bounds_of(field) == (0, 1)
    assert hints_of(field).step == 0.1
    assert field.description == "How hot; 0 is mild."
    assert Spice.model_json_schema()["properties"]["heat"]["maximum"] == 1


def test_settings_are_equal_when_their_content_is():
    assert Spice(heat=0.2) == Spice.read({"heat": "0.2"})
    assert hash(Spice()) == hash(Spice())


def test_only_differences_are_kept():
    assert Spice(heat=0.5, herbs=("thyme",)).differences() == {"herbs": ("thyme",)}
    assert Spice(heat=0.5).given() == {"heat": 0.5}


@pytest.mark.parametrize(("values", "name"), [({"heat": 2}, "heat"), ({"salt": 1}, "salt"), ({"heat": float("nan")}, "heat")])
def test_a_wrong_value_is_a_sentence_that_names_it(values, name):
    with pytest.raises(UserError, match=name) as error:
        Spice.read(values)
    assert error.value.param == name


def test_changed_checks_again():
    assert Spice(heat=0.2).changed({"herbs": ["dill"]}) == Spice(heat=0.2, herbs=("dill",))
    with pytest.raises(UserError):
        Spice().changed({"heat": -1})
