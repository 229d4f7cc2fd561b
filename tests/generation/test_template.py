"""Chat templates run in a sandbox, and their failures are sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.errors import UserError
from modules.generation.template import render_chat, template_problem
from modules.generation.types import Image, Message
from modules.library.templates import TemplateLibrary
from tests.tiny import CHATML

TALK = (Message("user", "Hi"), Message("assistant", "Hello, I"))


def test_a_conversation_ends_with_the_turn_of_the_model():
    assert render_chat(CHATML, TALK[:1]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_reply_under_way_is_continued_without_its_end_marker():
    text = render_chat(CHATML, TALK, continue_reply=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello, I"


def test_a_trailing_space_of_the_beginning_is_kept_where_the_template_strips():
    stripping = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert render_chat(stripping, (*TALK[:1], Message("assistant", "So ")), continue_reply=True) == "[Hi][So "


def test_a_reply_without_text_yet_is_continued_from_its_beginning():
    assert render_chat(CHATML, (*TALK[:1], Message("assistant", "")), continue_reply=True) == render_chat(CHATML, TALK[:1])


def test_the_words_of_the_user_are_continued_too_so_that_the_model_can_write_them():
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello, I<|im_end|>\n<|im_start|>user\n"
    assert render_chat(CHATML, (*TALK, Message("user", "")), continue_reply=True) == asked
    assert render_chat(CHATML, (*TALK, Message("user", "And")), continue_reply=True) == asked + "And"


def test_every_template_that_is_shipped_for_chat_passes_its_test():
    library = TemplateLibrary(Path(__file__).resolve().parents[2] / "prompts" / "templates")
    found = {name: problem for name in library.names() if (problem := template_problem(library.read(name)))}
    assert list(found) == ["MPT-StoryWriter"], "a model that continues stories knows no turns"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "empty prompt"),
        ("{% if %}", "mistake in line 1"),
        ("{{ raise_exception('no talk') }}", "no talk"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "its turn to answer"),
        ("{% for m in messages if m.role == 'user' %}<{{ m.content }}>{% endfor %}bot:", "leaves out what the model said"),
        ("{% for m in messages if m.role != 'user' %}<{{ m.content }}>{% endfor %}bot:", "leaves out what the user said"),
        ("{% for m in messages %}<{{ m.content }}{{ m.content }}>{% endfor %}bot:", "twice"),
        ("{% for m in messages | reverse %}<{{ m.content }}>{% endfor %}bot:", "another order"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}bot:", "who said what"),
    ],
)
def test_a_bad_template_is_told_in_a_sentence(source: str, problem: str):
    assert problem in (template_problem(source) or "")


def test_a_good_template_has_no_problem_and_neither_has_one_that_is_rendered_elsewhere():
    assert template_problem(CHATML) is None
    assert template_problem("{# The engine renders it. #}") is None


def test_a_template_may_refuse_a_conversation():
    with pytest.raises(UserError, match="must alternate"):
        render_chat("{{ raise_exception('turns must alternate') }}", TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source):
    with pytest.raises(UserError):
        render_chat(source, TALK)


def test_a_mistake_names_its_line():
    with pytest.raises(UserError, match="line 2"):
        render_chat("ok\n{% if %}", TALK)


def test_markers_for_training_and_tools_are_understood():
    source = "{% generation %}{{ tools[0].name }}{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}{{ messages | tojson }}"
    text = render_chat(source, TALK[:1], variables={"tools": [{"name": "clock"}]})
    assert text == 'clock[{"role": "user", "content": "Hi"}]'


def test_pictures_are_parts_of_the_content():
    source = "{% for part in messages[0].content %}<{{ part.type }}>{% endfor %}"
    assert render_chat(source, [Message("user", "what?", images=(Image(b""),))]) == "<image><text>"
