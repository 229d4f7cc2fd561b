"""Chat templates run in a sandbox, and their failures are sentences."""

from __future__ import annotations

import pytest

from modules.errors import UserError
from modules.generation.template import render_chat
from modules.generation.types import Image, Message
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


def test_an_empty_beginning_cannot_be_continued():
    with pytest.raises(UserError, match="nothing to continue"):
        render_chat(CHATML, (*TALK[:1], Message("assistant", "")), continue_reply=True)


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
