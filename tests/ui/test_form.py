"""A settings class becomes controls that fit it, and what they hold becomes the settings again."""

from __future__ import annotations

import gradio as gr
import pytest

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.loaders.options import LoadOptions
from modules.settings.declare import Settings, bounds_of, setting
from modules.ui.form import Form, from_control, read_list, to_control

CLASSES: list[type[Settings]] = [SamplingParams, LoadOptions]


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def form(request: pytest.FixtureRequest) -> Form[Settings]:
    return Form(request.param)


def test_every_setting_has_a_control_with_its_name_and_its_help(form: Form[Settings]):
    assert list(form.controls) == list(form.cls.model_fields)
    for control in form.controls.values():
        assert control.label and control.info  # type: ignore[attr-defined]


def test_what_the_controls_show_at_first_are_the_defaults(form: Form[Settings]):
    values = {name: control.value for name, control in form.controls.items()}  # type: ignore[attr-defined]
    assert form.read(values) == form.cls()


def test_every_default_survives_the_way_to_its_control_and_back(form: Form[Settings]):
    for name, info in form.fields.items():
        default = getattr(form.cls(), name)
        assert form.cls.read({name: from_control(name, info, to_control(info, default))}) == form.cls()


def test_sliders_stay_within_the_bounds_of_their_setting(form: Form[Settings]):
    for name, control in form.controls.items():
        if isinstance(control, gr.Slider):
            low, high = bounds_of(form.fields[name])
            assert control.minimum == low
            assert high is None or control.maximum <= high


def test_groups_hold_every_setting_once(form: Form[Settings]):
    assert sorted(name for names in form.groups.values() for name in names) == sorted(form.fields)


class Several(Settings):
    """One of each kind."""

    words: tuple[str, ...] = setting(())
    """Some words."""
    numbers: tuple[int, ...] = setting(())
    """Some numbers."""
    weights: dict[str, float] = setting({})
    """Some weights."""
    limit: int | None = setting(None)
    """Some limit."""


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        ("###", ["###"]),
        ("###\nEND", ["###", "END"]),
        (r'"\nYou:", "###"', ["\nYou:", "###"]),
        ('["a"]', ["a"]),
        ("1, 2", [1, 2]),
    ],
)
def test_lists_are_read_as_people_write_them(text: str, items: list[object]):
    assert read_list("words", text) == items


@pytest.mark.parametrize(("name", "text"), [("words", '"open'), ("weights", "{nonsense"), ("weights", "12: 3")])
def test_what_cannot_be_read_is_said_with_the_name_of_the_setting(name: str, text: str):
    with pytest.raises(UserError) as caught:
        from_control(name, Several.model_fields[name], text)
    assert caught.value.param == name


def test_numbers_in_a_list_of_words_stay_words():
    assert from_control("words", Several.model_fields["words"], "12, 13") == ["12", "13"]
    assert from_control("numbers", Several.model_fields["numbers"], "12, 13") == [12, 13]
    assert from_control("limit", Several.model_fields["limit"], None) is None


def test_a_value_beyond_the_slider_moves_its_end():
    form = Form(SamplingParams)
    update = form.show(SamplingParams(max_tokens=100_000))[form.controls["max_tokens"]]
    assert update["maximum"] == 100_000
