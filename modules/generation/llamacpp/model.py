"""A GGUF model behind the LoadedModel seam."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import hypot
from pathlib import Path
from typing import Any

from modules.errors import Conflict, NoChatTemplate, NotFound, Unavailable, UserError
from modules.generation.admission import Gate
from modules.generation.context_overflow import far_too_long, fit_messages, fit_tokens, refuse_far_too_long, window
from modules.generation.control_tokens import MARK, ControlTokens, render_marked, without_marks
from modules.generation.llamacpp.parts import Joined, told_apart
from modules.generation.llamacpp.response_parser import ReplyReader, likeliest
from modules.generation.llamacpp.server_client import Process
from modules.generation.llamacpp.server_config import Launch
from modules.generation.llamacpp_sampling_params import SUPPORTED, as_fields
from modules.generation.reasoning import opened_by
from modules.generation.reply_thread import forward_reply, start_when_admitted
from modules.generation.stream import EventStream
from modules.generation.structured_output.process import Follower, Trials
from modules.generation.types import (
    Capabilities,
    GenerationEvent,
    GenerationRequest,
    Messages,
    ModelStatus,
    NextTokens,
    RenderedPrompt,
    Started,
    Token,
    TokenAlternative,
)

log = logging.getLogger(__name__)

ALLOWANCE = 1024
EMBEDDING_CONTEXT = 2048
REUSE_AFTER_DROPPING = 64
_SECONDS_TO_DROP = 60
_DRAWS = 8
"""How often to ask what is left after sampling: an answer comes only where the drawn token is a whole character."""


class _Backend:
    """One process with its queue, and the adapters it was started with."""

    def __init__(self, launch: Launch, names: tuple[str, ...]) -> None:
        self.process = Process(launch)
        self.gate = Gate(launch.parallel, self.process.pool)
        self.names = names

    def close_when_idle(self) -> None:
        self.gate.wait_until_empty()
        self.process.close()


@dataclass(frozen=True)
class _Plan:
    """A request that is ready to be sent: its prompt, and the fields that all its completions have.

    follower: who sees to it that the reply keeps its form; None where it is free.
    """

    request: GenerationRequest
    prompt: RenderedPrompt
    fields: dict[str, Any]
    max_tokens: int
    follower: Follower | None

    def cache_for(self, made: int) -> int:
        """How much of the cache the reply may fill next. Few replies are as long as they are allowed to be.

        A grammar's state would be lost between two completions, so such a reply gets all at once.
        """
        more = self.max_tokens - made
        return len(self.prompt.tokens) + made + (more if "grammar" in self.fields else min(more, ALLOWANCE))


class LlamacppModel:
    """Implements LoadedModel. Each reply is read by a thread of its own, once it is its turn."""

    def __init__(self, name: str, launch: Launch, *, chat_template: str | None, control: Mapping[str, int]) -> None:
        """control: the model's control tokens as they are spelled, with their ids."""
        self._name = name
        self._launch = launch
        self._chat_template = chat_template
        self._changing = threading.RLock()
        self._streams: set[EventStream] = set()
        self._paths: dict[str, str] = {}
        self._trials = Trials("llama.cpp", self._markers)
        self._embedder: Process | None = None
        self._closed = False
        self._backend = _Backend(launch, ())
        self._marker = lru_cache(maxsize=4096)(lambda token: self.detokenize([token]))
        self._bytes_of = lru_cache(maxsize=4096)(self._own_bytes)
        self.context_length = self._backend.process.context_length
        facts = self._backend.process.ask("/props")
        self._variables = {"bos_token": facts.get("bos_token", ""), "eos_token": facts.get("eos_token", "")}
        self._bos = self._tokens(self._variables["bos_token"], add=False)
        self._letter = self.tokenize("a")[0]
        # llama.cpp also knows the usual ends of a turn where a file does not declare them.
        ends = {text: self._tokens(text, add=False) for text in self._variables.values() if text}
        self._control = ControlTokens({**{text: ids[0] for text, ids in ends.items() if len(ids) == 1}, **control})

    # --- what it is

    @property
    def name(self) -> str:
        return self._name

    @property
    def chat_template(self) -> str | None:
        return self._chat_template

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            samplers=SUPPORTED,
            adapters=True,
            logprobs=True,
            grammar=True,
            embeddings=True,
            max_parallel=self._launch.parallel,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._paths)

    @property
    def pid(self) -> int:
        """The process that holds the weights."""
        return self._backend.process.pid

    def status(self) -> ModelStatus:
        backend = self._backend
        pool = backend.process.pool
        slots = backend.process.ask("/slots") if backend.process.alive else []
        return ModelStatus(
            running=backend.gate.inside,
            waiting=backend.gate.waiting,
            cache_bytes=int(pool * self._launch.bytes_per_token),
            cache_limit=int(pool * self._launch.bytes_per_token) or None,
            cached_tokens=sum(slot.get("n_prompt_tokens", 0) for slot in slots),
        )

    # --- text and tokens

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        if special:
            return self._tokens(text, add=True)
        return self._ask("/tokenize", {"content": text, "parse_special": False, "add_special": False})["tokens"]

    def _tokens(self, text: str, *, add: bool) -> list[int]:
        """With markers read as tokens; add: with what the model puts before and after a text."""
        return self._ask("/tokenize", {"content": text, "parse_special": True, "add_special": add})["tokens"]

    def _markers(self, text: str) -> list[str]:
        """What in a text is a control token where markers are read as tokens."""
        ordinary = set(self.tokenize(text))
        return [self.detokenize([token]) for token in dict.fromkeys(self._tokens(text, add=False)) if token not in ordinary]

    def detokenize(self, tokens: Sequence[int]) -> str:
        try:
            return self._ask("/detokenize", {"tokens": list(tokens)})["content"]
        except Unavailable as error:
            # llama.cpp looks the tokens up in its vocabulary, and tells only that one was beyond its end.
            if "range_check" not in error.message:
                raise
            raise UserError(f"{self._name} has no token {max(tokens)}.", param="tokens") from None

    def _ask(self, path: str, body: Any) -> Any:
        return self._alive().process.ask(path, body)

    def render(self, request: GenerationRequest) -> RenderedPrompt:
        prompt = request.prompt
        if isinstance(prompt, str):
            return self._render_text(prompt, request)
        if prompt and isinstance(prompt[0], int):
            tokens = self._fit(list(prompt), request)  # type: ignore[arg-type]
            return RenderedPrompt(self.detokenize(tokens), tuple(tokens))
        return self._render_chat(prompt, request)  # type: ignore[arg-type]

    def _fit(self, tokens: list[int], request: GenerationRequest) -> list[int]:
        keep = 1 if tokens[:1] == self._bos else 0
        limit, overflow = window(request, self.context_length)
        return fit_tokens(tokens, limit, request.sampling.max_tokens, overflow, keep_first=keep)

    def _render_text(self, text: str, request: GenerationRequest) -> RenderedPrompt:
        if window(request, self.context_length)[1] == "refuse" and far_too_long(
            text, lambda part: self._tokens(part, add=False), self.context_length
        ):
            refuse_far_too_long(self.context_length)
        tokens = self._tokens(text, add=request.sampling.add_bos)
        if self._bos and tokens[:2] == self._bos * 2:
            tokens = tokens[1:]
        if not tokens:
            tokens = self._bos or self.tokenize("\n")
        kept = self._fit(tokens, request)
        return RenderedPrompt(text if kept is tokens else self.detokenize(kept), tuple(kept))

    def _render_chat(self, messages: Messages, request: GenerationRequest) -> RenderedPrompt:
        template = request.template or self._chat_template
        if not messages:
            raise UserError("There is no message to answer.", param="messages")
        if template is None:
            raise NoChatTemplate
        if any(message.images for message in messages):
            raise UserError(f"{self._name} cannot see images here.", param="messages")
        seen: dict[int, tuple[str, list[int]]] = {}

        def encode(text: str) -> list[int]:
            return self._tokens(text, add=False) if MARK not in text else self._apart(text)

        def count(turns: Messages) -> float:
            text = render_marked(
                self._control,
                template,
                turns,
                own=self._variables,
                given=request.template_variables,
                continue_reply=request.continue_reply,
            )
            if far_too_long(text, encode, self.context_length):
                return math.inf
            tokens = encode(text)
            seen[len(turns)] = without_marks(text), tokens
            return len(tokens)

        limit, overflow = window(request, self.context_length)
        kept, dropped = fit_messages(messages, count, limit, request.sampling.max_tokens, overflow)
        text, tokens = seen[len(kept)]
        return RenderedPrompt(text, tuple(tokens), dropped)

    def _apart(self, text: str) -> list[int]:
        """Tokens of a rendered text in which control tokens with a mark are text."""
        parts = [text[part.start : part.end] if part.token is None else part.token for part in self._control.stretches(text)]
        found = self._mixed([without_marks(part) if isinstance(part, str) else part for part in parts])
        control = set(self._control.ids.values())
        if sum(token in control for token in found) > sum(isinstance(part, int) for part in parts):
            # A vocabulary that makes one of its letters: these are not read together.
            found = self._mixed([piece for part in parts for piece in (part.split(MARK) if isinstance(part, str) else [part])])
        return found

    def _mixed(self, parts: Sequence[str | int]) -> list[int]:
        """Tokens of texts without markers, and of tokens between them."""
        body = {"content": [part for part in parts if part != ""], "parse_special": False, "add_special": False}
        return self._ask("/tokenize", body)["tokens"]

    # --- replies

    def stream(self, request: GenerationRequest) -> EventStream:
        asked = time.perf_counter()
        backend = self._alive()
        plan = self._plan(request, backend)
        events = EventStream()
        if plan.follower is not None:
            events.ignored = plan.follower.form.ignored
            events.on_close(plan.follower.close)
        held = plan.cache_for(0)
        with self._changing:
            self._streams.add(events)
        events.on_close(lambda: self._streams.discard(events))

        work = partial(self._run, backend, plan, events, held, asked)
        start_when_admitted(backend.gate, events, held, work, name="llama.cpp reply")
        return events

    def _plan(self, request: GenerationRequest, backend: _Backend) -> _Plan:
        sampling = request.sampling
        if sampling.min_tokens and (sampling.grammar or sampling.regex or sampling.json_schema):
            raise UserError("With a grammar, the grammar decides when a reply may end.", param="min_tokens")
        if named := [*sampling.banned_tokens, *map(int, sampling.logit_bias)]:
            self.detokenize(named)
        fields = {
            **as_fields(sampling, self.context_length),
            "cache_prompt": True,
            "return_progress": True,
            "n_probs": 0 if request.logprobs is None else max(1, request.logprobs),
        }
        if request.adapter is not None and request.adapter not in self._paths:
            raise NotFound(f"There is no adapter called {request.adapter} loaded.", param="adapter")
        if backend.names:
            chosen = backend.names.index(request.adapter) if request.adapter else -1
            strength = request.adapter_strength
            fields["lora"] = [{"id": at, "scale": strength if at == chosen else 0.0} for at in range(len(backend.names))]
        prompt = self.render(request)
        if prompt.dropped_messages:
            # What was computed for the turns that stay is moved to their new places instead of computed again.
            fields["n_cache_reuse"] = REUSE_AFTER_DROPPING
        room = self.context_length - len(prompt.tokens)
        follower = self._trials.follower(sampling)
        if follower is not None:
            fields["grammar"] = follower.form.lark
        return _Plan(request, prompt, fields, min(sampling.max_tokens, room), follower)

    def next_tokens(self, request: GenerationRequest, count: int) -> NextTokens:
        backend = self._alive()
        plan = self._plan(replace(request, logprobs=count), backend)
        if plan.follower is not None:
            plan.follower.close()
        with _turn(backend.gate, len(plan.prompt.tokens) + 1):
            model = self._likeliest(backend, plan, (), count)
            left: tuple[TokenAlternative, ...] = ()
            for seed in range(_DRAWS):
                if not left:
                    drawn = {"prompt": plan.prompt.tokens, "n_predict": 1, "post_sampling_probs": True}
                    body = {**plan.fields, **drawn, "seed": plan.fields["seed"] + seed}
                    left = likeliest(backend.process.ask("/completion", body), count, self._marker)
        return NextTokens(model, left or None)

    def _likeliest(self, backend: _Backend, plan: _Plan, made: Sequence[int], count: int) -> tuple[TokenAlternative, ...]:
        """What the model alone has in mind after the prompt and the tokens `made`, best first."""
        # llama.cpp tells nothing of a token that is only a part of a character, so it is made to draw one that is not.
        letter = {"logit_bias": [[self._letter, 1000.0]], "temperature": 0.0, "samplers": [], "mirostat": 0}
        body = {
            **plan.fields,
            **letter,
            "prompt": [*plan.prompt.tokens, *made],
            "n_predict": 1,
            "n_probs": count,
            "grammar": "",
        }
        return likeliest(backend.process.ask("/completion", body), count, self._marker)

    def _apart_tokens(
        self, backend: _Backend, plan: _Plan, events: EventStream, told: Sequence[Token | Joined]
    ) -> Sequence[Token]:
        """All tokens of a reply each by itself, while its room is still held."""
        if events.closed:
            return [entry.last if isinstance(entry, Joined) else entry for entry in told]
        _wait_until_dropped(backend)
        return told_apart(told, partial(self._likeliest, backend, plan), self._bytes_of, plan.request.logprobs or 0)

    def _own_bytes(self, token: int) -> bytes:
        (piece,) = self._ask("/tokenize", {"content": [token], "add_special": False, "with_pieces": True})["tokens"]
        return bytes(piece["piece"]) if isinstance(piece["piece"], list) else piece["piece"].encode()

    def _run(self, backend: _Backend, plan: _Plan, events: EventStream, held: int, asked: float) -> None:
        sampling = plan.request.sampling
        reader = ReplyReader(
            sampling,
            prompt_tokens=len(plan.prompt.tokens),
            alternatives=plan.request.logprobs,
            marker=self._marker,
            apart=lambda told: self._apart_tokens(backend, plan, events, told),
            started=lambda cached: self._started(plan, cached),
            asked=asked,
        )

        def reply() -> Iterator[GenerationEvent]:
            nonlocal held
            while True:
                yield from self._completion(backend, plan, reader, events, held)
                if events.closed or reader.over or reader.tokens >= plan.max_tokens:
                    break
                wanted = plan.cache_for(reader.tokens)
                held = wanted if backend.gate.grow(events, held, wanted) else 0
                if not held:
                    return
            yield from reader.finish()

        try:
            forward_reply(reply(), events, model=self._name, tokens_per_second=sampling.max_tokens_per_second)
        finally:
            if held:
                if events.closed or events.error is not None or reader.stopped:
                    _wait_until_dropped(backend)
                backend.gate.leave(held)

    def _completion(
        self, backend: _Backend, plan: _Plan, reader: ReplyReader, events: EventStream, held: int
    ) -> Iterator[GenerationEvent]:
        """One of the completions that a reply consists of: the first to its least length, and one for each allowance."""
        sampling = plan.request.sampling
        forced = min(sampling.min_tokens, plan.max_tokens)
        # At its end a form allows nothing but the end, and llama.cpp gives free text where that is banned.
        endless = (sampling.ban_eos or reader.tokens < forced) and plan.follower is None
        upto = min(held - len(plan.prompt.tokens), forced if reader.tokens < forced else plan.max_tokens)
        made = reader.ids if reader.ids_known else self.tokenize(reader.text)
        body = {
            **plan.fields,
            "prompt": [*plan.prompt.tokens, *made],
            "n_predict": upto - reader.tokens,
            "ignore_eos": endless,
            # Each completion draws by itself: with the same seed all would begin alike.
            "seed": plan.fields["seed"] + (reader.tokens if plan.fields["seed"] >= 0 else 0),
        }
        reply = backend.process.stream(body)
        events.on_close(reply.cancel)
        yield from reader.read(reply if plan.follower is None else self._followed(reply, plan.follower))
        if reader.stopped:
            reply.cancel()

    def _followed(self, parts: Iterable[Any], follower: Follower) -> Iterator[Any]:
        """`parts` as long as they have the form that was asked for. Raises UserError where they leave it.

        llama.cpp goes on in free text where a grammar fails in the middle of a reply.
        """
        special = {self._tokens(name, add=False)[0]: name for name in follower.special}
        for part in parts:
            pieces: list[str | dict[str, str]] = [
                {"token": special[token]} for token in part.get("tokens", ()) if token in special
            ]
            if text := part.get("content"):
                pieces.append(text)
            ended = part.get("stop", False) and part.get("stop_type") == "eos" and not special
            if (pieces or ended) and not follower.fits(pieces, last=ended):
                raise UserError(
                    "The reply could not keep the form it was asked for, and was ended there.", param=follower.field
                )
            yield part

    def _started(self, plan: _Plan, cached: int) -> Started:
        tokens = plan.prompt.tokens
        shown = tuple(Token(token, self.detokenize([token])) for token in tokens) if plan.request.echo else ()
        return Started(len(tokens), cached, plan.prompt.dropped_messages, shown, opened_by(plan.prompt.text))

    # --- vectors

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        process = self._embedding_process()
        tokens = self.tokenize(text, special=True) or self._bos
        if len(tokens) > process.context_length:
            raise UserError(f"A text has {len(tokens)} tokens; {process.context_length} can be made a vector.", param="input")
        rows = process.ask("/embedding", {"content": tokens, "embd_normalize": -1})[0]["embedding"]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        length = hypot(*sums) or 1.0
        return [value / length for value in sums]

    def _embedding_process(self) -> Process:
        """Started when the first text comes: most models are never asked for vectors."""
        with self._changing:
            self._alive()
            if self._embedder is None or not self._embedder.alive:
                context = min(self.context_length, EMBEDDING_CONTEXT)
                launch = replace(self._launch, context=context, parallel=1, embeddings=True, adapters=())
                self._embedder = Process(launch)
            return self._embedder

    # --- adapters

    def load_adapter(self, name: str, path: str) -> None:
        """llama.cpp takes adapters when it starts: a new process does, and the old one ends after its last reply."""
        if not Path(path).is_file() or Path(path).suffix.lower() != ".gguf":
            raise UserError(
                f"{name} is not a GGUF adapter. Convert it with llama.cpp's convert_lora_to_gguf.py.", param="adapter"
            )
        with self._changing:
            if name in self._paths:
                raise Conflict(f"An adapter called {name} is loaded already.", param="adapter")
            self._restart({**self._paths, name: path})

    def unload_adapter(self, name: str) -> None:
        with self._changing:
            if name not in self._paths:
                raise NotFound(f"There is no adapter called {name} loaded.", param="adapter")
            # It stays in the process until the next start, with no request that could name it.
            del self._paths[name]

    def _restart(self, paths: dict[str, str]) -> None:
        before = self._alive()
        launch = replace(self._launch, adapters=tuple(paths.values()))
        if before.process.on_gpu:
            # A graphics card seldom has room for the weights twice.
            before.close_when_idle()
            try:
                self._backend = _Backend(launch, tuple(paths))
            except UserError:
                self._backend = _Backend(replace(launch, adapters=tuple(self._paths.values())), tuple(self._paths))
                raise
        else:
            self._backend = _Backend(launch, tuple(paths))
            threading.Thread(target=before.close_when_idle, daemon=True, name="llama.cpp end").start()
        self._paths = paths

    def _alive(self) -> _Backend:
        """The process to ask: a new one where the last one died."""
        if self._closed:
            raise Unavailable(f"{self._name} is not loaded any more.")
        if not self._backend.process.alive:
            with self._changing:
                if not self._backend.process.alive:
                    names = self._backend.names
                    self._backend.process.close()
                    self._backend = _Backend(replace(self._launch, adapters=self._backend.process.launch.adapters), names)
        return self._backend

    def close(self) -> None:
        with self._changing:
            if self._closed:
                return
            self._closed = True
        for events in list(self._streams):
            events.fail(Unavailable(f"{self._name} was unloaded."))
        self._backend.process.close()
        self._trials.close()
        if self._embedder:
            self._embedder.close()


@contextmanager
def _turn(gate: Gate, tokens: int) -> Iterator[None]:
    """Wait for room for a short question, and hold it meanwhile."""
    events, entered = EventStream(), threading.Event()
    gate.enter(events, tokens, entered.set)
    entered.wait()
    try:
        yield
    finally:
        gate.leave(tokens)
        events.end()


def _wait_until_dropped(backend: _Backend) -> None:
    """llama.cpp ends what nobody reads after the piece that it is computing; until then its place is not free."""
    until = time.monotonic() + _SECONDS_TO_DROP
    while backend.process.alive and time.monotonic() < until:
        try:
            busy = sum(slot["is_processing"] for slot in backend.process.ask("/slots"))
        except UserError:
            return
        if busy < backend.gate.inside:
            return
        time.sleep(0.02)
