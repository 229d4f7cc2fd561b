"""POST /v1/chat/completions: a conversation in, one reply or several out."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from modules.api import tools
from modules.api.chat_request import ChatCompletionRequest, JsonFormat, SchemaFormat
from modules.api.common import (
    chosen_adapter,
    effective_sampling,
    in_words_of,
    note_ignored,
    replies_of,
    sent,
    shown_name,
    whole_context,
)
from modules.api.conversation import read_messages, tools_for_template
from modules.api.errors import REFUSALS
from modules.api.large_bodies import route_class
from modules.api.progress import Head, Progress, with_tokens
from modules.api.replies import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    FunctionCall,
    PromptDetails,
    ReplyMessage,
    ToolCallReply,
    UsageReply,
    chat_logprobs,
    counts_so_far,
    usage_of,
)
from modules.api.streaming import (
    DONE,
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
from modules.chats.conversation import ChatSettings
from modules.errors import UserError
from modules.generation.stream import EventStream
from modules.generation.tool_calls import CallArguments, CallBegins, Piece, ToolReader
from modules.generation.types import GenerationEvent, GenerationRequest, LoadedModel, Token
from modules.services.requests import Conversation, RequestBuilder

if TYPE_CHECKING:
    from modules.app import App

Arriving = AsyncIterator[tuple[int, list[GenerationEvent]]]
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The reply; with stream: true as server-sent events, closed by [DONE].",
        "content": EVENTS,
    }
}


def router(app: App) -> APIRouter:
    """The route of chat."""
    routes = APIRouter(tags=["chat"], responses=REFUSALS, route_class=route_class(app.access))

    @routes.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED)
    async def create_chat_completion(
        body: Annotated[ChatCompletionRequest, sent(ChatCompletionRequest)], request: Request
    ) -> Response:
        """Answer a conversation."""
        owner = app.access.require_api(request)
        work = after_model_load(app.manager, lambda: answer(app, body, owner, request), stream=body.stream)
        return await unless_gone(request, work)

    return routes


async def answer(app: App, body: ChatCompletionRequest, owner: str, client: Request) -> Response:
    """The whole reply, or its beginning where it is streamed. Raises UserError."""
    with app.manager.lease() as model:
        request = await generation_request(app, model, body, owner)
        head = Head.new("chatcmpl", shown_name(model, request.adapter), app.fingerprint(model))
        readers = [tools.reader_for(body, request.template or model.chat_template) for _ in range(body.n)]
        try:
            streams = await open_streams(model, replies_of(request, body.n))
        except UserError as error:
            raise in_words_of(error, lambda place: _place(body, place)) from None
    try:
        note_ignored(client, [_place(body, place) for place in streams[0].ignored])
        events = merged(streams) if body.parallel_tool_calls else to_the_first_call(merged(streams), streams, readers)
        if body.stream:
            return EventSource(_chunks(head, await begun(events), readers, body), streams)
        reply = await _whole(head, events, readers, body)
    except BaseException:
        close_all(streams)
        raise
    return Response(reply.model_dump_json(), media_type="application/json")


async def generation_request(app: App, model: LoadedModel, body: ChatCompletionRequest, owner: str) -> GenerationRequest:
    """The request to a leased model; owner: whose characters and presets are meant. Raises UserError."""
    adapter = chosen_adapter(model, body)
    variables: dict[str, Any] = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
    more: dict[str, Any] = {}
    schema = _forced_form(body)
    if schema is not None:
        if not model.capabilities.grammar:
            raise UserError(f"{model.name} cannot be held to a schema with its loader.", param="response_format")
        more |= {"json_schema": json.dumps(schema), "grammar": "", "regex": ""}
    if body.max_completion_tokens is not None:
        more["max_tokens"] = body.max_completion_tokens
    elif "max_tokens" not in body.model_fields_set:
        more["max_tokens"] = whole_context(model, app)
    sampling = effective_sampling(app, model, body, owner, more)
    conversation = Conversation(
        await read_messages(body.messages, images=model.capabilities.images, remote_images=app.options.allow_remote_images),
        user=body.user_name,
        character=await run_in_threadpool(app.characters.named, owner, body.character) if body.character else None,
        continue_reply=body.continue_final_message,
        tools=tools_for_template(body.offered_tools),
        variables=variables,
    )
    settings = ChatSettings(
        mode=body.mode,
        template=body.template or "",
        adapter=adapter or "",
        adapter_strength=body.adapter_strength,
    )
    return await run_in_threadpool(
        RequestBuilder(app, owner).build,
        model,
        conversation,
        settings,
        sampling,
        overflow="drop_oldest" if body.truncate == "oldest" else "refuse",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _forced_form(body: ChatCompletionRequest) -> dict[str, Any] | None:
    if body.must_call:
        return tools.forced_schema(body)
    match body.response_format:
        case JsonFormat(schema_=schema):
            return schema or {"type": "object"}
        case SchemaFormat(json_schema=spec):
            return spec.schema_
        case _:
            return None


def _place(body: ChatCompletionRequest, place: str) -> str:
    """Where a place in the schema of the reply is in the request."""
    if body.must_call:
        return tools.place_in_tools(body, place, "function.parameters")
    match body.response_format:
        case SchemaFormat():
            field = "response_format.json_schema.schema"
        case JsonFormat():
            field = "response_format.schema"
        case _:
            field = "json_schema"
    return f"{field}.{place}" if place else field


async def to_the_first_call(events: Arriving, streams: Sequence[EventStream], readers: Sequence[ToolReader | None]) -> Arriving:
    """`events`, where each reply ends with the calls that count: nobody would see what comes after them."""
    async for index, batch in events:
        yield index, batch
        reader = readers[index]
        if reader is not None and reader.done:
            streams[index].close()


# --- the reply in one piece


async def _whole(
    head: Head, events: Arriving, readers: Sequence[ToolReader | None], body: ChatCompletionRequest
) -> ChatCompletion:
    progress = [Progress() for _ in readers]
    texts: list[list[Piece]] = [[] for _ in readers]
    tokens: list[list[Token]] = [[] for _ in readers]
    async for index, batch in events:
        text, details = progress[index].take(batch)
        reader = readers[index]
        texts[index] += [text] if reader is None else reader.feed(text)
        progress[index].enough = reader is not None and reader.done
        tokens[index] += details
    for index, reader in enumerate(readers):
        texts[index] += reader.finish() if reader is not None else []
    choices = [
        _choice(index, texts[index], progress[index].reason, tokens[index] if body.logprobs else None)
        for index in range(len(readers))
    ]
    return ChatCompletion(**asdict(head), choices=choices, usage=_usage(progress))


def _choice(index: int, pieces: Sequence[Piece], reason: str, tokens: Sequence[Token] | None) -> ChatChoice:
    calls = [
        ToolCallReply(
            id=call.id,
            function=FunctionCall(
                name=call.name,
                arguments="".join(p.text for p in pieces if isinstance(p, CallArguments) and p.index == call.index),
            ),
        )
        for call in pieces
        if isinstance(call, CallBegins)
    ]
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return ChatChoice(
        index=index,
        message=ReplyMessage(content=text if text or not calls else None, tool_calls=calls or None),
        logprobs=ChatLogprobs.model_validate(chat_logprobs(tokens)) if tokens is not None else None,
        finish_reason=_reason(reason, bool(calls)),
    )


def _reason(reason: str, called: bool) -> Any:
    return "tool_calls" if called and reason == "stop" else reason


def _usage(progress: Sequence[Progress]) -> UsageReply:
    """The prompt counts once, however many replies it gets."""
    first = progress[0]
    details = PromptDetails(dropped_messages=first.dropped_messages)
    return usage_of([(first.usage, details)], [reply.usage for reply in progress])


# --- the reply piece by piece


async def _chunks(
    head: Head, events: Arriving, readers: Sequence[ToolReader | None], body: ChatCompletionRequest
) -> AsyncGenerator[bytes]:
    progress = [Progress() for _ in readers]
    write = ChunkWriter(head, body.include_usage, progress if body.continuous_usage else None)
    waiting: list[list[Token]] = [[] for _ in readers]
    for index in range(len(readers)):
        yield write.delta(index, {"role": "assistant", "content": ""})
    async for index, batch in events:
        text, details = progress[index].take(batch)
        reader, reply = readers[index], progress[index]
        tokens = waiting[index]
        tokens += details if body.logprobs else []
        pieces: list[Piece] = [text] if text else []
        if reader is not None:
            pieces = reader.feed(text) + (reader.finish() if reply.finished is not None else [])
            reply.enough = reader.done
        chunks = [write.piece(index, piece, chat_logprobs(own) if own else None) for piece, own in with_tokens(pieces, tokens)]
        if tokens and (reader is None or reply.finished is not None):
            chunks.append(write.text(index, "", chat_logprobs(tokens)))
            tokens.clear()
        if reply.finished is not None:
            chunks.append(write.delta(index, {}, _reason(reply.reason, reader is not None and reader.calls > 0)))
        if chunks:
            yield b"".join(chunks)
    cut = [
        write.delta(index, {}, _reason(reply.reason, reply.enough))
        for index, reply in enumerate(progress)
        if not reply.finished
    ]
    yield b"".join([*cut, *([write.usage(_usage(progress))] if body.include_usage else []), DONE])


class ChunkWriter:
    """Chunks of one answer. What stays the same is made into JSON once: this runs for every token.

    usage: whether a chunk with the counts comes at the end; so_far: the replies, where every chunk has counts.
    """

    def __init__(self, head: Head, usage: bool, so_far: Sequence[Progress] | None = None) -> None:
        self._base = {"object": "chat.completion.chunk", **asdict(head)}
        self._null_usage = {"usage": None} if usage else {}
        self._so_far = so_far
        start = json.dumps(self._base, ensure_ascii=False, separators=(",", ":"))[:-1]
        self._before = f'data: {start},"choices":[{{"index":'.encode("utf-8", "replace")
        self._middle = b',"delta":{"content":'
        self._after = b'},"logprobs":null,"finish_reason":null}]' + (b',"usage":null' if usage else b"") + b"}\n\n"

    def text(self, index: int, text: str, logprobs: Any) -> bytes:
        if logprobs is not None or self._so_far is not None:
            return self.delta(index, {"content": text}, None, logprobs)
        return self._before + str(index).encode() + self._middle + json.dumps(text).encode() + self._after

    def piece(self, index: int, piece: Piece, logprobs: Any) -> bytes:
        match piece:
            case CallBegins():
                function = {"name": piece.name, "arguments": ""}
                call = {"index": piece.index, "id": piece.id, "type": "function", "function": function}
                return self.delta(index, {"tool_calls": [call]}, None, logprobs)
            case CallArguments():
                call = {"index": piece.index, "function": {"arguments": piece.text}}
                return self.delta(index, {"tool_calls": [call]}, None, logprobs)
            case _:
                return self.text(index, piece, logprobs)

    def delta(self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": counts_so_far(self._so_far[index])} if self._so_far is not None else self._null_usage
        return data({**self._base, "choices": [choice], **usage})

    def usage(self, usage: UsageReply) -> bytes:
        return data({**self._base, "choices": [], "usage": usage.model_dump()})
