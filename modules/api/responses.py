"""POST /v1/responses: the newer form of OpenAI's protocol, over the same engine as chat."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from modules.api import tools
from modules.api.chat import generation_request, to_the_first_call
from modules.api.chat_request import ChatCompletionRequest
from modules.api.common import in_words_of, note_ignored, sent, shown_name
from modules.api.errors import REFUSALS, describe
from modules.api.large_bodies import route_class
from modules.api.progress import Progress, with_tokens
from modules.api.replies import chat_logprobs
from modules.api.response_request import ResponseRequest
from modules.api.streaming import (
    EVENTS,
    EventSource,
    after_model_load,
    begun,
    close_all,
    data,
    merged,
    open_streams,
    unless_gone,
)
from modules.errors import ContextTooLong, UserError
from modules.generation.tool_calls import CallArguments, CallBegins, Piece, ToolReader
from modules.generation.types import GenerationEvent, GenerationRequest, LoadedModel, Token

if TYPE_CHECKING:
    from modules.app import App

Status = Literal["in_progress", "completed", "incomplete"]
_CUT = {"length": "max_output_tokens", "abort": "abort"}
"""Why a reply is not whole: what the protocol calls it, and where it has no word what chat says."""
Event = dict[str, Any]


class InputDetails(BaseModel):
    """More about the prompt."""

    cached_tokens: int
    cache_write_tokens: int = 0
    dropped_messages: int = 0


class OutputDetails(BaseModel):
    """More about the reply."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Counts of tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class InputTokens(BaseModel):
    """How long a prompt is."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class ResponseReply(BaseModel):
    """The answer of /v1/responses; its output is a list of messages and calls."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    incomplete_details: dict[str, str] | None = None
    error: None = None
    instructions: str | None = None
    metadata: Any = None
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    max_output_tokens: int | None = None
    tool_choice: Any
    tools: list[dict[str, Any]]
    truncation: str
    store: bool = False


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The response; with stream: true as server-sent events, each with a type of its own.",
        "content": EVENTS,
    }
}


def router(app: App) -> APIRouter:
    """The route of responses."""
    routes = APIRouter(tags=["responses"], responses=REFUSALS, route_class=route_class(app.access))

    @routes.post("/v1/responses", response_model=ResponseReply, responses=STREAMED)
    async def create_response(body: Annotated[ResponseRequest, sent(ResponseRequest)], request: Request) -> Response:
        """Answer a conversation, in the newer form of the protocol."""
        owner = app.access.require_api(request)
        work = after_model_load(app.manager, lambda: answer(app, body, owner, request), stream=bool(body.stream))
        return await unless_gone(request, work)

    @routes.post("/v1/responses/input_tokens")
    async def count_input_tokens(body: Annotated[ResponseRequest, sent(ResponseRequest)], request: Request) -> InputTokens:
        """How many tokens the same body has as a prompt, without answering it."""
        owner = app.access.require_api(request)
        await app.manager.ready()
        with app.manager.lease() as model:
            asked = await generation_request(app, model, await run_in_threadpool(_as_chat, body), owner)
            return InputTokens(input_tokens=await run_in_threadpool(_length, model, asked))

    return routes


def _length(model: LoadedModel, request: GenerationRequest) -> int:
    """Of a prompt that is too long as well: that is what is to be found out."""
    try:
        return len(model.render(request).tokens)
    except ContextTooLong as error:
        if error.tokens is None:
            raise
        return error.tokens


async def answer(app: App, body: ResponseRequest, owner: str, client: Request) -> Response:
    """The whole response, or its beginning where it is streamed. Raises UserError."""
    chat = await run_in_threadpool(_as_chat, body)
    with app.manager.lease() as model:
        request = await generation_request(app, model, chat, owner)
        reader = tools.reader_for(chat, request.template or model.chat_template)
        builder = ResponseBuilder(body, shown_name(model, request.adapter))
        try:
            streams = await open_streams(model, [request])
        except UserError as error:
            raise in_words_of(error, lambda place: _place(chat, place)) from None
    try:
        note_ignored(client, [_place(chat, place) for place in streams[0].ignored])
        events = merged(streams) if chat.parallel_tool_calls else to_the_first_call(merged(streams), streams, [reader])
        if body.stream:
            return EventSource(_stream(builder, await begun(events), reader), streams)
        async for _ in _build(builder, events, reader):
            pass
    except BaseException:
        close_all(streams)
        raise
    return Response(builder.reply().model_dump_json(), media_type="application/json")


def _place(chat: ChatCompletionRequest, place: str) -> str:
    """Where a place in the schema of the response is in the request."""
    if chat.must_call:
        return tools.place_in_tools(chat, place, "parameters")
    field = "text.format.schema" if chat.response_format is not None else "json_schema"
    return f"{field}.{place}" if place else field


def _as_chat(body: ResponseRequest) -> ChatCompletionRequest:
    try:
        return body.as_chat()
    except ValidationError as error:
        message, param = describe(error.errors(), ChatCompletionRequest)
        raise UserError(message, param=param) from None


async def _build(
    builder: ResponseBuilder, arriving: AsyncIterator[tuple[int, list[GenerationEvent]]], reader: ToolReader | None
) -> AsyncGenerator[Event]:
    """Everything that happens to the response, as the protocol's events."""
    for event in builder.begin():
        yield event
    waiting: list[Token] = []
    async for _, batch in arriving:
        text, details = builder.progress.take(batch)
        waiting += details
        pieces: list[Piece] = ([text] if text else []) if reader is None else list(reader.feed(text))
        builder.progress.enough = reader is not None and reader.done
        for piece, tokens in with_tokens(pieces, waiting):
            for event in builder.feed(piece, tokens):
                yield event
    for piece, tokens in with_tokens(reader.finish() if reader is not None else [], waiting):
        for event in builder.feed(piece, tokens):
            yield event
    for event in builder.end(waiting):
        yield event


async def _stream(
    builder: ResponseBuilder, arriving: AsyncIterator[tuple[int, list[GenerationEvent]]], reader: ToolReader | None
) -> AsyncGenerator[bytes]:
    number = 0
    async for event in _build(builder, arriving, reader):
        yield f"event: {event['type']}\n".encode() + data({**event, "sequence_number": number})
        number += 1


@dataclass
class _Item:
    """One message or call of the output while it is being written."""

    index: int
    value: dict[str, Any]

    @property
    def id(self) -> str:
        return self.value["id"]


class ResponseBuilder:
    """The response, growing piece by piece; every method tells what happened as events of the protocol."""

    def __init__(self, body: ResponseRequest, model: str) -> None:
        self._body = body
        self._model = model
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._output: list[dict[str, Any]] = []
        self._open: _Item | None = None
        self._status: Status = "in_progress"
        self.progress = Progress()

    def begin(self) -> Iterator[Event]:
        for kind in ("response.created", "response.in_progress"):
            yield {"type": kind, "response": self.reply().model_dump()}

    def feed(self, piece: Piece, tokens: Sequence[Token] = ()) -> Iterator[Event]:
        """tokens: those of the piece, where log-probabilities are asked for. Calls have no place for them in this protocol."""
        match piece:
            case CallBegins():
                yield from self._close()
                call = {"id": f"fc_{uuid.uuid4().hex}", "call_id": piece.id, "name": piece.name, "arguments": ""}
                yield from self._add({"type": "function_call", **call, "status": "in_progress"})
            case CallArguments():
                yield from self._grow("arguments", piece.text, "response.function_call_arguments.delta")
            case "":
                pass
            case _:
                if self._open is None or self._open.value["type"] != "message":
                    yield from self._close()
                    yield from self._begin_message()
                yield from self._grow("text", piece, "response.output_text.delta", tokens)

    def end(self, tokens: Sequence[Token] = ()) -> Iterator[Event]:
        """Close what is open; a reply without any text is one empty message. tokens: those that added no text at its end."""
        if not self._output:
            yield from self._begin_message()
        if tokens and self._open is not None and self._open.value["type"] == "message":
            yield from self._grow("text", "", "response.output_text.delta", tokens)
        cut = self.progress.reason in _CUT
        yield from self._close("incomplete" if cut else "completed")
        self._status = "incomplete" if cut else "completed"
        kind = "response.incomplete" if cut else "response.completed"
        yield {"type": kind, "response": self.reply().model_dump()}

    def reply(self) -> ResponseReply:
        body = self._body
        return ResponseReply(
            id=self._id,
            created_at=self._created,
            status=self._status,
            model=self._model,
            output=self._output if self._status != "in_progress" else [],
            usage=self._usage() if self._status != "in_progress" else None,
            incomplete_details={"reason": _CUT[self.progress.reason]} if self._status == "incomplete" else None,
            instructions=body.instructions,
            metadata=body.metadata,
            parallel_tool_calls=body.parallel_tool_calls,
            temperature=body.temperature,
            top_p=body.top_p,
            max_output_tokens=body.max_output_tokens,
            tool_choice=body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            tools=[{"strict": None, "parameters": None, **tool.model_dump()} for tool in body.tools],
            truncation=body.truncation,
        )

    def _usage(self) -> ResponseUsage:
        usage = self.progress.usage
        details = InputDetails(cached_tokens=usage.cached_tokens, dropped_messages=self.progress.dropped_messages)
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=details,
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )

    # --- items

    def _begin_message(self) -> Iterator[Event]:
        message = {
            "type": "message",
            "id": f"msg_{uuid.uuid4().hex}",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        yield from self._add(message)
        assert self._open is not None
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield {"type": "response.content_part.added", **self._place(), "part": {**part, "logprobs": []}}
        self._open.value["content"].append(part)

    def _add(self, value: dict[str, Any]) -> Iterator[Event]:
        self._open = _Item(len(self._output), value)
        self._output.append(value)
        shown = {**value, "content": []} if "content" in value else dict(value)
        yield {"type": "response.output_item.added", "output_index": self._open.index, "item": shown}

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        place: dict[str, Any] = {"item_id": self._open.id, "output_index": self._open.index}
        return {**place, "content_index": 0} if self._open.value["type"] == "message" else place

    def _grow(self, key: str, text: str, kind: str, tokens: Sequence[Token] = ()) -> Iterator[Event]:
        assert self._open is not None
        holder = self._open.value["content"][0] if key == "text" else self._open.value
        holder[key] += text
        more = {"logprobs": chat_logprobs(tokens)["content"]} if key == "text" else {}
        holder.get("logprobs", []).extend(more.get("logprobs", []))
        yield {"type": kind, **self._place(), "delta": text, **more}

    def _close(self, status: Status = "completed") -> Iterator[Event]:
        if self._open is None:
            return
        value, place = self._open.value, self._place()
        value["status"] = status
        if value["type"] == "message":
            part = value["content"][0]
            yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": part["logprobs"]}
            yield {"type": "response.content_part.done", **place, "part": part}
        else:
            done = {"arguments": value["arguments"], "name": value["name"]}
            yield {"type": "response.function_call_arguments.done", **place, **done}
        yield {"type": "response.output_item.done", "output_index": self._open.index, "item": value}
        self._open = None
