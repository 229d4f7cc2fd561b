"""The addresses that the Default and Notebook tabs call, below chats/writing: pages, prompts, tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from modules.api.page.dependencies import CurrentWorkspace, Start
from modules.api.page.markdown import as_html, render
from modules.api.page.reply_stream import Renderings, event_response, follow, follow_text, over
from modules.api.page.views import figures_view
from modules.chats.notebook import How, NotebookPage
from modules.services.undo import told


class Typed(BaseModel):
    """What a user typed on the page of `revision`."""

    revision: int
    prompt: str | None = None
    text: str | None = None


class Write(BaseModel):
    how: How = "generate"
    adapter: str | None = None


class Prompt(BaseModel):
    name: str
    text: str


class TextBody(BaseModel):
    text: str


class NextBody(TextBody):
    """top: how many of the likeliest tokens are told."""

    top: int = Field(24, ge=1, le=200)


def router() -> APIRouter:
    routes = APIRouter(prefix="/writing")
    _add_prompts(routes)
    _add_tokens(routes)
    _add_pages(routes)
    return routes


def _add_prompts(routes: APIRouter) -> None:
    @routes.get("/prompts")
    def prompts(workspace: CurrentWorkspace) -> list[str]:
        return workspace.notebook.prompts()

    @routes.get("/prompt")
    def prompt(workspace: CurrentWorkspace, name: str) -> dict[str, str]:
        return {"text": workspace.notebook.prompt(name)}

    @routes.post("/prompts")
    def save(workspace: CurrentWorkspace, body: Prompt) -> dict[str, Any]:
        name = body.name.strip()
        undo = workspace.notebook.save_prompt(name, body.text)
        return told(undo, "overwritten" if undo.id else "writing.prompt.saved", name=name)

    @routes.delete("/prompt")
    def delete(workspace: CurrentWorkspace, name: str) -> dict[str, Any]:
        return told(workspace.notebook.delete_prompt(name), "writing.prompt.deleted", name=name)


def _add_tokens(routes: APIRouter) -> None:
    @routes.post("/count")
    def count(workspace: CurrentWorkspace, body: TextBody) -> dict[str, int]:
        return workspace.notebook.count(body.text)

    @routes.post("/tokens")
    def tokens(workspace: CurrentWorkspace, body: TextBody) -> dict[str, Any]:
        return workspace.notebook.tokenize(body.text)

    @routes.post("/distribution")
    def distribution(workspace: CurrentWorkspace, body: NextBody) -> dict[str, Any]:
        """What could follow the text: each token's probability by the model alone, and with the user's settings."""
        return workspace.notebook.next_tokens(body.text, body.top)


def _add_pages(routes: APIRouter) -> None:
    renderings = Renderings[tuple[str, str]]()

    @routes.get("/{name}")
    def read(workspace: CurrentWorkspace, name: str, have: int | None = None) -> dict[str, Any]:
        page = workspace.notebook.pages.read(name)
        if have == page.revision and page.state != "streaming":
            return {"revision": page.revision}
        return _view(page)

    @routes.patch("/{name}")
    def change(workspace: CurrentWorkspace, name: str, body: Typed) -> dict[str, int]:
        return {"revision": workspace.notebook.pages.change(name, body.revision, prompt=body.prompt, text=body.text).revision}

    @routes.post("/{name}/write")
    def write(workspace: CurrentWorkspace, name: str, body: Write) -> dict[str, Any]:
        return _view(workspace.notebook.write(name, body.how, body.adapter or None))

    @routes.post("/{name}/stop")
    def stop(workspace: CurrentWorkspace, name: str) -> dict[str, bool]:
        return {"stopped": workspace.notebook.pages.stop(name)}

    @routes.post("/{name}/undo")
    def undo(workspace: CurrentWorkspace, name: str) -> dict[str, Any]:
        return _view(workspace.notebook.pages.undo(name))

    @routes.get("/{name}/rendered")
    def rendered(
        workspace: CurrentWorkspace, name: str, how: Annotated[Literal["markdown", "html"], Query(alias="as")]
    ) -> dict[str, Any]:
        page = workspace.notebook.pages.read(name)
        if how == "html":
            return {"html": as_html(page.text)}
        blocks = render(page.text, page.figures.opened) if page.text else []
        return {"blocks": [[block.start, block.kind, block.html] for block in blocks]}

    @routes.get("/{name}/events")
    async def events(
        workspace: CurrentWorkspace,
        name: str,
        start: Start,
        how: Annotated[Literal["text", "markdown"], Query(alias="as")] = "text",
    ) -> StreamingResponse:
        notebook = workspace.notebook.pages
        reply = notebook.reply(name)

        def final() -> dict[str, Any]:
            view = _view(notebook.read(name))
            return view if how == "markdown" else {field: value for field, value in view.items() if field != "text"}

        async def stream() -> AsyncIterator[str]:
            streaming = workspace.preferences.page.stream
            if reply is None:
                yield over(_view(await asyncio.to_thread(notebook.read, name)))
            elif how == "text":
                async for piece in follow_text(reply, start, final, streaming=streaming):
                    yield piece
            else:
                with renderings.watched((workspace.owner, name), reply) as rendering:
                    async for piece in follow(rendering, start, final, streaming=streaming):
                        yield piece

        return event_response(stream())


def _view(page: NotebookPage) -> dict[str, Any]:
    """A page as the browser gets it; `length` is the position that its text ends at."""
    return {
        "prompt": page.prompt,
        "text": page.text,
        "length": len(page.text),
        "state": page.state,
        "revision": page.revision,
        "figures": figures_view(page.figures),
        "steps": page.steps,
    }
