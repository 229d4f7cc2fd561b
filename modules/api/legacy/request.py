"""What a body of July 2023 asks for: its names, defaults and ways of writing a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from modules.api.foreign import TABLE, in_our_words
from modules.api.tolerance import MAX_UNKNOWN, refuse_slip
from modules.chats.conversation import ChatSettings
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel, Message
from modules.library.character import Character
from modules.library.modes import NOBODY, Mode
from modules.services.requests import Conversation
from modules.settings.texts import check_text

if TYPE_CHECKING:
    from modules.services.workspace import Workspace

DEFAULTS: Mapping[str, Any] = {"max_tokens": 200, "temperature": 0.5, "repetition_penalty": 1.1}
"""What that API took where a body says nothing; everything else was neutral."""
NEUTRAL: Mapping[str, Any] = {"num_beams": 1}
"""Ways of searching that this server does not have; scripts name them with these values."""


_GENERATE = frozenset({"prompt", "preset", *NEUTRAL, *TABLE, *SamplingParams.model_fields})
_CHAT = _GENERATE - {"prompt"} | {
    "user_input",
    "history",
    "regenerate",
    "_continue",
    "mode",
    "instruction_template",
    "character",
    "your_name",
    "name1",
    "name2",
    "context",
    "context_instruct",
    "chat-instruct_command",
    "chat_instruct_command",
}


def ignored(body: Mapping[str, Any], *, chat: bool, strict: bool) -> list[str]:
    """The fields of a body that have no effect. Raises UserError for a slip of the pen, and for all of them where strict."""
    known = sorted(_CHAT if chat else _GENERATE)
    unknown = [name for name, value in body.items() if value is not None and name not in known]
    if len(unknown) > MAX_UNKNOWN:
        raise UserError(f"More than {MAX_UNKNOWN} fields of this request are not known here. Leave them out.")
    for name in unknown:
        refuse_slip(name, known, strict=strict)
    return unknown


def read_sampling(workspace: Workspace, body: Mapping[str, Any]) -> SamplingParams:
    """The sampling settings in `body`; fields that are none are left alone. Raises UserError."""
    for name, neutral in NEUTRAL.items():
        if body.get(name, neutral) not in (neutral, None):
            raise UserError(f"{name} is not supported: leave it at {neutral}.", param=name)
    said = in_our_words(body)
    values = {name: said[name] for name in SamplingParams.model_fields if said.get(name) is not None}
    preset = _name(body, "preset")
    named = workspace.app.presets.of(workspace.owner).read(preset).given() if preset else {}
    return SamplingParams.read({**DEFAULTS, **named, **values})


def text_request(workspace: Workspace, body: Mapping[str, Any]) -> GenerationRequest:
    """What /generate asks for. Raises UserError."""
    prompt = body.get("prompt")
    check_text(body)
    if not isinstance(prompt, str):
        raise UserError("'prompt' is missing, or is no text.", param="prompt")
    return GenerationRequest(prompt, read_sampling(workspace, body), overflow="drop_oldest")


Pair = tuple[str, str]


@dataclass(frozen=True)
class LegacyChat:
    """What /chat asks for: the pairs so far, the new question, and the beginning of the reply where it goes on."""

    request: GenerationRequest
    internal: tuple[Pair, ...]
    visible: tuple[Pair, ...]
    question: str
    shown_question: str
    beginning: str = ""
    shown_beginning: str = ""

    def history(self, reply: str) -> dict[str, Any]:
        """The conversation with `reply` at its end, in the form of 2023."""
        internal = [*self.internal, (self.question, self.beginning + reply)]
        visible = [*self.visible, (self.shown_question, self.shown_beginning + reply)]
        return {"internal": [list(pair) for pair in internal], "visible": [list(pair) for pair in visible]}


def chat_request(workspace: Workspace, model: LoadedModel, body: Mapping[str, Any]) -> LegacyChat:
    """What /chat asks for, put to the model as the page does it. Raises UserError."""
    check_text(body)
    question = body.get("user_input", "")
    if not isinstance(question, str):
        raise UserError("'user_input' must be a text.", param="user_input")
    history = body.get("history") or {}
    if not isinstance(history, dict):
        raise UserError("'history' must be an object with the lists internal and visible.", param="history")
    internal = _pairs(history.get("internal"), "internal")
    visible = _pairs(history.get("visible"), "visible") or internal
    chat = LegacyChat(GenerationRequest(""), internal, visible, question, question)
    if body.get("regenerate") or body.get("_continue"):
        chat = _of_last_pair(chat, go_on=bool(body.get("_continue")))
    return replace(chat, request=_request_in_mode(workspace, model, body, chat))


def _pairs(value: Any, name: str) -> tuple[Pair, ...]:
    pairs = value or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise UserError(f"history.{name} must be a list of pairs of texts: [[question, reply], …].", param=f"history.{name}")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _of_last_pair(chat: LegacyChat, *, go_on: bool) -> LegacyChat:
    """The last question once more, with the reply so far where it is to go on."""
    if not chat.internal or not chat.visible:
        raise UserError("There is no reply in the history to regenerate or continue.", param="history")
    question, beginning = chat.internal[-1]
    shown_question, shown_beginning = chat.visible[-1]
    kept = replace(
        chat, internal=chat.internal[:-1], visible=chat.visible[:-1], question=question, shown_question=shown_question
    )
    return replace(kept, beginning=beginning, shown_beginning=shown_beginning) if go_on else kept


def _request_in_mode(workspace: Workspace, model: LoadedModel, body: Mapping[str, Any], chat: LegacyChat) -> GenerationRequest:
    sampling = read_sampling(workspace, body)
    mode = body.get("mode", "chat")
    if mode not in get_args(Mode):
        raise UserError(f"'mode' must be chat, chat-instruct or instruct, not {mode!r}.", param="mode")
    settings = ChatSettings(
        mode=mode,
        template=_name(body, "instruction_template") if mode != "chat" else "",
        command=_text(body, "chat-instruct_command", "chat_instruct_command"),
        system_prompt=_text(body, "context_instruct", "context") if mode == "instruct" else "",
    )
    conversation = Conversation(
        tuple(_turns(chat)),
        user=_text(body, "your_name", "name1"),
        character=None if mode == "instruct" else _character(workspace, body),
        continue_reply=bool(chat.beginning),
    )
    return workspace.requests.build(model, conversation, settings, sampling, overflow="drop_oldest")


def _character(workspace: Workspace, body: Mapping[str, Any]) -> Character:
    """The character that is named, or nobody in particular; what the body says of it itself goes over that."""
    name = _name(body, "character")
    character = workspace.app.characters.named(workspace.owner, name) if name else NOBODY
    if spoken := _text(body, "name2"):
        character = replace(character, name=spoken, nickname="")
    return replace(character, context=_text(body, "context") or character.context)


def _text(body: Mapping[str, Any], *names: str) -> str:
    return next((value for name in names if isinstance(value := body.get(name), str) and value), "")


def _name(body: Mapping[str, Any], field: str) -> str:
    """A name that may be "None", which is none."""
    text = _text(body, field)
    return "" if text == "None" else text


def _turns(chat: LegacyChat) -> list[Message]:
    turns = []
    for question, reply in (*chat.internal, (chat.question, chat.beginning)):
        # A greeting is a reply to a mark that 2023 put in place of a question.
        if question and not question.startswith("<|BEGIN"):
            turns.append(Message("user", question))
        if reply:
            turns.append(Message("assistant", reply))
    return turns
