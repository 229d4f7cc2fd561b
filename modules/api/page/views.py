"""What the chat view is told, as JSON: a chat with its shown branch, the list, the menus, the pulse."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any

from modules.api.model_answers import engine_view, model_view, starter_download
from modules.api.page.markdown import Block, render
from modules.app import VERSION, App
from modules.chats import files
from modules.chats.notebook import NotebookPage
from modules.chats.records import Figures, ListedChat, PathMessage, StoredMessage
from modules.i18n.sentences import said
from modules.library.disk import size_text
from modules.library.hardware import this_machine
from modules.services.reply_builder import settings_of
from modules.services.workspace import Workspace

PAGE_OF_MESSAGES = 60
UNSEEN = {"runs"}
"""What a message keeps that its view has no use for."""
LIBRARIES = ("torch", "transformers", "bitsandbytes", "gptqmodel", "peft", "xllamacpp", "gradio")


@lru_cache(maxsize=4096)
def _rendered(message_id: int, changed: float, content: str, opened: str | None) -> tuple[Block, ...]:
    return tuple(render(content, opened))


def block_view(block: Block) -> list[Any]:
    return [block.start, block.kind, block.html]


def message_view(node: PathMessage, known: Mapping[int, float]) -> dict[str, Any]:
    """One message; without its text where the browser has it as it is (`known`: message id → time of its last change)."""
    message = node.message
    view: dict[str, Any] = {
        "id": message.id,
        "parent": message.parent_id,
        "role": message.role,
        "state": message.state,
        "changed": message.changed,
        "created": message.created,
        "versions": node.versions,
        "model": message.model,
        "figures": figures_view(message.figures),
        "extra": {key: value for key, value in message.extra.items() if key not in UNSEEN},
    }
    if known.get(message.id) != message.changed:
        view |= text_view(message)
    return view


def figures_view(figures: Figures) -> dict[str, Any]:
    """As they are kept, with the reason of a failure in the language of whoever looks."""
    return figures.stored() | ({"error": said(figures.error)} if figures.error else {})


def text_view(message: StoredMessage) -> dict[str, Any]:
    """The text of a message: as it is for people's own, as blocks for a model's. Replies being written come by events."""
    if message.role == "user":
        attached, words = files.split(message.content)
        return {"text": words, "files": [[file.name, len(file.text)] for file in attached]}
    if message.role != "assistant":
        return {"text": message.content}
    if message.state == "streaming":
        return {"blocks": []}
    blocks = _rendered(message.id, message.changed, message.content, message.figures.opened)
    return {"blocks": [block_view(block) for block in blocks]}


def source_view(message: StoredMessage) -> dict[str, Any]:
    """A message as it is edited: what was said, and the files that stay with it."""
    attached, words = files.split(message.content) if message.role == "user" else ([], message.content)
    return {"content": words, "files": [dataclasses.asdict(file) for file in attached]}


def reply_view(workspace: Workspace, node: PathMessage, known: Mapping[int, float]) -> dict[str, Any]:
    """A message, whether its tokens are kept, and how it came out beside the one that it was made again from."""
    view = message_view(node, known) | {"tokens": bool(workspace.history.tokens.known([node.message.id]))}
    if again := workspace.rerun.comparison(node.message):
        view["again"] = again
    return view


def chat_view(workspace: Workspace, chat_id: int, known: Mapping[int, float], limit: int = PAGE_OF_MESSAGES) -> dict[str, Any]:
    """A chat with the last `limit` messages of its shown branch; `earlier` says how many come before them.

    columns: the replies that stand beside the last one while they are compared.
    """
    chat = workspace.history.chats.get(chat_id)
    path = workspace.history.messages.path(chat_id)
    shown = path[-limit:]
    return {
        "id": chat.id,
        "title": chat.title,
        "pinned": chat.pinned,
        "revision": chat.revision,
        "settings": settings_of(chat).model_dump(mode="json"),
        "speakers": workspace.characters.speakers(settings_of(chat)),
        "earlier": len(path) - len(shown),
        "messages": [reply_view(workspace, node, known) for node in shown],
        "columns": [reply_view(workspace, node, known) for node in workspace.compare.columns_beside(path[-1])] if path else [],
    }


def list_view(entries: list[ListedChat]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(entry) for entry in entries]


def pulse_view(workspace: Workspace, chat_id: int | None) -> dict[str, Any]:
    """What changes by itself, as it is now; the event stream tells it as it changes."""
    chats = workspace.history.chats
    revision = chats.revision(chat_id) if chat_id is not None else None
    return {
        **engine_status_view(workspace.app),
        **own_status_view(workspace),
        "list": chats.list_revision(),
        "chat": revision,
    }


def engine_status_view(app: App) -> dict[str, Any]:
    """The part of the status that is the same for everyone, but for the language."""
    engine = engine_view(app, app.manager.status)
    return {
        "epoch": app.started,
        "engine": engine.model_copy(update={"seconds": int(engine.seconds)}),  # it is told once a second
        "models": len(app.models.all()),
        "presets": len(app.presets.names()),
        "starter": starter_download(app),
    }


def own_status_view(workspace: Workspace) -> dict[str, Any]:
    """The part of the status that is a user's own."""
    return {
        "preset": workspace.preferences.sampling[1],
        "tokens": workspace.preferences.token_view,
        "admin": workspace.is_admin,
    }


def menus_view(workspace: Workspace) -> dict[str, Any]:
    """What can be chosen: models, presets, templates."""
    app = workspace.app
    return {
        "models": [model_view(spec) for spec in sorted(app.models.all(), key=lambda spec: bool(spec.problem))],
        "presets": workspace.preferences.presets(),
        "templates": app.templates.names(),
        "admin": workspace.is_admin,
    }


def page_view(page: NotebookPage) -> dict[str, Any]:
    """A page of the notebook as the browser gets it; `length` is the position that its text ends at."""
    return {
        "prompt": page.prompt,
        "text": page.text,
        "length": len(page.text),
        "state": page.state,
        "revision": page.revision,
        "figures": figures_view(page.figures),
        "steps": page.steps,
    }


def server_view(workspace: Workspace) -> dict[str, Any]:
    """What this server runs, for the Session tab and for reports of mistakes: no name, path or address of this machine."""
    machine = this_machine()
    model = workspace.app.manager.loaded
    status = model.status() if model else None
    return {
        "owner": workspace.owner if workspace.app.access.logins else None,
        "admin": workspace.is_admin,
        "facts": {
            "Textloom": VERSION,
            "Python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "memory": _words("free", all=size_text(machine.memory_total), free=size_text(machine.memory_free)),
            **{
                f"gpu {number}": _words("free", all=f"{gpu.name}, {size_text(gpu.total)}", free=size_text(gpu.free))
                for number, gpu in enumerate(machine.gpus)
            },
            **({} if machine.gpus else {"gpu": _words("none")}),
            "model": model.name if model else _words("none"),
            "context": model.context_length if model else "",
            "replies": _words("queue", running=status.running, waiting=status.waiting) if status else "",
            **{name: version for name in LIBRARIES if (version := _version(name))},
        },
    }


def _words(key: str, **values: Any) -> dict[str, Any]:
    """What the page says in its own language: the key below fact.value, and what stands in it."""
    return {"words": f"fact.value.{key}", "values": values}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
