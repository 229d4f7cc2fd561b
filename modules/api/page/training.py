"""The addresses that the Training tab's script calls, below chats/training."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from modules.app import App
from modules.errors import UserError
from modules.generation.types import TextDelta
from modules.i18n.sentences import said
from modules.services import training as training_actions
from modules.services import undo


class Resume(BaseModel):
    queue: bool = False


class Use(BaseModel):
    """checkpoint: empty takes the finished adapter."""

    checkpoint: str = ""


class MergeInto(Use):
    """name: of the model that is made."""

    name: str = ""


class Question(BaseModel):
    """adapter: the name of a loaded one; None asks the base model."""

    question: str
    adapter: str | None = None


def router(app: App) -> APIRouter:
    """Whoever is let in may look; what changes something is for administrators."""
    routes = APIRouter(prefix="/training")

    def owner(request: Request) -> str:
        return request.state.owner

    def admin(request: Request) -> str:
        app.access.require_admin(owner(request))
        return owner(request)

    @routes.get("")
    def jobs(request: Request) -> dict[str, Any]:
        return training_actions.list_view(app, owner(request))

    @routes.get("/{id}")
    def job(id: str) -> dict[str, Any]:
        return training_actions.detail_view(app, id)

    @routes.post("/{id}/stop")
    def stop(request: Request, id: str) -> None:
        admin(request)
        app.training.stop(id)

    @routes.post("/{id}/kill")
    def stop_now(request: Request, id: str) -> None:
        admin(request)
        app.training.stop_now(id)

    @routes.post("/{id}/resume")
    def resume(request: Request, id: str, body: Resume) -> None:
        admin(request)
        app.training.resume(id, queue=body.queue)

    @routes.delete("/{id}")
    def delete(request: Request, id: str) -> dict[str, Any]:
        by = admin(request)
        name = app.training.get(id).name
        return undo.told(undo.delete_run(app, by, id), "training.deleted", name=name)

    @routes.post("/{id}/use")
    def use(request: Request, id: str, body: Use) -> dict[str, Any]:
        return training_actions.use_in_chat(app, admin(request), id, body.checkpoint)

    @routes.post("/{id}/adapter")
    def adapter(request: Request, id: str, body: Use) -> str:
        return training_actions.use_adapter(app, admin(request), id, body.checkpoint)

    @routes.post("/ask")
    async def ask(body: Question) -> StreamingResponse:
        """The text of a reply, as it is made."""
        events = await run_in_threadpool(training_actions.ask, app, body.question, body.adapter)

        async def text() -> AsyncIterator[str]:
            try:
                async for event in events:
                    if isinstance(event, TextDelta):
                        yield event.text
            except UserError as error:
                yield f"\n{said(error.message)}"
            finally:
                events.close()

        return StreamingResponse(text(), media_type="text/plain; charset=utf-8")

    @routes.post("/{id}/merge")
    def merge(request: Request, id: str, body: MergeInto) -> None:
        admin(request)
        app.training.merge(id, body.name, body.checkpoint)

    return routes
