"""What a user can do in a chat, one function each. Owners see only their own; every refusal is a UserError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modules.app import App
from modules.chats import files
from modules.chats.conversation import ChatSettings, request_for
from modules.chats.records import Chat, Figures, Run, StoredMessage, pictures_of
from modules.errors import UserError
from modules.generation.reasoning import without_reasoning
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, Image
from modules.library.character import Character
from modules.library.modes import counted_by
from modules.services.preferences import sampling_of, token_view, user_name

ALTERNATIVES = 8
"""How many other tokens are kept for each place, where tokens are looked at."""


def settings_of(chat: Chat) -> ChatSettings:
    """A chat's own settings."""
    return settings_from(chat.settings)


def settings_from(values: Mapping[str, Any]) -> ChatSettings:
    """Settings as they were kept; keys of other versions are left out."""
    return ChatSettings.read({key: value for key, value in values.items() if key in ChatSettings.model_fields})


def template_of(app: App, settings: ChatSettings) -> str | None:
    """The Jinja source that a chat uses where it is not the model's own. Raises UserError where there is none at all."""
    if settings.template:
        return app.templates.read(settings.template)
    model = app.engine.model
    if model.chat_template or settings.mode == "chat":
        return None
    fitting = app.templates.choose(model.name)
    if fitting is None:
        raise UserError(
            f"{model.name} has no chat template, and its name fits none that is known. Choose one in the chat's settings.",
            param="template",
        )
    return fitting.source


@dataclass(frozen=True)
class Way:
    """How a reply is to be made: the settings of its chat, and the sampling with the preset that it is."""

    settings: ChatSettings
    sampling: SamplingParams
    preset: str | None


def way_of(app: App, chat: Chat) -> Way:
    """As the chat and its owner have it set now."""
    return Way(settings_of(chat), *sampling_of(app, chat.owner))


def character_of(app: App, owner: str, settings: ChatSettings) -> Character | None:
    """Whom the model plays in a chat. Raises UserError."""
    return app.characters.read(owner, settings.character) if settings.character else None


def request_of(
    app: App,
    owner: str,
    way: Way,
    messages: Sequence[StoredMessage],
    *,
    continue_reply: bool = False,
    as_user: str | None = None,
) -> GenerationRequest:
    """What the model is asked (request_for has the meaning of the rest). Raises UserError."""
    request = request_for(
        messages,
        way.settings,
        way.sampling,
        template=template_of(app, way.settings),
        own_template=app.engine.model.chat_template,
        character=character_of(app, owner, way.settings),
        user=user_name(app, owner),
        count=counted_by(app.engine.model),
        look=lambda message: _seen(app, owner, message),
        continue_reply=continue_reply,
        as_user=as_user,
    )
    records = token_view(app, owner) and app.engine.model.capabilities.logprobs
    return replace(request, logprobs=ALTERNATIVES) if records else request


def _seen(app: App, owner: str, message: StoredMessage) -> tuple[Image, ...]:
    """The pictures of a message, where the model sees any: a chat with some can go on with a model that does not."""
    return app.pictures.images(owner, pictures_of(message.extra)) if app.engine.model.capabilities.images else ()


def run_of(app: App, way: Way, request: GenerationRequest, *, at: int = 0, exact: bool = False) -> Run:
    """What is kept of how a stretch of a reply was made, so that it can be made again."""
    sampling = way.sampling.changed({"seed": request.sampling.seed}).model_dump(mode="json", exclude_defaults=True)
    return Run(app.engine.model.name, at, exact, way.settings.differences(), sampling, way.preset)


def runs_of(message: StoredMessage) -> list[Run]:
    """How a reply was made, stretch by stretch."""
    return [Run.read(values) for values in message.extra.get("runs", ())]


def with_runs(*runs: Run) -> dict[str, Any]:
    """The `extra` of a message that was made so."""
    return {"runs": [run.stored() for run in runs]}


def branch_of(app: App, owner: str, chat_id: int, leaf: int | None) -> list[StoredMessage]:
    """The messages up to `leaf`. Raises UserError while the last one is being written."""
    if leaf is None:
        return []
    branch = [node.message for node in app.store.path(owner, chat_id, leaf)]
    if branch and branch[-1].state == "streaming":
        raise UserError("The reply is still being written: stop it or let it end first.")
    return branch


def _answer(app: App, chat: Chat, branch: Sequence[StoredMessage]) -> StoredMessage:
    """A new reply to a branch that is stored already."""
    way = way_of(app, chat)
    request = request_of(app, chat.owner, way, branch)
    return app.replies.begin(request, lambda: add_reply(app, chat, branch[-1].id, way, request), preset=way.preset)


def add_reply(app: App, chat: Chat, parent: int, way: Way, request: GenerationRequest, **more: Any) -> StoredMessage:
    """The message that a reply will be written into. more: what its `extra` holds besides how it was made."""
    extra = {**with_runs(run_of(app, way, request)), **more}
    start = way.settings.reply_start
    figures = Figures(opened="") if start else None  # the prompt ends with it
    return app.store.add(chat.owner, chat.id, parent, "assistant", start, state="streaming", figures=figures, extra=extra)


def draft_of(chat: Chat, parent: int | None, content: str, pictures: Sequence[int] = ()) -> StoredMessage:
    """What a user is about to say, before it is kept. Raises UserError where it is empty."""
    content = content.strip()
    if not content and not pictures:
        raise UserError("The message is empty: write something first.")
    extra = {"pictures": list(pictures)} if pictures else {}
    return StoredMessage(0, chat.id, parent, "user", content, "whole", 0, 0, extra=extra)


def keep_draft(app: App, chat: Chat, draft: StoredMessage) -> tuple[Chat, StoredMessage]:
    """The draft as a message; a chat with the id 0 is made first."""
    kept = chat if chat.id else app.store.create_chat(chat.owner, settings=chat.settings)
    return kept, app.store.add(chat.owner, kept.id, draft.parent_id, "user", draft.content, extra=draft.extra)


def _say_and_answer(
    app: App, chat: Chat, branch: Sequence[StoredMessage], content: str, pictures: Sequence[int] = ()
) -> StoredMessage:
    """Add what a user says under a branch, and a reply to it. Nothing is kept where the model refuses the request.

    A chat with the id 0 is made first.
    """
    if pictures and not app.engine.model.capabilities.images:
        raise UserError(f"{app.engine.model.name} cannot see pictures. Take them away, or load a model that sees.")
    draft = draft_of(chat, branch[-1].id if branch else None, content, app.pictures.check(chat.owner, pictures))
    way = way_of(app, chat)
    request = request_of(app, chat.owner, way, [*branch, draft])

    def make() -> StoredMessage:
        kept, said = keep_draft(app, chat, draft)
        return add_reply(app, kept, said.id, way, request)

    return app.replies.begin(request, make, preset=way.preset)


def send(app: App, owner: str, chat_id: int, content: str, after: int | None, pictures: Sequence[int] = ()) -> StoredMessage:
    """Say something after message `after` (None: first of all), and begin the reply, which is returned."""
    return _say_and_answer(app, app.store.chat(owner, chat_id), branch_of(app, owner, chat_id, after), content, pictures)


def begin_chat(app: App, owner: str, content: str, settings: dict[str, object], pictures: Sequence[int] = ()) -> StoredMessage:
    """Say the first thing in a new chat, which is made only if the model takes the message."""
    return _say_and_answer(app, new_chat(owner, settings), [], content, pictures)


def new_chat(owner: str, settings: Mapping[str, object] | None) -> Chat:
    """A chat that is not kept yet: its id is 0."""
    return Chat(0, owner, "", False, False, 0, 0, None, ChatSettings.read(settings or {}).differences(), 0)


def regenerate(app: App, owner: str, message_id: int) -> StoredMessage:
    """Another version of a reply; for a message of the user, a reply to it."""
    message = app.store.message(owner, message_id)
    chat = app.store.chat(owner, message.chat_id)
    last = message.id if message.role == "user" else message.parent_id
    return _answer(app, chat, branch_of(app, owner, chat.id, last))


def continue_reply(app: App, owner: str, message_id: int) -> StoredMessage:
    """Go on at the end of a reply: in the same message where it is the last one, else in a version of it.

    What others have answered to stays as they saw it.
    """
    message = app.store.message(owner, message_id)
    chat = app.store.chat(owner, message.chat_id)
    way = way_of(app, chat)
    request = request_of(app, owner, way, branch_of(app, owner, chat.id, message.id), continue_reply=True)

    def make() -> StoredMessage:
        extra = with_runs(*runs_of(message), run_of(app, way, request, at=len(message.content)))
        if not app.store.answered(owner, message_id):
            app.store.select(owner, message_id)
            app.store.annotate(owner, message_id, extra)
            return app.store.reopen(owner, message_id)
        copy = app.store.add(
            owner,
            chat.id,
            message.parent_id,
            "assistant",
            message.content,
            state="streaming",
            figures=message.figures,
            extra={**message.extra, **extra},
        )
        app.store.set_tokens(owner, copy.id, app.store.tokens(owner, message.id))
        return copy

    return app.replies.begin(request, make, preset=way.preset)


def edit(app: App, owner: str, message_id: int, content: str, *, answer: bool = True) -> StoredMessage:
    """A new version of a message beside the old one; one of the user's is answered, unless `answer` is off.

    Its pictures and files stay.
    """
    message = app.store.message(owner, message_id)
    chat = app.store.chat(owner, message.chat_id)
    pictures = pictures_of(message.extra)
    if message.role == "user":
        content = files.joined(files.split(message.content)[0], content)
    if message.role == "user" and answer:
        return _say_and_answer(app, chat, branch_of(app, owner, chat.id, message.parent_id), content, pictures)
    if not content.strip():
        raise UserError("The message is empty. Delete it instead.")
    opened = message.figures.opened
    if opened and not without_reasoning(content, opened):
        opened = ""  # people took the end of the thinking away: what is left is said
    return app.store.add(
        owner,
        chat.id,
        message.parent_id,
        message.role,
        content,
        model=message.model,
        sampling=message.sampling,
        figures=Figures(edited=True, opened=opened),
        extra={"pictures": list(pictures)} if pictures else None,
    )


def delete_message(app: App, owner: str, message_id: int) -> Chat:
    """Take a message and what follows it away; replies being written there end first."""
    message = app.store.message(owner, message_id)
    for reply in _being_written(app, owner, message.chat_id):
        if any(node.message.id == message_id for node in app.store.path(owner, message.chat_id, reply)):
            app.replies.stop(reply)
    return app.store.delete_branch(owner, message_id)


def delete_chat(app: App, owner: str, chat_id: int) -> None:
    """Take a chat away; replies being written in it end first."""
    for reply in _being_written(app, owner, chat_id):
        app.replies.stop(reply)
    app.store.delete_chat(owner, chat_id)


def _being_written(app: App, owner: str, chat_id: int) -> list[int]:
    return [message.id for message in app.store.tree(owner, chat_id) if message.state == "streaming"]


def stop(app: App, owner: str, message_id: int) -> bool:
    """End a reply of one's own."""
    app.store.message(owner, message_id)
    return app.replies.stop(message_id)


def change_settings(app: App, owner: str, chat_id: int, values: dict[str, object]) -> Chat:
    """Change the chat's own settings. Raises UserError for values that cannot be."""
    checked = settings_of(app.store.chat(owner, chat_id)).changed(values)
    if checked.template:
        app.templates.read(checked.template)
    if checked.character:
        app.characters.read(owner, checked.character)
    return app.store.change_settings(owner, chat_id, checked.differences() | dict.fromkeys(_neutral(checked)))


def _neutral(settings: ChatSettings) -> set[str]:
    return set(ChatSettings.model_fields) - set(settings.differences())
