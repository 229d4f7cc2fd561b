"""Chat templates: Jinja from a model, a file or a request, run in a bounded sandbox (generation/sandbox.py), as transformers reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Template, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser

from modules.errors import UserError
from modules.generation.sandbox import BoundedEnvironment, TooMuch
from modules.generation.turns import fitted
from modules.settings.texts import parse_json

if TYPE_CHECKING:
    from modules.generation.types import Message, Role

TurnKind = Literal["system", "greeting", "repeated", "tool"]


_PLACE = "Here-it-begins"
"""Stands for a text that is still to be written, while the words around it are made."""


class _Refused(Exception):
    """A template called raise_exception: the conversation has a form that the model was not made for."""


class _GenerationBlock(Extension):
    """{% generation %}…{% endgeneration %} marks what the assistant says; for rendering it is transparent."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Any) -> str:
        return caller()


_LONGEST_ERROR = 500


def _refuse(message: str) -> None:
    raise _Refused(message)


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.globals["raise_exception"] = lambda message: _refuse(environment.text(message))
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form[:200])
    return environment


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    return _environment().compile_bounded(source)


def _told(error: Exception) -> str:
    """What an error says, as far as a person reads."""
    said = str(error) or type(error).__name__
    return said if len(said) <= _LONGEST_ERROR else said[:_LONGEST_ERROR] + " …"


class _TakesTooMuch(UserError):
    """A template went beyond its allowance of time, steps or text."""


class Arguments(dict[str, Any]):
    """The arguments of a call: an object for templates that look into it, and the text as it was sent for those that join it.

    Raises ValueError for text that is no JSON object; none at all is one without entries.
    """

    def __init__(self, sent: str) -> None:
        values = parse_json(sent) if sent.strip() else {}
        if not isinstance(values, dict):
            raise ValueError("not an object")
        super().__init__(values)
        self._sent = sent if sent.strip() else "{}"

    def changed(self, change: Callable[[Any], Any]) -> Arguments:
        """With what `change` makes of the object and of the text; itself where both stay the same objects."""
        values = dict(self)
        changed, sent = change(values), change(self._sent)
        if changed is values and sent is self._sent:
            return self
        made = Arguments("")
        made.update(changed)
        made._sent = sent
        return made

    def __str__(self) -> str:
        return self._sent

    def __add__(self, other: str) -> str:
        return self._sent + other

    def __radd__(self, other: str) -> str:
        return other + self._sent


def as_template_message(message: Message) -> dict[str, Any]:
    """A Message in the form that chat templates expect."""
    content: Any = message.content
    if message.images:
        content = [{"type": "image"} for _ in message.images] + [{"type": "text", "text": message.content}]
    extra = dict(message.extra)
    if isinstance(calls := extra.get("tool_calls"), list | tuple):
        extra["tool_calls"] = [as_template_call(call) for call in calls]
    return {**extra, "role": message.role, "content": content}


def as_template_call(call: Any) -> Any:
    """A call of a tool in the form that chat templates expect; as it is where its arguments are no JSON object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(sent := function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": Arguments(sent)}}
    except ValueError:  # training data may have anything there
        return call


def check_template(source: str) -> None:
    """Raises UserError where `source` is not valid Jinja."""
    try:
        _compiled(source)
    except TemplateSyntaxError as error:
        raise UserError(f"The chat template has a mistake in line {error.lineno}: {error.message}", param="template") from None
    except Exception as error:  # noqa: BLE001 — Python's own compiler has limits too
        raise UserError(f"The chat template cannot be read: {_told(error)}", param="template") from None


def render_chat(
    source: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_reply: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt text of `messages`, whose turns are fitted to what the template can show.

    continue_reply: the prompt ends within the last message, whose text it begins; one without text is about to begin.
    variables: bos_token, eos_token, tools, … for the template. Raises UserError when the template cannot be used.
    """
    check_template(source)
    turns = fitted(messages, lambda roles: shows(source, roles))
    if any(turn.role == "tool" for turn in turns) and _loses_answers(source):
        raise UserError(
            "The chat template leaves out what tools answered, so the model would not see it. "
            "Choose a template or model that knows tools, or leave these turns out.",
            param="messages",
        )
    return _as_they_are(
        source, turns, add_generation_prompt=add_generation_prompt, continue_reply=continue_reply, variables=variables
    )


def takes_as_they_are(source: str, messages: Sequence[Message]) -> bool:
    """Whether a template is given these very turns, and not others that it can show."""
    return _is_comment(source) or fitted(messages, lambda roles: shows(source, roles)) == list(messages)


def _as_they_are(
    source: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_reply: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Like `render_chat`, with these very turns."""
    check_template(source)
    if continue_reply and messages and not messages[-1].content.strip():
        return _before_last(source, messages, variables)
    turns = [as_template_message(message) for message in messages]
    values = {"tools": None, "documents": None, "bos_token": "", "eos_token": "", **(variables or {})}
    values["add_generation_prompt"] = add_generation_prompt and not continue_reply
    try:
        text = _environment().render(_compiled(source), {"messages": turns, **values})
        text.encode()
    except _Refused as error:
        raise UserError(f"The model's chat template refuses this conversation: {_told(error)}", param="messages") from None
    except TooMuch as error:
        raise _TakesTooMuch(f"The chat template is not for this conversation: {error}.", param="template") from None
    except Exception as error:  # noqa: BLE001 — whatever a stranger's template leads to is its own fault
        raise UserError(f"The chat template cannot render this conversation: {_told(error)}", param="template") from None
    return _cut_after_last(text, messages[-1].content) if continue_reply and messages else text


@lru_cache(maxsize=256)
def shows(source: str, roles: tuple[Role, ...]) -> bool:
    """Whether a template can render a conversation of these roles as it is, and the model sees all of it."""
    from modules.generation.types import Message

    turns = [Message(role, f"what turn {number} says") for number, role in enumerate(roles)]
    text = _tried(source, turns)
    return text is not None and all(turn.content in text for turn in turns)


def _tried(source: str, turns: Sequence[Message], variables: Mapping[str, Any] | None = None) -> str | None:
    """The text of turns that are made to learn what a template does; None where it cannot render them.

    Raises UserError where it takes too much: that ends the request, and is no word about the template.
    """
    try:
        return _as_they_are(source, turns, variables=variables)
    except _TakesTooMuch:
        raise
    except UserError:
        return None


@lru_cache(maxsize=256)
def _loses_answers(source: str) -> bool:
    """Whether a template renders a conversation with the answer of a tool, and leaves the answer out."""
    from modules.generation.types import Message

    function = {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    turns = [
        Message("user", "What time is it?"),
        Message("assistant", "", extra={"tool_calls": [call]}),
        Message("tool", _PLACE, extra={"tool_call_id": call["id"], "name": "clock"}),
    ]
    text = _tried(source, turns, {"tools": [{"type": "function", "function": function}]})
    return text is not None and _PLACE not in text  # what it cannot render it says itself


_KINDS: dict[TurnKind, tuple[Role, ...]] = {
    "system": ("system", "user"),
    "greeting": ("assistant", "user"),
    "repeated": ("user", "user"),
}


@lru_cache(maxsize=64)
def has_no_place_for(source: str) -> tuple[TurnKind, ...]:
    """The kinds of turns that a working template would lose or refuse: all but the answers of tools are fitted to it."""
    if template_problem(source) is not None or _is_comment(source):
        return ()
    try:
        kinds: tuple[TurnKind, ...] = tuple(kind for kind, roles in _KINDS.items() if not shows(source, roles))
        return (*kinds, "tool") if _loses_answers(source) else kinds
    except _TakesTooMuch:
        return ()


@lru_cache(maxsize=256)
def picture_mark(source: str) -> str:
    """What a template puts where a picture is; empty where it shows none. It is what a second picture adds to a turn with one."""
    from modules.generation.types import Image, Message

    if "image" not in source:
        return ""
    picture = Image(b"")
    one, two = (_tried(source, (Message("user", _PLACE, (picture,) * number),)) for number in (1, 2))
    if one is None or two is None:
        return ""
    common = next((at for at, (here, there) in enumerate(zip(one, two, strict=False)) if here != there), len(one))
    return two[max(0, common - len(two) + len(one)) : common]


def _before_last(source: str, messages: Sequence[Message], variables: Mapping[str, Any] | None) -> str:
    """The prompt up to where the text of the last message would begin."""
    last = messages[-1]
    if last.role == "assistant":
        return _as_they_are(source, messages[:-1], variables=variables) + last.content
    marked = replace(last, content=_PLACE)
    text = _as_they_are(source, [*messages[:-1], marked], continue_reply=True, variables=variables)
    return text.removesuffix(_PLACE) + last.content


def _cut_after_last(text: str, beginning: str) -> str:
    """Drop what the template puts after the last message, so that the model goes on with it."""
    for form in (beginning, beginning.strip()):
        at = text.rfind(form) if form else -1
        if at >= 0:
            return text[: at + len(form)] + (beginning[len(beginning.rstrip()) :] if form != beginning else "")
    raise UserError("This chat template does not show the last message as it is, so it cannot be continued.", param="template")


def _is_comment(source: str) -> bool:
    """Whether there is nothing but a comment: the conversation is rendered elsewhere."""
    return bool(source.strip()) and not re.sub(r"\{#.*?#\}", "", source, flags=re.DOTALL).strip()


@lru_cache(maxsize=64)
def template_problem(source: str) -> str | None:
    """What is wrong with a chat template, as a sentence, by trying it on a small conversation; None where nothing is.

    Tried: that it renders at all, shows each turn in its order and once, tells whose turn it is, and lets a reply be continued.
    """
    from modules.generation.types import Message

    if _is_comment(source):
        return None
    said = ("What is in the blue box?", "A brass key is in it.", "And in the red one?")
    turns = [Message(role, text) for role, text in zip(("user", "assistant", "user"), said, strict=True)]
    variables = {"bos_token": "", "eos_token": "<eos>"}
    try:
        asked = render_chat(source, turns, variables=variables)
        bare = render_chat(source, turns, variables=variables, add_generation_prompt=False)
    except UserError as error:
        return error.message
    places = [asked.find(text) for text in said]
    if not asked.strip():
        return "It makes an empty prompt of a conversation."
    if missing := next((turn for turn, place in zip(turns, places, strict=True) if place < 0), None):
        return f"It leaves out what the {_SPEAKER[missing.role]} said."
    if places != sorted(places):
        return "It shows the turns of a conversation in another order."
    if repeated := next((text for text in said if asked.count(text) > 1), None):
        return f"It shows a turn twice (“{repeated}”)."
    if not asked[places[0] + len(said[0]) : places[1]].strip():
        return "It does not tell the model who said what."
    if asked == bare and asked.rstrip().endswith(said[-1]):
        return "It does not tell the model that it is its turn to answer."
    try:
        render_chat(source, turns[:2], variables=variables, continue_reply=True)
    except UserError as error:
        return error.message
    return None


_SPEAKER = {"user": "user", "assistant": "model"}
