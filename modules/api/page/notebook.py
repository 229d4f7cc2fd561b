"""The addresses that the Default and Notebook tabs call, below chats/writing: pages, prompts, tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from modules.api.page.dependencies import CurrentWorkspace
from modules.api.page.markdown import as_html, render
from modules.api.page.views import page_view
from modules.chats.notebook import How
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
    @routes.get("/{name}")
    def read(workspace: CurrentWorkspace, name: str, have: int | None = None) -> dict[str, Any]:
        page = workspace.notebook.pages.read(name)
        if have == page.revision and page.state != "streaming":
            return {"revision": page.revision}
        return page_view(page)

    @routes.patch("/{name}")
    def change(workspace: CurrentWorkspace, name: str, body: Typed) -> dict[str, int]:
        return {"revision": workspace.notebook.pages.change(name, body.revision, prompt=body.prompt, text=body.text).revision}

    @routes.post("/{name}/write")
    def write(workspace: CurrentWorkspace, name: str, body: Write) -> dict[str, Any]:
        return page_view(workspace.notebook.write(name, body.how, body.adapter or None))

    @routes.post("/{name}/stop")
    def stop(workspace: CurrentWorkspace, name: str) -> dict[str, bool]:
        return {"stopped": workspace.notebook.pages.stop(name)}

    @routes.post("/{name}/undo")
    def undo(workspace: CurrentWorkspace, name: str) -> dict[str, Any]:
        return page_view(workspace.notebook.pages.undo(name))

    @routes.get("/{name}/rendered")
    def rendered(
        workspace: CurrentWorkspace, name: str, how: Annotated[Literal["markdown", "html"], Query(alias="as")]
    ) -> dict[str, Any]:
        page = workspace.notebook.pages.read(name)
        if how == "html":
            return {"html": as_html(page.text)}
        blocks = render(page.text, page.figures.opened) if page.text else []
        return {"blocks": [[block.start, block.kind, block.html] for block in blocks]}
