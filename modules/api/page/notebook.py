"""The addresses that the Default and Notebook tabs call, below chats/writing: pages, prompts, tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from modules.api.page.dependencies import Owner, Start
from modules.api.page.markdown import as_html, render
from modules.api.page.reply_stream import Renderings, event_response, follow, follow_text, over
from modules.api.page.views import figures_view
from modules.app import App
from modules.chats.conversation import fixed_seed
from modules.chats.notebook import How, Sheet
from modules.errors import UserError
from modules.generation.types import GenerationRequest, name_of
from modules.services import preferences
from modules.services.undo import told

MOST_NEXT = 1000
"""How many next tokens are looked at."""
MOST_TOKENS = 4000
"""How many tokens are shown one by one."""


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


def router(app: App) -> APIRouter:
    routes = APIRouter(prefix="/writing")
    _add_prompts(routes, app)
    _add_tokens(routes, app)
    _add_pages(routes, app)
    return routes


def _add_prompts(routes: APIRouter, app: App) -> None:
    @routes.get("/prompts")
    def prompts(owner: Owner) -> list[str]:
        return app.prompts.of(owner).names()

    @routes.get("/prompt")
    def prompt(owner: Owner, name: str) -> dict[str, str]:
        return {"text": app.prompts.of(owner).read(name)}

    @routes.post("/prompts")
    def save(owner: Owner, body: Prompt) -> dict[str, Any]:
        prompts, name = app.prompts.of(owner), body.name.strip()
        with app.trash.undoable(owner, "prompt", name, [prompts.file(name)]) as undo:
            prompts.save(name, body.text)
        return told(undo, "overwritten" if undo.id else "writing.prompt.saved", name=name)

    @routes.delete("/prompt")
    def delete(owner: Owner, name: str) -> dict[str, Any]:
        prompts = app.prompts.of(owner)
        with app.trash.undoable(owner, "prompt", name, [prompts.file(name)]) as undo:
            prompts.delete(name)
        return told(undo, "writing.prompt.deleted", name=name)


def _add_tokens(routes: APIRouter, app: App) -> None:
    @routes.post("/count")
    def count(body: TextBody) -> dict[str, int]:
        model = app.engine.model
        return {"tokens": len(model.tokenize(body.text, special=True)), "context": model.context_length}

    @routes.post("/tokens")
    def tokens(body: TextBody) -> dict[str, Any]:
        model = app.engine.model
        ids = model.tokenize(body.text, special=True)
        return {"count": len(ids), "tokens": [[token, model.detokenize([token])] for token in ids[:MOST_TOKENS]]}

    @routes.post("/distribution")
    def distribution(owner: Owner, body: NextBody) -> dict[str, Any]:
        """What could follow the text: each token's probability by the model alone, and with the user's settings."""
        sampling, _ = preferences.sampling_of(app, owner)
        model = app.engine.model
        if not model.capabilities.logprobs:
            raise UserError(f"{model.name} cannot report probabilities with its loader.")
        request = GenerationRequest(body.text, fixed_seed(sampling), overflow="drop_oldest")
        found = model.next_tokens(request, MOST_NEXT)
        left = None if found.left is None else {token.id: math.exp(token.logprob) for token in found.left}
        shown = {token.id: token for token in (*(found.left or ())[: body.top], *found.model)}
        before = {token.id: math.exp(token.logprob) for token in found.model}
        order = sorted(shown.values(), key=lambda token: before.get(token.id, 0.0), reverse=True)[: body.top]
        rows = [
            {
                "id": token.id,
                "text": name_of(token),
                "before": before.get(token.id, 0.0),
                "after": None if left is None else left.get(token.id, 0.0),
            }
            for token in order
        ]
        return {"tokens": rows, "kept": None if left is None else len(left), "all": len(before), "most": MOST_NEXT}


def _add_pages(routes: APIRouter, app: App) -> None:
    renderings = Renderings[tuple[str, str]]()

    @routes.get("/{name}")
    def read(owner: Owner, name: str, have: int | None = None) -> dict[str, Any]:
        sheet = app.sheets.read(owner, name)
        if have == sheet.revision and sheet.state != "streaming":
            return {"revision": sheet.revision}
        return _view(sheet)

    @routes.patch("/{name}")
    def change(owner: Owner, name: str, body: Typed) -> dict[str, int]:
        changed = app.sheets.change(owner, name, body.revision, prompt=body.prompt, text=body.text)
        return {"revision": changed.revision}

    @routes.post("/{name}/write")
    def write(owner: Owner, name: str, body: Write) -> dict[str, Any]:
        sampling, preset = preferences.sampling_of(app, owner)
        begun = app.sheets.write(owner, name, fixed_seed(sampling), how=body.how, adapter=body.adapter or None, preset=preset)
        return _view(begun)

    @routes.post("/{name}/stop")
    def stop(owner: Owner, name: str) -> dict[str, bool]:
        return {"stopped": app.sheets.stop((owner, app.sheets.named(name)))}

    @routes.post("/{name}/undo")
    def undo(owner: Owner, name: str) -> dict[str, Any]:
        return _view(app.sheets.undo(owner, name))

    @routes.get("/{name}/rendered")
    def rendered(owner: Owner, name: str, how: Annotated[Literal["markdown", "html"], Query(alias="as")]) -> dict[str, Any]:
        sheet = app.sheets.read(owner, name)
        if how == "html":
            return {"html": as_html(sheet.text)}
        blocks = render(sheet.text, sheet.figures.opened) if sheet.text else []
        return {"blocks": [[block.start, block.kind, block.html] for block in blocks]}

    @routes.get("/{name}/events")
    async def events(
        owner: Owner, name: str, start: Start, how: Annotated[Literal["text", "markdown"], Query(alias="as")] = "text"
    ) -> StreamingResponse:
        key = owner, app.sheets.named(name)

        def final() -> dict[str, Any]:
            view = _view(app.sheets.read(*key))
            return view if how == "markdown" else {field: value for field, value in view.items() if field != "text"}

        async def stream() -> AsyncIterator[str]:
            reply = app.sheets.get(key)
            streaming = preferences.page_of(app, owner).stream
            if reply is None:
                yield over(_view(await asyncio.to_thread(app.sheets.read, *key)))
            elif how == "text":
                async for piece in follow_text(reply, start, final, streaming=streaming):
                    yield piece
            else:
                with renderings.watched(key, reply) as rendering:
                    async for piece in follow(rendering, start, final, streaming=streaming):
                        yield piece

        return event_response(stream())


def _view(sheet: Sheet) -> dict[str, Any]:
    """A page as the browser gets it; `length` is the position that its text ends at."""
    return {
        "prompt": sheet.prompt,
        "text": sheet.text,
        "length": len(sheet.text),
        "state": sheet.state,
        "revision": sheet.revision,
        "figures": figures_view(sheet.figures),
        "steps": sheet.steps,
    }
