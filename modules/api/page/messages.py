"""The addresses for what can be done with a message beyond writing it: tokens, columns, prompts, marks, differences, the map."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel

from modules.api.page.dependencies import CurrentWorkspace, Said
from modules.app import App
from modules.chats import feedback
from modules.chats.differences import differences
from modules.chats.files import words_of
from modules.chats.search import titled
from modules.errors import Conflict, UserError
from modules.generation.stream import EventStream
from modules.generation.types import Queued, TextDelta
from modules.i18n.sentences import said
from modules.library.paths import path_inside, write_text
from modules.services.compare import Column

EXCERPT = 70


class Switch(BaseModel):
    on: bool


class ChosenToken(BaseModel):
    """stretch, index: the place, as the token view numbers it. alternative: which of those that it lists there."""

    stretch: int
    index: int
    alternative: int


class ColumnChoice(BaseModel):
    adapter: str | None = None
    adapter_strength: float | None = None
    preset: str | None = None
    template: str | None = None


class Draft(Said):
    """What is about to be said, and where: chat None is a new one, with `settings`."""

    chat: int | None = None
    after: int | None = None
    settings: dict[str, Any] | None = None


class Comparison(Draft):
    columns: list[ColumnChoice]


class Added(Draft):
    role: Literal["user", "assistant"]


class Preference(BaseModel):
    rejected: int
    preferred: bool = True


class DataSet(BaseModel):
    kind: feedback.Kind
    name: str


def router(app: App) -> APIRouter:
    """Part of the router of chats/, which has checked who asks."""
    routes = APIRouter()

    # --- tokens

    @routes.post("/token-view")
    def switch_token_view(workspace: CurrentWorkspace, body: Switch) -> None:
        workspace.preferences.set_token_view(body.on)

    @routes.get("/messages/{message_id}/tokens")
    def tokens(workspace: CurrentWorkspace, message_id: int) -> dict[str, Any]:
        return workspace.tokens.view(message_id)

    @routes.post("/messages/{message_id}/tokens")
    def compute_tokens(workspace: CurrentWorkspace, message_id: int) -> dict[str, Any]:
        workspace.tokens.compute(message_id)
        return workspace.tokens.view(message_id)

    @routes.post("/messages/{message_id}/choose")
    def choose(workspace: CurrentWorkspace, message_id: int, body: ChosenToken) -> dict[str, int]:
        return {"reply": workspace.tokens.choose(message_id, body.stretch, body.index, body.alternative).id}

    # --- columns

    @routes.post("/compare")
    def begin_comparison(workspace: CurrentWorkspace, body: Comparison) -> dict[str, Any]:
        columns = [Column(**column.model_dump()) for column in body.columns]
        made = workspace.compare.begin(
            columns, chat_id=body.chat, after=body.after, content=body.whole(), settings=body.settings
        )
        return {"chat": made[0].chat_id, "replies": [reply.id for reply in made]}

    @routes.post("/messages/{message_id}/keep")
    def keep(workspace: CurrentWorkspace, message_id: int) -> None:
        workspace.compare.keep(message_id)

    # --- prompts

    @routes.post("/context")
    def context(workspace: CurrentWorkspace, body: Draft) -> dict[str, Any]:
        return workspace.prompt_preview.context_of_draft(body.chat, body.after, body.whole(), body.settings)

    @routes.post("/prompt")
    def prompt(workspace: CurrentWorkspace, body: Draft) -> dict[str, Any]:
        return workspace.prompt_preview.prompt_of_draft(body.chat, body.after, body.whole(), body.settings)

    @routes.get("/messages/{message_id}/prompt")
    def prompt_of(workspace: CurrentWorkspace, message_id: int) -> dict[str, Any]:
        return workspace.prompt_preview.prompt_of_message(message_id)

    @routes.post("/impersonate")
    def impersonate(workspace: CurrentWorkspace, body: Draft) -> StreamingResponse:
        events = workspace.prompt_preview.impersonate(body.chat, body.after, body.content)
        return StreamingResponse(_lines(events), media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"})

    @routes.post("/add")
    def add(workspace: CurrentWorkspace, body: Added) -> dict[str, int]:
        message = workspace.chats.add(body.chat, body.after, body.role, body.whole(), body.settings)
        return {"chat": message.chat_id, "message": message.id}

    # --- made again

    @routes.post("/messages/{message_id}/again")
    def again(workspace: CurrentWorkspace, message_id: int) -> dict[str, int]:
        return {"reply": workspace.rerun.run(message_id).id}

    @routes.get("/messages/{message_id}/programs")
    def programs(workspace: CurrentWorkspace, message_id: int, address: str) -> dict[str, str]:
        return workspace.rerun.as_programs(message_id, address)

    # --- versions and the tree

    @routes.get("/messages/{old}/difference/{new}")
    def difference(workspace: CurrentWorkspace, old: int, new: int) -> list[tuple[str, str]]:
        return [*differences(workspace.history.messages.get(old).content, workspace.history.messages.get(new).content)]

    @routes.get("/{chat_id}/map")
    def tree(workspace: CurrentWorkspace, chat_id: int) -> dict[str, Any]:
        return {
            "path": [node.message.id for node in workspace.history.messages.path(chat_id)],
            "messages": [
                {
                    "id": message.id,
                    "parent": message.parent_id,
                    "role": message.role,
                    "state": message.state,
                    "words": titled(words_of(message.content) if message.role == "user" else message.content, EXCERPT),
                    "good": bool(message.extra.get("good")),
                }
                for message in workspace.history.messages.tree(chat_id)
            ],
        }

    # --- marks

    @routes.post("/messages/{message_id}/good")
    def good(workspace: CurrentWorkspace, message_id: int, body: Switch) -> None:
        feedback.Feedback(workspace.history).mark_good(message_id, body.on)

    @routes.post("/messages/{message_id}/better")
    def better(workspace: CurrentWorkspace, message_id: int, body: Preference) -> None:
        feedback.Feedback(workspace.history).prefer(message_id, body.rejected, body.preferred)

    @routes.get("/marks")
    def count_marks(workspace: CurrentWorkspace) -> dict[str, Any]:
        return {**feedback.Feedback(workspace.history).counts(), "admin": workspace.is_admin}

    @routes.get("/marks/{kind}.jsonl")
    def download_marks(workspace: CurrentWorkspace, kind: feedback.Kind) -> Response:
        text = feedback.as_jsonl(feedback.Feedback(workspace.history).rows(kind))
        headers = {"Content-Disposition": f'attachment; filename="{kind}.jsonl"'}
        return PlainTextResponse(text, media_type="application/jsonl", headers=headers)

    @routes.post("/marks/dataset")
    def save_marks(workspace: CurrentWorkspace, body: DataSet) -> dict[str, Any]:
        app.access.require_admin(workspace.owner)
        path = path_inside(app.training.places.datasets, body.name.removesuffix(".jsonl"), ".jsonl", "data set's name")
        found = list(feedback.Feedback(workspace.history).rows(body.kind))
        if not found:
            raise UserError("Nothing is marked yet: mark replies in their menu first.")
        if path.exists():
            raise Conflict(f"There is already a data set called {path.name}: choose another name.")
        write_text(path, feedback.as_jsonl(found))
        return {"name": path.name, "rows": len(found)}

    return routes


async def _lines(events: EventStream) -> AsyncIterator[str]:
    """What the model writes, as lines of JSON: {"place"}, {"text"}, {"error"}. Whoever stops reading stops the work."""
    try:
        async for event in events:
            if isinstance(event, Queued):
                yield json.dumps({"place": event.place}) + "\n"
            elif isinstance(event, TextDelta) and event.text:
                yield json.dumps({"text": event.text}, ensure_ascii=False) + "\n"
    except UserError as error:
        yield json.dumps({"error": said(error.message)}, ensure_ascii=False) + "\n"
    finally:
        events.close()
