"""A model on another engine behind the LoadedModel seam."""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import hypot
from typing import Any, Self

from modules.errors import EngineGone, NotFound, Unavailable, UserError
from modules.generation.admission import Gate
from modules.generation.context_overflow import fit_messages, fit_tokens, window
from modules.generation.control_tokens import without_marks
from modules.generation.reasoning import opened_by
from modules.generation.remote.client import Client, Line
from modules.generation.remote.dialects import Dialect, extra_fields, samplers_of, standard_fields
from modules.generation.remote.response_parser import ChunkReader
from modules.generation.reply_thread import forward_reply, start_when_admitted
from modules.generation.stream import EventStream
from modules.generation.template import render_chat
from modules.generation.types import (
    Capabilities,
    GenerationEvent,
    GenerationRequest,
    Message,
    Messages,
    ModelStatus,
    NextTokens,
    RenderedPrompt,
    TextDelta,
)

log = logging.getLogger(__name__)

THEIR_TEMPLATE = "{# The engine has the model's chat template and renders the conversation itself. #}"
LONGEST_CONTEXT = 131_072
_ENOUGH = 1 << 40
_LETTERS_PER_TOKEN, _TOKENS_PER_MESSAGE = 3, 6


@dataclass(frozen=True)
class RemoteFacts:
    """What an engine tells of itself and the model."""

    model: str
    dialect: Dialect
    context_length: int | None = None
    chat_template: str | None = None
    bos_token: str = ""
    eos_token: str = ""

    @classmethod
    def ask(cls, client: Client, model: str) -> Self:
        """Raises UserError where nobody answers, or the model is not there."""
        entries, known = _list_models(client)
        if not model:
            if not entries:
                raise UserError(f"{client.base_url} lists no models. Name one with --remote-model.", param="remote_model")
            model = entries[0].id
        entry = next((entry for entry in entries if entry.id == model), None)
        owner = entry.owned_by if entry else entries[0].owned_by if entries else ""
        extra = (entry.model_extra or {}) if entry else {}
        if owner == "llamacpp":
            props = client.ask("/props") or {}
            length = (extra.get("meta") or {}).get("n_ctx")
            marks = {"bos_token": props.get("bos_token", ""), "eos_token": props.get("eos_token", "")}
            return cls(model, "llama.cpp", length, props.get("chat_template"), **marks)
        if entry is None and known and entries:
            names = ", ".join(entry.id for entry in entries[:8])
            raise NotFound(f"{client.base_url} has no model called {model}. It has: {names}.", param="remote_model")
        dialect: Dialect = "vllm" if owner == "vllm" else "plain"
        if dialect == "plain" and "/load_model" in ((client.ask("/openapi.json") or {}).get("paths") or {}):
            dialect = "transformers"
        return cls(model, dialect, extra.get("max_model_len") or extra.get("context_length"))


def _list_models(client: Client) -> tuple[list[Any], bool]:
    """(the entries of /models, whether the engine could list them): some cannot, and still answer."""
    try:
        with client.errors():
            return list(client.openai.models.list().data), True
    except NotFound:
        return [], False
    except Unavailable:
        # An engine that fails at its own list is there; one that cannot be reached is not.
        if client.ask("/health") is None:
            raise
        return [], False


class RemoteModel:
    """Implements LoadedModel. The engine's own queue decides who is next; `max_parallel` bounds what it gets from us."""

    def __init__(
        self,
        name: str,
        client: Client,
        facts: RemoteFacts,
        *,
        context_length: int | None = None,
        max_parallel: int = 8,
        on_close: Callable[[], None] = lambda: None,
        why_gone: Callable[[], str | None] = lambda: None,
    ) -> None:
        """why_gone: asked once the engine has died; None where nobody here knows."""
        self._name = name
        self._client = client
        self._facts = facts
        told = facts.context_length
        self.context_length = (
            min(context_length, told) if context_length and told else context_length or told or LONGEST_CONTEXT
        )
        self._max_parallel = max_parallel
        self._gate = Gate(max_parallel, _ENOUGH)
        self._streams: set[EventStream] = set()
        self._on_close = on_close
        self._why_gone = why_gone
        self._closed = False

    # --- what it is

    @property
    def name(self) -> str:
        return self._name

    @property
    def chat_template(self) -> str | None:
        return self._facts.chat_template or THEIR_TEMPLATE

    @property
    def capabilities(self) -> Capabilities:
        dialect = self._facts.dialect
        return Capabilities(
            samplers=samplers_of(dialect),
            logprobs=dialect != "transformers",
            grammar=dialect != "transformers",
            images=dialect != "llama.cpp",
            embeddings=dialect != "transformers",
            max_parallel=self._max_parallel,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        return ()

    def load_adapter(self, name: str, path: str) -> None:
        raise UserError("Adapters of a remote engine are loaded there.", param="adapter")

    def unload_adapter(self, name: str) -> None:
        raise NotFound(f"There is no adapter called {name} loaded.", param="adapter")

    def status(self) -> ModelStatus:
        return ModelStatus(running=self._gate.inside, waiting=self._gate.waiting)

    # --- text and tokens

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Raises UserError where the engine does not tell."""
        return self._tokens(text, markers=special, add=special)

    def _tokens(self, text: str, *, markers: bool, add: bool) -> list[int]:
        """markers: read <|im_end|> and its like as tokens; add: put before and after what the model adds."""
        answer = None
        match self._facts.dialect:
            case "llama.cpp":
                answer = self._client.ask("/tokenize", {"content": text, "parse_special": markers, "add_special": add})
            case "vllm":
                body = {"model": self._facts.model, "prompt": text, "add_special_tokens": add}
                answer = self._client.ask("/tokenize", body)
        if not isinstance(answer, dict):
            raise UserError(f"{self._name} runs on an engine that does not show its tokens.")
        return answer["tokens"]

    def detokenize(self, tokens: Sequence[int]) -> str:
        match self._facts.dialect:
            case "llama.cpp":
                return self._client.ask("/detokenize", {"tokens": list(tokens)})["content"]
            case "vllm":
                return self._client.ask("/detokenize", {"model": self._facts.model, "tokens": list(tokens)})["prompt"]
            case _:
                raise UserError(f"{self._name} runs on an engine that does not show its tokens.")

    @property
    def _shows_tokens(self) -> bool:
        return self._facts.dialect in ("llama.cpp", "vllm")

    def render(self, request: GenerationRequest) -> RenderedPrompt:
        """Raises UserError where only the engine knows the template."""
        prompt = request.prompt
        if isinstance(prompt, str):
            return RenderedPrompt(prompt, tuple(self.tokenize(prompt, special=True)))
        if prompt and isinstance(prompt[0], int):
            return RenderedPrompt(self.detokenize(prompt), prompt)  # type: ignore[arg-type]
        kept, dropped = self._fitting(request)
        template = request.template or self._facts.chat_template
        if template is None:
            raise UserError(f"{self._name} renders conversations on its engine, which does not show them.", param="template")
        text = self._rendered(template, kept, request)
        return RenderedPrompt(text, tuple(self._tokens(text, markers=True, add=False)), dropped)

    def _rendered(self, template: str, messages: Messages, request: GenerationRequest) -> str:
        marks = {"bos_token": self._facts.bos_token, "eos_token": self._facts.eos_token}
        variables = {**marks, **request.template_variables}
        return without_marks(render_chat(template, messages, continue_reply=request.continue_reply, variables=variables))

    def _fitting(self, request: GenerationRequest) -> tuple[Messages, int]:
        """The conversation, without what does not fit where that is wanted. Raises ContextTooLong."""
        messages: Messages = request.prompt  # type: ignore[assignment]
        if not messages:
            raise UserError("There is no message to answer.", param="messages")
        limit, overflow = window(request, self.context_length)
        if overflow == "refuse":
            return messages, 0  # the engine refuses by itself, with its own figures
        count = self._counter(request)
        return fit_messages(messages, count, limit, request.sampling.max_tokens, "drop_oldest")

    def _counter(self, request: GenerationRequest) -> Callable[[Messages], int]:
        template = request.template or self._facts.chat_template
        if template is None or not self._shows_tokens:
            return _estimated_tokens
        return lambda turns: len(self._tokens(self._rendered(template, turns, request), markers=True, add=False))

    # --- replies

    def stream(self, request: GenerationRequest) -> EventStream:
        asked = time.perf_counter()
        if self._closed:
            raise Unavailable(f"{self._name} is not loaded any more.")
        if request.adapter is not None:
            raise NotFound(f"There is no adapter called {request.adapter} on a remote engine.", param="adapter")
        try:
            fields, dropped = self._fields(request)
        except Unavailable as error:
            raise self._or_gone(error) from error
        events = EventStream()
        self._streams.add(events)
        events.on_close(lambda: self._streams.discard(events))

        work = partial(self._run, request, fields, dropped, events, asked)
        start_when_admitted(self._gate, events, 1, work, name="remote reply")
        return events

    def next_tokens(self, request: GenerationRequest, count: int) -> NextTokens:
        if not self.capabilities.logprobs:
            raise UserError(f"{self._name} does not report log-probabilities.")
        once = request.sampling.model_copy(update={"max_tokens": 1, "stop": ()})
        with self.stream(replace(request, sampling=once, logprobs=count)) as events:
            told = [token for event in events if isinstance(event, TextDelta) for token in event.details]
        return NextTokens(told[0].alternatives if told else (), None)

    def _fields(self, request: GenerationRequest) -> tuple[dict[str, Any], int]:
        """(the request in the engine's words, how many messages were left out). Raises UserError."""
        sampling, dialect = request.sampling, self._facts.dialect
        extra = extra_fields(dialect, sampling, self.context_length)
        fields = {**standard_fields(sampling), "model": self._facts.model, "stream": True, "extra_body": extra}
        fields["stream_options"] = {"include_usage": True}
        if dialect == "vllm":
            fields["stream_options"] |= {"continuous_usage_stats": True}
        prompt = request.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return {**fields, **self._as_completion(request, prompt)}, 0
        messages, dropped = self._fitting(request)
        if request.template is not None:
            text = self._rendered(request.template, messages, request)
            return {**fields, **self._as_completion(request, text)}, dropped
        if request.continue_reply:
            if dialect not in ("vllm", "llama.cpp"):
                raise UserError("This engine cannot go on with a reply. Choose a chat template, then it can.", param="template")
            if dialect == "vllm":
                extra |= {"continue_final_message": True, "add_generation_prompt": False}
        if "tools" in request.template_variables:
            raise UserError("Tools are not passed on to a remote engine yet.", param="tools")
        if request.template_variables and dialect in ("vllm", "llama.cpp"):
            extra["chat_template_kwargs"] = dict(request.template_variables)
        if request.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": max(request.logprobs, 1)}
        return {**fields, "messages": [_as_openai(message) for message in messages]}, dropped

    def _as_completion(self, request: GenerationRequest, prompt: Any) -> dict[str, Any]:
        tokens = prompt if isinstance(prompt, str) else list(prompt)
        limit, overflow = window(request, self.context_length)
        if overflow == "drop_oldest" and self._shows_tokens:
            counted = self.tokenize(tokens, special=True) if isinstance(tokens, str) else tokens
            tokens = fit_tokens(counted, limit, request.sampling.max_tokens, "drop_oldest")
        return {"prompt": tokens} | ({} if request.logprobs is None else {"logprobs": max(request.logprobs, 1)})

    def _opened(self, request: GenerationRequest, fields: Mapping[str, Any]) -> str | None:
        """The mark of thinking that the prompt ends with, as far as it is seen here."""
        if isinstance(fields.get("prompt"), str):
            return opened_by(fields["prompt"])
        template = self._facts.chat_template
        if "messages" not in fields or template is None:
            return None
        try:
            return opened_by(self._rendered(template, request.prompt, request))  # type: ignore[arg-type]
        except UserError:
            return None

    def _run(self, request: GenerationRequest, fields: dict[str, Any], dropped: int, events: EventStream, asked: float) -> None:
        line = Line()
        events.on_close(line.cut)
        reader = ChunkReader(
            request.sampling,
            prompt_tokens=0,
            dropped=dropped,
            alternatives=request.logprobs,
            asked=asked,
            opened=self._opened(request, fields),
        )

        def explain(error: UserError) -> UserError:
            return self._or_gone(error) if isinstance(error, Unavailable) and not line.cut_off else error

        try:
            forward_reply(
                self._events(fields, reader, line),
                events,
                model=self._name,
                tokens_per_second=request.sampling.max_tokens_per_second,
                explain=explain,
                was_cut_off=lambda: line.cut_off,
            )
        finally:
            self._gate.leave(1)

    def _events(self, fields: dict[str, Any], reader: ChunkReader, line: Line) -> Iterator[GenerationEvent]:
        with self._client.errors(self._facts.model), self._client.on(line) as client:
            create = client.chat.completions.create if "messages" in fields else client.completions.create
            with create(**fields) as chunks:
                yield from reader.read(chunks)
                if reader.stopped:
                    line.cut()
            yield from reader.finish()

    def _or_gone(self, error: Unavailable) -> Unavailable:
        """What to say of a failure: that the engine is gone, where it is."""
        if not self._closed and (isinstance(error, EngineGone) or not self._client.is_well()):
            return EngineGone(self._why_gone() or error.message)
        return error

    # --- vectors, the end

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        with self._client.errors(self._facts.model):
            answer = self._client.openai.embeddings.create(input=list(texts), model=self._facts.model, encoding_format="float")
        return [_unit(item.embedding) for item in answer.data]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for events in list(self._streams):
            events.fail(Unavailable(f"{self._name} was unloaded."))
        self._client.close()
        self._on_close()


def _estimated_tokens(messages: Messages) -> int:
    """For engines that do not count: rather too many than too few."""
    return sum(len(message.content) // _LETTERS_PER_TOKEN + _TOKENS_PER_MESSAGE for message in messages)


def _unit(vector: Sequence[float]) -> list[float]:
    length = hypot(*vector) or 1.0
    return [value / length for value in vector]


def _as_openai(message: Message) -> dict[str, Any]:
    if not message.images:
        return {**message.extra, "role": message.role, "content": message.content}
    pictures = [{"type": "image_url", "image_url": {"url": _data_url(image.data)}} for image in message.images]
    return {**message.extra, "role": message.role, "content": [*pictures, {"type": "text", "text": message.content}]}


def _data_url(data: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        kind = (picture.format or "png").lower()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
