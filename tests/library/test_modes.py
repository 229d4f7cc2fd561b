"""The three modes: what the model sees in each, and that nobody speaks for the user."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.errors import UserError
from modules.generation.context_overflow import fit_messages
from modules.generation.control_tokens import without_marks
from modules.generation.stop_strings import StopTexts
from modules.generation.template import check_template, render_chat
from modules.generation.types import Image, Message
from modules.library.character import Character
from modules.library.modes import COMMAND, Staged, staged
from modules.library.templates import TemplateLibrary
from tests.fakes import CHATML

MIRA = Character(
    "Mira", "{{char}} keeps a lighthouse. <USER> is a guest.", "Welcome, {{user}}.", "{{user}}: Storm?\n{{char}}: Soon."
)
TURNS = (Message("assistant", "Welcome, Ann."), Message("user", "Good evening."))
TEMPLATES = TemplateLibrary(Path(__file__).resolve().parents[2] / "prompts" / "templates")
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def seen(stage: Staged, own: str | None = CHATML, *, continue_reply: bool = False) -> str:
    template = stage.template or own
    assert template is not None
    return render_chat(template, stage.messages, continue_reply=continue_reply)


def test_chat_is_the_context_and_lines_with_names():
    stage = staged(TURNS, "chat", MIRA, user="Ann")
    assert seen(stage) == (
        "Mira keeps a lighthouse. Ann is a guest.\n\nAnn: Storm?\nMira: Soon.\n\nMira: Welcome, Ann.\nAnn: Good evening.\nMira:"
    )


def test_a_reply_that_is_continued_ends_the_play():
    stage = staged((*TURNS, Message("assistant", "Sit down by")), "chat", MIRA, user="Ann")
    assert seen(stage, continue_reply=True).endswith("Ann: Good evening.\nMira: Sit down by")


def test_the_model_does_not_speak_for_the_user():
    stage = staged(TURNS, "chat", MIRA, user="Ann")
    watch = StopTexts(stage.stop)
    assert watch.feed(" Hello.\nAnn: I say") == " Hello."
    assert StopTexts(stage.stop).feed(" Hello.\nMira: And I say") == " Hello."


def test_the_next_line_can_be_the_users():
    assert seen(staged(TURNS, "chat", MIRA, user="Ann", speaker="user")).endswith("Good evening.\nAnn:")
    inside = seen(staged(TURNS, "chat-instruct", MIRA, user="Ann", own_template=CHATML, speaker="user"))
    assert "next reply of Ann" in inside and inside.endswith("<|im_start|>assistant\nAnn:")


def test_chat_instruct_puts_the_play_into_one_turn_of_the_template():
    stage = staged(TURNS, "chat-instruct", MIRA, user="Ann", own_template=CHATML)
    play = seen(staged(TURNS, "chat", MIRA, user="Ann")).removesuffix("\nMira:")
    asked = COMMAND.replace("<|character|>", "Mira").replace("<|prompt|>", play)
    assert seen(stage) == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\nMira:"
    own = staged(TURNS, "chat-instruct", MIRA, user="Ann", own_template=CHATML, command="As <|character|>:\n<|prompt|>\nNow.")
    assert seen(own) == f"<|im_start|>user\nAs Mira:\n{play}\nNow.<|im_end|>\n<|im_start|>assistant\nMira:"


def test_chat_instruct_goes_on_with_a_reply():
    stage = staged((*TURNS, Message("assistant", "Sit down")), "chat-instruct", MIRA, user="Ann", own_template=CHATML)
    text = seen(stage, continue_reply=True)
    assert text.endswith("<|im_start|>assistant\nMira: Sit down") and text.count("Sit down") == 1


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_every_shipped_template_takes_a_play_and_shows_the_context(name: str):
    source = TEMPLATES.read(name)
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    stage = staged(TURNS, "chat-instruct", MIRA, user="Ann", template=source)
    text = render_chat(stage.template or "", stage.messages, variables=variables)
    assert text.endswith("Mira:") and "Good evening." in text and "<s><s>" not in text
    plain = staged(TURNS, "instruct", MIRA, user="Ann", template=source)
    text = render_chat(plain.template or source, plain.messages, variables=variables)
    assert "Mira keeps a lighthouse" in text and "Welcome, Ann." in text and "Good evening." in text


def test_chat_instruct_needs_a_template():
    with pytest.raises(UserError, match="template"):
        staged(TURNS, "chat-instruct", MIRA)


def test_a_template_without_a_system_or_a_first_reply_still_shows_them():
    stage = staged(
        (*TURNS, Message("assistant", "Yes?"), Message("user", "Tea.")), "instruct", MIRA, user="Ann", own_template=STRICT
    )
    assert stage.messages[0].role == "system"
    text = seen(stage, STRICT)
    assert text.startswith("<user>Mira keeps a lighthouse.")
    assert text.endswith("<assistant>Welcome, Ann.<user>Good evening.<assistant>Yes?<user>Tea.<assistant>")


def test_instruct_without_anything_told_is_left_as_it_is():
    turns = (Message("user", "hi"),)
    assert staged(turns, own_template=CHATML) == Staged(turns, None)
    assert staged(turns, system="Be brief, {{user}}.", user="Ann", own_template=CHATML).messages[0].content == "Be brief, Ann."


@pytest.mark.parametrize("mode", ["chat", "chat-instruct"])
@given(length=st.integers(200, 1500), said=st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=12))
def test_what_does_not_fit_goes_by_whole_turns_and_the_context_stays(mode, length: int, said: list[str]):
    turns = [Message("assistant", "Welcome, Ann.")]
    for text in said:
        turns += [Message("user", text), Message("assistant", "Aye: " + text)]
    turns.append(Message("user", "And now?"))
    stage = staged(turns, mode, MIRA, user="Ann", own_template=CHATML)

    def count(messages: tuple[Message, ...]) -> int:
        return len(render_chat(stage.template or "", messages))

    kept, dropped = fit_messages(stage.messages, count, length + 300, 10, "drop_oldest")
    assert kept[0] == stage.messages[0] and kept[1:] == stage.messages[len(stage.messages) - len(kept) + 1 :]
    assert dropped == len(stage.messages) - len(kept)
    assert "Mira keeps a lighthouse" in render_chat(stage.template or "", kept)


@pytest.mark.slow
@given(
    names=st.tuples(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30)),
    said=st.text(max_size=80),
    context=st.text(max_size=80),
)
def test_names_and_texts_are_never_read_as_jinja(names: tuple[str, str], said: str, context: str):
    mira = Character(names[0], context + "{{ 7 * 7 }}{% raw %}")
    for mode in ("chat", "chat-instruct"):
        stage = staged((Message("user", said + "{{ 7 * 7 }}"),), mode, mira, user=names[1], own_template=CHATML)
        check_template(stage.template or "")
        text = without_marks(seen(stage))
        assert "49" not in text.replace(said, "").replace(context, "").replace(names[0], "").replace(names[1], "")
        assert text.endswith(f"{names[0]}:")


def test_a_turn_template_of_a_character_takes_the_place_of_the_lines():
    mira = Character("Mira", "A lighthouse.", turn_template="<|user|> said: <|user-message|>\n<|bot|> said: <|bot-message|>\n")
    assert (
        seen(staged((Message("user", "Hello."),), "chat", mira, user="Ann")) == "A lighthouse.\n\nAnn said: Hello.\nMira said:"
    )


SEES = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
)


def test_pictures_stand_in_the_lines_as_the_models_own_template_shows_them():
    looked = Message("user", "Look.", (Image(b"x"), Image(b"y")))
    turns = (looked, Message("assistant", "Two boats."), Message("user", "", (Image(b"z"),)))
    bare = Character("Mira", "A lighthouse.")
    stage = staged(turns, "chat", bare, user="Ann", own_template=SEES)
    assert seen(stage) == "A lighthouse.\n\nAnn: <image><image>Look.\nMira: Two boats.\nAnn: <image>\nMira:"
    mira = Character("Mira", "Told.", turn_template="<|user|> said: <|user-message|>\n<|bot|> said: <|bot-message|>\n")
    assert "Ann said: <image><image>Look.\n" in seen(staged(turns, "chat", mira, user="Ann", own_template=SEES))
    assert seen(staged((looked,), "chat-instruct", MIRA, own_template=SEES)).startswith("user: <image><image>Go on with")


def test_pictures_are_refused_in_lines_where_nobody_knows_how_to_show_them():
    turns = (Message("user", "Look.", (Image(b"x"),)),)
    for template in (None, CHATML, "{% for m in messages %}{{ m.content[1].text }}{% endfor %}"):
        with pytest.raises(UserError, match="picture"):
            staged(turns, "chat", MIRA, own_template=template)


def test_the_begin_of_text_comes_once():
    stage = staged(TURNS, "chat", MIRA, user="Ann")
    assert render_chat(stage.template or "", stage.messages, variables={"bos_token": "<s>", "eos_token": "</s>"}).startswith(
        "<s>Mira keeps"
    )
    inside = staged(TURNS, "chat-instruct", MIRA, user="Ann", own_template="{{ bos_token }}" + CHATML)
    text = render_chat(inside.template or "", inside.messages, variables={"bos_token": "<s>", "eos_token": "</s>"})
    assert text.startswith("<s><|im_start|>") and text.count("<s>") == 1
