"""The request builder: what a conversation and its settings become for one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.app import App
from modules.chats.conversation import ChatSettings
from modules.chats.records import StoredMessage
from modules.errors import NoChatTemplate, UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, Message
from modules.services.reply_builder import ReplyBuilder, ReplySettings
from modules.services.requests import Conversation, RequestBuilder
from tests.fakes import CHATML, EVERYTHING, EchoModel
from tests.in_process import make_app

QUESTION = Message("user", "q")
TOOLS = CHATML + "{% for tool in tools %}[TOOL_CALLS]{% endfor %}"


@pytest.fixture
def app(tmp_path: Path):
    made = make_app(tmp_path)
    (made.characters.folder).mkdir(exist_ok=True)
    (made.characters.folder / "Bo.yaml").write_text("name: Bo\ncontext: Bo likes {{user}}.\n", encoding="utf-8")
    yield made
    made.close()


def built(app: App, conversation: Conversation, model: EchoModel | None = None, **settings: Any) -> GenerationRequest:
    builder = RequestBuilder(app, "local")
    return builder.build(model or EchoModel(), conversation, ChatSettings(**settings), SamplingParams())


def turns(request: GenerationRequest) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in request.prompt if isinstance(turn, Message)]


def test_the_settings_of_a_chat_are_in_its_request(app: App):
    request = built(
        app,
        Conversation((QUESTION,)),
        system_prompt="Be brief.",
        reply_start="Sure:",
        template="ChatML",
        adapter="poet",
        adapter_strength=0.5,
    )
    assert turns(request) == [("system", "Be brief."), ("user", "q"), ("assistant", "Sure:")]
    assert request.continue_reply and (request.adapter, request.adapter_strength) == ("poet", 0.5)
    assert request.template == app.templates.read("ChatML")


def test_a_reply_that_goes_on_gets_no_second_beginning(app: App):
    conversation = Conversation((QUESTION, Message("assistant", "Sure: a")), continue_reply=True)
    request = built(app, conversation, reply_start="Sure:")
    assert turns(request) == [("user", "q"), ("assistant", "Sure: a")] and request.continue_reply


def test_the_models_own_template_is_left_to_it_and_a_play_needs_none(app: App):
    assert built(app, Conversation((QUESTION,))).template is None
    bare = EchoModel(name="bare", chat_template=None)
    assert "Assistant:" in (built(app, Conversation((QUESTION,)), bare, mode="chat").template or "")
    with pytest.raises(NoChatTemplate):
        built(app, Conversation((QUESTION,)), bare)


def test_system_messages_stay_where_they_are_unless_a_character_is_played(app: App):
    messages = (Message("system", "Be brief."), QUESTION, Message("system", "Now."), QUESTION)
    assert turns(built(app, Conversation(messages))) == [(message.role, message.content) for message in messages]
    played = turns(built(app, Conversation(messages, user="Ann"), character="Bo"))
    assert [role for role, _ in played] == ["system", "user", "user"]
    assert played[0][1] == "Be brief.\n\nNow.\n\nBo likes Ann."


def test_the_persons_next_message_can_be_asked_for(app: App):
    conversation = Conversation((QUESTION, Message("assistant", "a")), as_user="And")
    request = built(app, conversation, reply_start="Sure:")
    assert turns(request)[-1] == ("user", "And") and request.continue_reply


def test_tools_go_where_the_template_has_a_place_for_them(app: App):
    conversation = Conversation((QUESTION,), tools=[{"type": "function"}], variables={"thinking": False})
    request = built(app, conversation, EchoModel(chat_template=TOOLS))
    assert request.template_variables == {"thinking": False, "tools": [{"type": "function"}]}
    assert not request.sampling.skip_special_tokens
    with pytest.raises(UserError, match="no place for tools"):
        built(app, conversation)


def test_log_probabilities_that_a_model_cannot_report_are_refused(app: App):

    model = EchoModel(capabilities=replace(EVERYTHING, logprobs=False))
    with pytest.raises(UserError, match="log-probabilities"):
        RequestBuilder(app, "local").build(model, Conversation((QUESTION,)), ChatSettings(), SamplingParams(), logprobs=1)


def test_only_a_reply_can_be_continued_and_only_something_answered(app: App):
    question = StoredMessage(1, 1, None, "user", "q", "whole", 0, 0)
    builder, how = ReplyBuilder(app, "local"), ReplySettings(ChatSettings(), SamplingParams(), None)
    with pytest.raises(UserError, match="Only a reply can be continued"):
        builder.request(EchoModel(), how, [question], continue_reply=True)
    with pytest.raises(UserError, match="nothing to answer"):
        builder.request(EchoModel(), how, [])
    assert builder.request(EchoModel(), how, [question]).overflow == "drop_oldest"
