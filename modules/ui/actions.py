"""What a user can do in a chat, one function each. Owners see only their own; every refusal is a UserError."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

from modules.app import App
from modules.chats.conversation import ChatSettings, request_for
from modules.chats.records import Chat, Figures, StoredMessage
from modules.errors import UserError
from modules.generation.types import GenerationRequest
from modules.library.download_jobs import DownloadJob
from modules.library.wanted import Wanted
from modules.loaders.options import LoadOptions
from modules.ui.preferences import sampling_of, user_name


def settings_of(chat: Chat) -> ChatSettings:
    """A chat's own settings; keys of other versions are left out."""
    return ChatSettings.read({key: value for key, value in chat.settings.items() if key in ChatSettings.model_fields})


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


def _request(app: App, chat: Chat, messages: Sequence[StoredMessage], *, continue_reply: bool = False) -> GenerationRequest:
    settings = settings_of(chat)
    sampling, _ = sampling_of(app, chat.owner)
    return request_for(
        messages,
        settings,
        sampling,
        template=template_of(app, settings),
        own_template=app.engine.model.chat_template,
        character=app.characters.read(chat.owner, settings.character) if settings.character else None,
        user=user_name(app, chat.owner),
        continue_reply=continue_reply,
    )


def _begin(app: App, owner: str, request: GenerationRequest, make: Callable[[], StoredMessage]) -> StoredMessage:
    return app.replies.begin(request, make, preset=sampling_of(app, owner)[1])


def _branch(app: App, owner: str, chat_id: int, leaf: int | None) -> list[StoredMessage]:
    if leaf is None:
        return []
    branch = [node.message for node in app.store.path(owner, chat_id, leaf)]
    if branch and branch[-1].state == "streaming":
        raise UserError("The reply is still being written: stop it or let it end first.")
    return branch


def _answer(app: App, chat: Chat, branch: Sequence[StoredMessage]) -> StoredMessage:
    """A new reply to a branch that is stored already."""
    request = _request(app, chat, branch)
    start = settings_of(chat).reply_start
    parent = branch[-1].id
    return _begin(
        app, chat.owner, request, lambda: app.store.add(chat.owner, chat.id, parent, "assistant", start, state="streaming")
    )


def _say_and_answer(app: App, chat: Chat, branch: Sequence[StoredMessage], content: str) -> StoredMessage:
    """Add what a user says under a branch, and a reply to it. Nothing is kept where the model refuses the request.

    A chat with the id 0 is made first.
    """
    owner, parent = chat.owner, branch[-1].id if branch else None
    content = content.strip()
    if not content:
        raise UserError("The message is empty: write something first.")
    draft = StoredMessage(0, chat.id, parent, "user", content, "whole", 0, 0)
    request = _request(app, chat, [*branch, draft])

    def make() -> StoredMessage:
        kept = chat.id or app.store.create_chat(owner, settings=chat.settings).id
        said = app.store.add(owner, kept, parent, "user", content)
        return app.store.add(owner, kept, said.id, "assistant", settings_of(chat).reply_start, state="streaming")

    return _begin(app, owner, request, make)


def send(app: App, owner: str, chat_id: int, content: str, after: int | None) -> StoredMessage:
    """Say something after message `after` (None: first of all), and begin the reply, which is returned."""
    return _say_and_answer(app, app.store.chat(owner, chat_id), _branch(app, owner, chat_id, after), content)


def begin_chat(app: App, owner: str, content: str, settings: dict[str, object]) -> StoredMessage:
    """Say the first thing in a new chat, which is made only if the model takes the message."""
    kept = ChatSettings.read(settings).differences()
    return _say_and_answer(app, Chat(0, owner, "", False, False, 0, 0, None, kept, 0), [], content)


def regenerate(app: App, owner: str, message_id: int) -> StoredMessage:
    """Another version of a reply; for a message of the user, a reply to it."""
    message = app.store.message(owner, message_id)
    chat = app.store.chat(owner, message.chat_id)
    last = message.id if message.role == "user" else message.parent_id
    return _answer(app, chat, _branch(app, owner, chat.id, last))


def continue_reply(app: App, owner: str, message_id: int) -> StoredMessage:
    """Go on at the end of a reply, in the same message: nothing that was there is lost."""
    message = app.store.message(owner, message_id)
    chat = app.store.chat(owner, message.chat_id)
    request = _request(app, chat, _branch(app, owner, chat.id, message.id), continue_reply=True)

    def make() -> StoredMessage:
        app.store.select(owner, message_id)
        return app.store.reopen(owner, message_id)

    return _begin(app, owner, request, make)


def edit(app: App, owner: str, message_id: int, content: str, *, answer: bool = True) -> StoredMessage:
    """A new version of a message beside the old one; one of the user's is answered, unless `answer` is off."""
    message = app.store.message(owner, message_id)
    chat = app.store.chat(owner, message.chat_id)
    if message.role == "user" and answer:
        return _say_and_answer(app, chat, _branch(app, owner, chat.id, message.parent_id), content)
    if not content.strip():
        raise UserError("The message is empty. Delete it instead.")
    return app.store.add(
        owner,
        chat.id,
        message.parent_id,
        message.role,
        content,
        model=message.model,
        sampling=message.sampling,
        figures=Figures(edited=True),
    )


def delete_message(app: App, owner: str, message_id: int) -> Chat:
    """Take a message and what follows it away; replies being written there end first."""
    message = app.store.message(owner, message_id)
    for reply in app.replies.of_chat(message.chat_id):
        if any(node.message.id == message_id for node in app.store.path(owner, message.chat_id, reply.id)):
            app.replies.stop(reply.id)
    return app.store.delete_branch(owner, message_id)


def delete_chat(app: App, owner: str, chat_id: int) -> None:
    """Take a chat away; replies being written in it end first."""
    app.store.chat(owner, chat_id)
    for reply in app.replies.of_chat(chat_id):
        app.replies.stop(reply.id)
    app.store.delete_chat(owner, chat_id)


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


def load_model(app: App, owner: str, name: str, options: LoadOptions | None = None, *, stop_running: bool = True) -> None:
    """Begin to load a model; the engine's status says how it goes. Raises NotFound, NotAllowed."""
    app.access.require_admin(owner)
    spec = app.models.find(name)
    if spec.problem:
        raise UserError(spec.problem)

    def load() -> None:
        with contextlib.suppress(UserError):  # the engine's status keeps the sentence, and the page shows it
            app.load_model(spec.name, options, stop_running=stop_running)

    threading.Thread(target=load, name="load", daemon=True).start()


def unload_model(app: App, owner: str) -> None:
    """Give the model's memory back; replies being written end."""
    app.access.require_admin(owner)
    app.engine.unload(stop_running=True)


def start_download(app: App, owner: str, name: str, quant: str = "") -> DownloadJob:
    """Begin to fetch ORG/NAME. quant: which of several quantisations. Raises UserError, NotAllowed."""
    app.access.require_admin(owner)
    return app.downloads.start(name, Wanted(quant=quant.strip()))
