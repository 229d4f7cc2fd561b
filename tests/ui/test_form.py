"""A settings class becomes controls that fit it, and what they hold becomes the settings again."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

from modules import web
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.i18n.catalogs import SETTINGS
from modules.settings.declare import Settings, bounds_of, setting
from modules.training.config import TrainingConfig
from modules.ui.form import MOST_STEPS, Form, from_control, read_list, to_control
from tests.in_process import make_app

CLASSES = [*SETTINGS]
WITHIN_REACH = 20
"""How many times a bound may be what a slider reaches: more of it is a number of any magnitude, and is written."""


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


def test_a_slider_reaches_its_default_and_every_value_that_is_wanted(form: Form[Settings]):
    """A touch must not lead to a value of another magnitude, nor away from one that cannot be found again."""
    for name, control in form.controls.items():
        if isinstance(control, gr.Slider):
            assert control.step and isinstance(control.value, int | float)
            steps = (control.maximum - control.minimum) / control.step
            default = (control.value - control.minimum) / control.step
            assert steps <= MOST_STEPS, f"{name} has {steps:.0f} steps"
            assert default == pytest.approx(round(default), abs=1e-9), f"the default of {name} lies between two steps"
            _, high = bounds_of(form.fields[name])
            assert high is not None and high <= WITHIN_REACH * control.maximum, f"{name} may be {high}"


def test_no_number_stands_beside_the_forms_in_a_control_of_its_own(tmp_path: Path):
    """All sliders of all tabs are those that the test above has seen."""
    app = make_app(tmp_path)
    [page] = [route.app.get_blocks() for route in web.build(app).routes if hasattr(getattr(route, "app", None), "get_blocks")]  # type: ignore[attr-defined]
    found = [block for block in page.blocks.values() if isinstance(block, gr.Slider)]
    app.close()
    known = {control.elem_id for cls in CLASSES for control in Form(cls).controls.values() if isinstance(control, gr.Slider)}
    assert known >= {slider.elem_id for slider in found} and len(found) > 20


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "2e-4", 2e-4), ("learning_rate", "0.0002", 2e-4), ("learning_rate", " 5E-6 ", 5e-6),
        ("learning_rate", "２ｅ－４", 2e-4), ("learning_rate", "", 2e-4), ("warmup", "100", 100.0), ("epsilon", "1e-8", 1e-8),
    ],
)  # fmt: skip
def test_numbers_of_any_magnitude_are_written_as_people_write_them(name: str, text: str, value: float):
    form = Form(TrainingConfig)
    control = form.controls[name]
    assert isinstance(control, gr.Textbox)
    config = form.read({name: text})
    assert getattr(config, name) == value
    assert form.read({name: form.show(config)[control]["value"]}) == config


def test_what_is_no_number_is_said_with_the_name_of_the_setting():
    for text, words in (
        ("two", "write a number, such as 0.0002 or 2e-4"),
        ("11", "less than or equal to 10"),
        ("nan", "finite"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            Form(TrainingConfig).read({"learning_rate": text})
        assert caught.value.param == "learning_rate"


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
    update = form.show(SamplingParams(temperature=4))[form.controls["temperature"]]
    assert update["maximum"] == 4
