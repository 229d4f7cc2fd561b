"""POST /v1/completions: text or tokens in, their continuation out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from modules.api.chat import STREAMED
from modules.api.common import chosen_adapter, effective_sampling, note_ignored, replies_of, sent, shown_name
from modules.api.completion_request import CompletionRequest
from modules.api.errors import REFUSALS
from modules.api.large_bodies import route_class
from modules.api.progress import Head, Progress, lengths
from modules.api.replies import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptDetails,
    UsageReply,
    completion_logprobs,
    counts_so_far,
    usage_of,
)
from modules.api.streaming import DONE, EventSource, after_model_load, begun, close_all, data, merged, open_streams, unless_gone
from modules.errors import UserError
from modules.generation.types import GenerationEvent, GenerationRequest, LoadedModel, Token, own_bytes

if TYPE_CHECKING:
    from modules.app import App

MAX_REPLIES = 2048


def router(app: App) -> APIRouter:
    """The route of completions."""
    routes = APIRouter(tags=["completions"], responses=REFUSALS, route_class=route_class(app.access))

    @routes.post("/v1/completions", response_model=Completion, responses=STREAMED)
    async def create_completion(body: Annotated[CompletionRequest, sent(CompletionRequest)], request: Request) -> Response:
        """Continue a text, or several."""
        owner = app.access.require_api(request)
        work = after_model_load(app.manager, lambda: answer(app, body, owner, request), stream=body.stream)
        return await unless_gone(request, work)

    return routes


@dataclass
class _Reply:
    """One continuation of one prompt while it is being made."""

    prompt: int
    progress: Progress = field(default_factory=Progress)
    text: str = ""
    tokens: list[Token] = field(default_factory=list)

    @property
    def mean_logprob(self) -> float:
        known = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(known) / len(known) if known else float("-inf")


@dataclass(frozen=True)
class _Work:
    """A request of a client as the engine's requests, `each` for every prompt; and what is needed to tell about them."""

    body: CompletionRequest
    head: Head
    requests: list[GenerationRequest]
    lengths: list[int]
    each: int

    def replies(self) -> list[_Reply]:
        return [_Reply(index // self.each) for index in range(len(self.requests))]

    def dropped(self, prompt: int, progress: Progress) -> PromptDetails:
        """What of a prompt was left out."""
        lost = self.lengths[prompt] - progress.usage.prompt_tokens if self.lengths else 0
        return PromptDetails(dropped_tokens=max(lost, 0))

    def usage(self, replies: Sequence[_Reply]) -> UsageReply:
        firsts = replies[:: self.each]
        counts = [(reply.progress.usage, self.dropped(reply.prompt, reply.progress)) for reply in firsts]
        usage = usage_of(counts, [reply.progress.usage for reply in replies])
        if self.body.max_tokens:
            return usage
        return usage.model_copy(update={"completion_tokens": 0, "total_tokens": usage.prompt_tokens})


async def answer(app: App, body: CompletionRequest, owner: str, client: Request) -> Response:
    """The whole reply, or its beginning where it is streamed. Raises UserError."""
    with app.manager.lease() as model:
        work = await run_in_threadpool(_plan, app, model, body, owner)
        streams = await open_streams(model, work.requests)
    try:
        note_ignored(client, [f"json_schema.{place}" for place in streams[0].ignored])
        events = merged(streams)
        if body.stream:
            return EventSource(_chunks(work, await begun(events)), streams)
        reply = await _whole(work, events)
    except BaseException:
        close_all(streams)
        raise
    return Response(reply.model_dump_json(), media_type="application/json")


def _plan(app: App, model: LoadedModel, body: CompletionRequest, owner: str) -> _Work:
    adapter = chosen_adapter(model, body)
    best_of = body.best_of or body.n
    if len(body.prompts) * best_of > MAX_REPLIES:
        raise UserError(f"{len(body.prompts)} prompts × {best_of} replies are more than {MAX_REPLIES}. Send fewer.", param="n")
    _refuse_missing_logprobs(model, body, best_of)
    sampling = effective_sampling(app, model, body, owner, {"max_tokens": max(body.max_tokens, 1)})
    ranking = 0 if best_of > body.n else None
    requests = [
        GenerationRequest(
            prompt=prompt,
            sampling=sampling,
            adapter=adapter,
            adapter_strength=body.adapter_strength,
            logprobs=body.logprobs if body.logprobs is not None else ranking,
            echo=body.echo,
            overflow="drop_oldest" if body.truncate == "oldest" else "refuse",
        )
        for prompt in body.prompts
    ]
    lengths = [_length(model, prompt) for prompt in body.prompts] if body.truncate == "oldest" else []
    head = Head.new("cmpl", shown_name(model, adapter), app.fingerprint(model))
    return _Work(body, head, [reply for request in requests for reply in replies_of(request, best_of)], lengths, best_of)


def _refuse_missing_logprobs(model: LoadedModel, body: CompletionRequest, best_of: int) -> None:
    able = model.capabilities
    if body.logprobs is not None and not able.logprobs:
        raise UserError(f"{model.name} cannot report log-probabilities with its loader.", param="logprobs")
    if best_of > body.n and not able.logprobs:
        raise UserError(f"{model.name} cannot rank replies: its loader reports no log-probabilities.", param="best_of")
    if body.echo and body.logprobs is not None and not able.prompt_logprobs:
        raise UserError(f"{model.name} cannot report log-probabilities of a prompt with its loader.", param="echo")


def _length(model: LoadedModel, prompt: str | tuple[int, ...]) -> int:
    return len(model.tokenize(prompt, special=True)) if isinstance(prompt, str) else len(prompt)


# --- the reply in one piece


async def _whole(work: _Work, events: AsyncIterator[tuple[int, list[GenerationEvent]]]) -> Completion:
    replies = work.replies()
    async for index, batch in events:
        text, tokens = replies[index].progress.take(batch)
        replies[index].text += text
        replies[index].tokens += tokens
    body = work.body
    chosen: list[_Reply] = []
    for start in range(0, len(replies), work.each):
        group = replies[start : start + work.each]
        if work.each > body.n:
            group = sorted(group, key=lambda reply: -reply.mean_logprob)
        chosen += group[: body.n]
    choices = [_choice(work, index, reply) for index, reply in enumerate(chosen)]
    return Completion(**asdict(work.head), choices=choices, usage=work.usage(replies))


def _choice(work: _Work, index: int, reply: _Reply) -> CompletionChoice:
    body = work.body
    text, tokens = (reply.text, reply.tokens) if body.max_tokens else ("", [])
    before, offset = "", 0
    if body.echo:
        before, offset = _echoed(body.prompts[reply.prompt], reply.progress)
        tokens = [*reply.progress.prompt, *tokens]
    logprobs = CompletionLogprobs.model_validate(completion_logprobs(tokens, offset)) if body.logprobs is not None else None
    reason: Any = reply.progress.reason if body.max_tokens else "length"
    return CompletionChoice(index=index, text=before + text, logprobs=logprobs, finish_reason=reason)


def _echoed(prompt: str | tuple[int, ...], progress: Progress) -> tuple[str, int]:
    """(the prompt as text, where its first token stands: below 0 where the model put a mark before the text)."""
    told = b"".join(map(own_bytes, progress.prompt)).decode("utf-8", "replace")
    if isinstance(prompt, str):
        return prompt, len(prompt) - len(told) if told.endswith(prompt) else 0
    return told, 0


# --- the reply piece by piece


async def _chunks(work: _Work, events: AsyncIterator[tuple[int, list[GenerationEvent]]]) -> AsyncGenerator[bytes]:
    body, head = work.body, work.head
    base = {"object": "text_completion", **asdict(head)}
    null_usage = {"usage": None} if body.include_usage else {}
    replies = work.replies()
    offsets = [0] * len(replies)

    def chunk(index: int, text: str, tokens: Sequence[Token], reason: str | None = None) -> bytes:
        logprobs = completion_logprobs(tokens, offsets[index]) if body.logprobs is not None and tokens else None
        offsets[index] += sum(lengths(tokens))
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": counts_so_far(replies[index].progress)} if body.continuous_usage else null_usage
        return data({**base, "choices": [choice], **usage})

    async for index, batch in events:
        reply = replies[index]
        before = reply.progress.started
        text, tokens = reply.progress.take(batch)
        chunks: list[bytes] = []
        if body.echo and before is None and reply.progress.started is not None:
            told, offsets[index] = _echoed(body.prompts[reply.prompt], reply.progress)
            chunks.append(chunk(index, told, reply.progress.prompt))
            offsets[index] = len(told)
        if body.max_tokens and (text or (tokens and body.logprobs is not None)):
            chunks.append(chunk(index, text, tokens))
        if reply.progress.finished is not None:
            chunks.append(chunk(index, "", (), reply.progress.reason if body.max_tokens else "length"))
        if chunks:
            yield b"".join(chunks)
    last: list[bytes] = []
    for index, reply in enumerate(replies):
        if reply.progress.finished is None:
            last.append(chunk(index, "", (), reply.progress.reason if body.max_tokens else "length"))
    if body.include_usage:
        last.append(data({**base, "choices": [], "usage": work.usage(replies).model_dump()}))
    yield b"".join([*last, DONE])
