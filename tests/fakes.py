"""A model without weights for the tests above the engine: real streams and threads, and a reply that the test decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from modules.errors import ContextTooLong, NoChatTemplate, NotFound, UserError
from modules.generation.model_manager import ModelManager
from modules.generation.reasoning import opened_by
from modules.generation.sampling import SamplingParams
from modules.generation.stop_strings import StopTexts
from modules.generation.stream import EventStream
from modules.generation.template import render_chat
from modules.generation.types import (
    Capabilities,
    Finished,
    GenerationRequest,
    Message,
    ModelStatus,
    NextTokens,
    Prefill,
    RenderedPrompt,
    Started,
    TextDelta,
    Timings,
    Token,
    TokenAlternative,
    Usage,
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EVERYTHING = Capabilities(
    samplers=frozenset(SamplingParams.model_fields),
    adapters=True,
    logprobs=True,
    prompt_logprobs=True,
    grammar=True,
    images=True,
    embeddings=True,
    max_parallel=1000,
)


def repeat_the_question(request: GenerationRequest) -> str:
    """The last message or the prompt, as it came."""
    if isinstance(request.prompt, str):
        return request.prompt
    last = request.prompt[-1] if request.prompt else ""
    return last.content if isinstance(last, Message) else "".join(map(chr, (n for n in request.prompt if isinstance(n, int))))


class EchoModel:
    """A LoadedModel whose tokens are single characters, and whose reply is what `reply(request)` returns.

    pace: seconds for each token. fails_after: raise `failure` instead of the token after so many.
    `streams` keeps every stream that was opened, and `requests` every request, for the test to look at.
    """

    def __init__(
        self,
        reply: Callable[[GenerationRequest], str] = repeat_the_question,
        *,
        name: str = "echo",
        pace: float = 0.0,
        context_length: int = 4096,
        chat_template: str | None = CHATML,
        capabilities: Capabilities = EVERYTHING,
        fails_after: int | None = None,
        failure: Exception | None = None,
    ) -> None:
        self.name = name
        self.context_length = context_length
        self.capabilities = capabilities
        self.chat_template = chat_template
        self.pace = pace
        self.reply = reply
        self.fails_after = fails_after
        self.failure = failure
        self.streams: list[EventStream] = []
        self.requests: list[GenerationRequest] = []
        self.closed = False
        self._adapters: dict[str, str] = {}

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return [ord(letter) for letter in text]

    def detokenize(self, tokens: Sequence[int]) -> str:
        if bad := [token for token in tokens if not 0 <= token < 0xD800]:
            raise UserError(f"{bad[0]} is not a token of this model.", param="tokens")
        return "".join(map(chr, tokens))

    def render(self, request: GenerationRequest) -> RenderedPrompt:
        prompt, dropped = request.prompt, 0
        if isinstance(prompt, str):
            text = prompt
        elif all(isinstance(part, int) for part in prompt):
            text = self.detokenize([part for part in prompt if isinstance(part, int)])
        else:
            turns = [part for part in prompt if isinstance(part, Message)]
            text = self._render_turns(request, turns)
            while len(text) >= self.context_length and request.overflow == "drop_oldest" and len(turns) > 1:
                turns, dropped = turns[1:], dropped + 1
                text = self._render_turns(request, turns)
        if len(text) >= self.context_length:
            if request.overflow == "refuse":
                raise ContextTooLong(
                    f"The prompt has {len(text)} tokens, and the model's context is {self.context_length}. Shorten it.",
                    param="prompt" if isinstance(prompt, str) else "messages",
                )
            text = text[-(self.context_length - 1) :]
        return RenderedPrompt(text, tuple(self.tokenize(text)), dropped)

    def _render_turns(self, request: GenerationRequest, turns: Sequence[Message]) -> str:
        template = request.template or self.chat_template
        if template is None:
            raise NoChatTemplate
        return render_chat(template, turns, continue_reply=request.continue_reply, variables=request.template_variables)

    def stream(self, request: GenerationRequest) -> EventStream:
        if request.adapter is not None and request.adapter not in self._adapters:
            raise NotFound(f"No adapter {request.adapter} is loaded.", param="adapter")
        prompt = self.render(request)
        events = EventStream()
        self.streams.append(events)
        self.requests.append(request)
        threading.Thread(target=self._run, args=(request, prompt, events), daemon=True).start()
        return events

    def _run(self, request: GenerationRequest, prompt: RenderedPrompt, events: EventStream) -> None:
        begun = time.monotonic()
        sampling = request.sampling
        room = min(sampling.max_tokens, self.context_length - len(prompt.tokens))
        watch = StopTexts(sampling.stop)
        count = 0
        reason, text = "stop", self.reply(request)
        events.put(Prefill(len(prompt.tokens), len(prompt.tokens)))
        echoed = tuple(self._token(request, letter, at > 0) for at, letter in enumerate(prompt.text)) if request.echo else ()
        events.put(Started(len(prompt.tokens), 1, prompt.dropped_messages, echoed, opened_by(prompt.text)))
        for letter in text:
            if self.pace:
                time.sleep(self.pace)
            if events.closed:
                return
            if count == self.fails_after:
                return events.fail(self.failure or RuntimeError("the scripted failure"))
            if count == room:
                reason = "length"
                break
            count += 1
            details = () if request.logprobs is None else (self._token(request, letter, True),)
            events.put(TextDelta(watch.feed(letter), 1, details))
            if watch.found is not None:
                break
        if watch.found is None and (held := watch.finish()):
            events.put(TextDelta(held, 0))
        seconds = time.monotonic() - begun
        usage = Usage(len(prompt.tokens), count, cached_tokens=1)
        events.put(Finished(reason, usage, Timings(0.0, self.pace, seconds), watch.found))
        events.end()

    def _token(self, request: GenerationRequest, letter: str, known: bool) -> Token:
        if request.logprobs is None or not known:
            return Token(ord(letter), letter)
        others = tuple(
            TokenAlternative(ord(letter) + rank, chr(ord(letter) + rank), -0.5 - rank) for rank in range(request.logprobs)
        )
        return Token(ord(letter), letter, -0.5, others)

    def next_tokens(self, request: GenerationRequest, count: int) -> NextTokens:
        """The likeliest token is always left alone."""
        prompt = self.render(request)
        self.requests.append(request)
        others = self._token(replace(request, logprobs=count), prompt.text[-1:] or " ", True).alternatives
        return NextTokens(others, tuple(replace(other, logprob=0.0) for other in others[:1]))

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if not self.capabilities.embeddings:
            raise UserError(f"{self.name} cannot make embeddings.", param="model")
        return [[1.0, 0.0] if len(text) % 2 else [0.0, 1.0] for text in texts]

    def load_adapter(self, name: str, path: str) -> None:
        self._adapters[name] = path

    def unload_adapter(self, name: str) -> None:
        if self._adapters.pop(name, None) is None:
            raise NotFound(f"No adapter {name} is loaded.", param="name")

    def status(self) -> ModelStatus:
        return ModelStatus(running=sum(1 for events in self.streams if not events.closed))

    def close(self) -> None:
        self.closed = True
        for events in self.streams:
            events.close()


def loaded_in(manager: ModelManager) -> Any:
    """The loaded model itself, as the test made it; one that was unloaded while idle is loaded again first."""
    with manager.lease(wait=True):
        return manager.loaded


def stream_of(manager: ModelManager, request: GenerationRequest) -> EventStream:
    """The reply of the loaded model to one request."""
    with manager.lease(wait=True) as model:
        return model.stream(request)
