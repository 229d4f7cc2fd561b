"""A reply made again exactly, and how a program would ask for it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modules.app import App
from modules.chats.records import Run, StoredMessage
from modules.errors import Conflict, UserError
from modules.generation.types import GenerationRequest, Message
from modules.services.chats import Way, add_reply, branch_of, request_of, run_of, runs_of, template_of, with_runs
from modules.services.tokens import exact_request, made_way, way_of_run

KEY = "TEXTLOOM_API_KEY"


def run_again(app: App, owner: str, message_id: int) -> StoredMessage:
    """A version of a reply from the same prompt, seed, sampling and adapter. Raises UserError where that cannot be.

    Of a reply that was continued, the last stretch is made again. The version's `extra["again"]` names the reply; the page
    compares the two when it is finished.
    """
    message = app.store.message(owner, message_id)
    chat = app.store.chat(owner, message.chat_id)
    runs = runs_of(message)
    if message.role != "assistant" or not runs:
        raise UserError("What made this reply is not known: it was written by hand, imported, or made by an older version.")
    if message.state == "streaming":
        raise UserError("This reply is still being written.")
    run = runs[-1]
    loaded = app.engine.model
    if loaded.name != run.model:
        raise Conflict(f"This reply was made by {run.model}, and {loaded.name} is loaded. Load {run.model} first.")
    way = way_of_run(run)
    request, tokens = _request(app, owner, message, run, way)

    def make() -> StoredMessage:
        if not run.at:
            parent = message.parent_id
            if parent is None:
                raise UserError("This reply answers nothing.")
            return add_reply(app, chat, parent, way, request, again=message.id)
        again = run_of(app, way, request, at=run.at, exact=run.exact)
        version = app.store.add(
            owner,
            chat.id,
            message.parent_id,
            "assistant",
            message.content[: run.at],
            state="streaming",
            extra={**with_runs(*runs[:-1], again), "again": message.id},
        )
        app.store.set_tokens(owner, version.id, tokens)
        return version

    return app.replies.begin(request, make, preset=way.preset)


def _request(app: App, owner: str, message: StoredMessage, run: Run, way: Way) -> tuple[GenerationRequest, list[Any]]:
    """(the request of a run, the tokens that are known of the text before it)."""
    branch = branch_of(app, owner, message.chat_id, message.parent_id)
    if not run.at:
        return request_of(app, owner, way, branch), []
    before = [stretch for stretch in app.store.tokens(owner, message.id) if stretch.at < run.at]
    if run.exact:
        if not before:
            raise Conflict("The tokens that this reply went on from are not kept any more.")
        request = exact_request(app, owner, message, way, before)
        return replace(request, logprobs=request.logprobs), before
    return request_of(
        app, owner, way, [*branch, replace(message, content=message.content[: run.at])], continue_reply=True
    ), before


def comparison(app: App, owner: str, version: StoredMessage) -> dict[str, Any] | None:
    """How a reply that was made again came out beside the first one; None where it is no such reply, or not finished."""
    first_id = version.extra.get("again")
    if not isinstance(first_id, int) or version.state == "streaming":
        return None
    try:
        first = app.store.message(owner, first_id)
    except UserError:
        return None
    hashes = {first.figures.prompt_hash, version.figures.prompt_hash}
    return {
        "of": first.id,
        "same_prompt": len(hashes) == 1 if None not in hashes else None,
        "same_text": first.content == version.content,
    }


# --- as a program would ask


def as_programs(app: App, owner: str, message_id: int, address: str) -> dict[str, str]:
    """{"curl", "python"}: how to ask the API at `address` (…/v1) for a reply. Raises UserError."""
    message = app.store.message(owner, message_id)
    chat = app.store.chat(owner, message.chat_id)
    way = made_way(app, chat, message)
    if message.role == "assistant":
        runs = runs_of(message)
        run = runs[-1] if runs else Run(message.model or "")
        request, _ = _request(app, owner, message, replace(run, exact=False), way)
    else:
        request = request_of(app, owner, way, branch_of(app, owner, chat.id, message.id))
    path, body = api_body(request, message.model or app.engine.model.name, _template_named(app, request, way))
    return {"curl": _curl(address + path, body), "python": _python(address, path, body)}


def _template_named(app: App, request: GenerationRequest, way: Way) -> str | None:
    """How the API is told the template of a request: by name or as source, None where it would take that one by itself."""
    named = way.settings.template
    if named and request.template == app.templates.read(named):
        return named
    return None if request.template == template_of(app, way.settings) else request.template


def api_body(request: GenerationRequest, model: str, template: str | None) -> tuple[str, dict[str, Any]]:
    """(address below /v1, body) of the API call that makes `request`."""
    body: dict[str, Any] = {"model": model}
    if isinstance(request.prompt, str):
        path = "/completions"
        body["prompt"] = request.prompt
    else:
        path = "/chat/completions"
        body["messages"] = [
            {"role": part.role, "content": part.content} for part in request.prompt if isinstance(part, Message)
        ]
        if template:
            body["template"] = template
        if request.continue_reply:
            body["continue_final_message"] = True
    sampling = request.sampling
    body |= {**sampling.model_dump(mode="json", exclude_defaults=True), "max_tokens": sampling.max_tokens}
    if request.adapter:
        body |= {"adapter": request.adapter, "adapter_strength": request.adapter_strength}
    body["truncate"] = "oldest"
    return path, body


def _curl(address: str, body: Mapping[str, Any]) -> str:
    text = json.dumps(body, ensure_ascii=False, indent=2)
    return (
        f"curl {shlex.quote(address)} \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f'  -H "Authorization: Bearer ${KEY}" \\\n'
        f"  -d {shlex.quote(text)}\n"
    )


_OPENAI = {
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "logit_bias",
}


def _python(address: str, path: str, body: Mapping[str, Any]) -> str:
    known = {key: value for key, value in body.items() if key in _OPENAI}
    more = {key: value for key, value in body.items() if key not in _OPENAI}
    call = "chat.completions" if path.startswith("/chat") else "completions"
    answer = "message.content" if path.startswith("/chat") else "text"
    lines = [f"    {key}={value!r}," for key, value in known.items()]
    if more:
        lines.append(f"    extra_body={more!r},")
    return "\n".join(
        [
            "import os",
            "",
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url={address!r}, api_key=os.environ.get("{KEY}", "none"))',
            f"reply = client.{call}.create(",
            *lines,
            ")",
            f"print(reply.choices[0].{answer})",
            "",
        ]
    )
