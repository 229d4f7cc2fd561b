"""The thread that owns a model's weights: admits requests, reads prompts in chunks, and decodes all running rows together."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from modules.errors import Unavailable, UserError
from modules.generation.local.kv_cache import Piece
from modules.generation.local.model_runner import Compute
from modules.generation.local.prefill_budget import Pace
from modules.generation.local.prefix_cache import WORTH_COPYING, NoRoom, Slots, common
from modules.generation.local.sequence import Lane, Row
from modules.generation.local.speculative import Guesser
from modules.generation.local.threads import OneThread
from modules.generation.samplers.batch_sampler import Detail, choose, details, guide, likeliest
from modules.generation.samplers.contrastive import Contrast
from modules.generation.types import ModelStatus

log = logging.getLogger(__name__)
T = TypeVar("T")
SMALL = 1 << 18
"""Tokens are chosen on one thread from so few scores."""
AHEAD = 256
"""Room that a new row gets beyond its prompt; more is added when it is needed."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one lane computes in a step: its next `count` tokens."""

    row: Row
    lane: Lane
    count: int


class Loop:
    """Started at once; `close` ends it. `submit`, `call` and `status` are for any thread."""

    def __init__(
        self,
        compute: Compute,
        *,
        parallel: int,
        cache_limit: int,
        chunk: int,
        first_chunk: int,
        threads: int = 0,
        guesser: Guesser | None = None,
    ) -> None:
        self._compute = compute
        self._parallel = parallel
        self._slots = Slots(compute, cache_limit, most=max(64, 2 * parallel) if compute.together else 4)
        self._pace = Pace(chunk, first_chunk)
        self._threads = threads
        self._guesser = guesser
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._tasks: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._rows: list[Row] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # --- for any thread

    def submit(self, row: Row) -> None:
        """Put a row in the queue. Raises Unavailable once the model is being closed."""
        with self._changed:
            if self._closing:
                raise Unavailable("The model is being unloaded.")
            self._waiting.append(row)
            self._changed.notify()
        row.events.on_close(self._wake)

    def call(self, work: Callable[[], T]) -> T:
        """Run `work` on the model's thread between two steps, and wait for it."""
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise Unavailable("The model is being unloaded.")
            self._tasks.append((work, future))
            self._changed.notify()
        return future.result()

    @property
    def slots(self) -> Slots:
        """For work that `call` runs."""
        return self._slots

    def users_of(self, adapter: str) -> int:
        """How many running and waiting replies have that adapter."""
        return sum(row.request.adapter == adapter for row in [*self._rows, *self._waiting])

    def status(self) -> ModelStatus:
        slots = self._slots
        return ModelStatus(len(self._rows), len(self._waiting), slots.bytes, slots.limit, slots.tokens)

    def close(self) -> None:
        """End all rows with an error, and the thread. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _wake(self) -> None:
        # Also called by this very thread when it ends a row, hence no waiting for the lock's owner: a Condition is re-entrant.
        with self._changed:
            self._changed.notify()

    # --- the model's thread

    def _run(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._tasks or self._waiting or self._rows)
                if self._closing:
                    break
            self._do_tasks()
            self._forget_closed()
            self._admit()
            if not self._work():
                self._pause()
        self._end_all()

    def _end_all(self) -> None:
        gone = Unavailable("The model was unloaded.")
        for row in [*self._rows, *self._waiting]:
            row.events.fail(gone)
        self._rows, self._waiting = [], deque()
        while self._tasks:
            self._tasks.popleft()[1].set_exception(gone)
        self._slots.forget_all()

    def _do_tasks(self) -> None:
        while self._tasks:
            work, future = self._tasks.popleft()
            try:
                future.set_result(torch.inference_mode()(work)())
            except Exception as error:  # noqa: BLE001 - it is raised where the work was asked for
                future.set_exception(error)

    def _forget_closed(self) -> None:
        for row in [row for row in self._rows if row.events.closed]:
            self._leave(row)
        if any(row.events.closed for row in self._waiting):
            with self._changed:
                self._waiting = deque(row for row in self._waiting if not row.events.closed)

    def _pause(self) -> None:
        """Nothing can be computed now: wait for the next row that is due, or for news."""
        now = time.monotonic()
        soonest = min((row.due for row in self._rows), default=now + 0.05)
        with self._changed:
            if not (self._closing or self._tasks):
                self._changed.wait(min(max(soonest - now, 0.001), 0.05))

    # --- rows come and go

    def _admit(self) -> None:
        while self._waiting and len(self._rows) < self._parallel:
            row = self._waiting[0]
            try:
                self._give_slots(row)
            except NoRoom:
                if self._rows:
                    break
                self._waiting.popleft()
                needed = self._compute.bytes_of(len(row.prompt.tokens)) / 2**30
                row.events.fail(
                    Unavailable(
                        f"This prompt needs {needed:.1f} GiB of cache, and there is room for {self._slots.limit / 2**30:.1f}. "
                        "Shorten it, or load the model with more --cache-memory."
                    )
                )
                continue
            except Exception as error:  # noqa: BLE001 - out of memory, mostly: this row cannot start
                self._waiting.popleft()
                self._fail(row, error)
                continue
            self._waiting.popleft()
            row.admitted = time.monotonic()
            self._rows.append(row)
        for place, row in enumerate(list(self._waiting), 1):
            row.queued(place)

    @torch.inference_mode()
    def _give_slots(self, row: Row) -> None:
        try:
            for lane in row.lanes:
                self._give_slot(row, lane)
        except BaseException:
            self._take_slots(row)
            raise
        row.reused = row.lane.computed

    def _give_slot(self, row: Row, lane: Lane) -> None:
        whole = row.wants_prompt_details or row.contrast is not None or not self._compute.reuses
        reuse = 0 if whole else len(lane.tokens) - 1
        leader, shared = self._leader(lane, reuse)
        lane.slot = self._slots.take(lane.identity, lane.key, len(lane.tokens) + AHEAD, reuse, lane.shortened)
        if leader is not None and shared >= lane.computed + WORTH_COPYING:
            lane.leader, lane.shared = leader, shared

    def _leader(self, lane: Lane, reuse: int) -> tuple[Lane | None, int]:
        """The running lane whose prompt, once it is read, shares the longest beginning with this one, and how much."""
        if not self._compute.together:
            return None, 0
        lanes = [other for row in self._rows if not row.started for other in row.lanes if other.key == lane.key]
        shared = [(min(_common(other, lane), reuse), other) for other in lanes]
        length, leader = max(shared, key=lambda pair: pair[0], default=(0, None))
        return leader, length

    def _follow(self, row: Row, lane: Lane) -> bool:
        """Copy what the lane's leader has read; False while it is still reading what both have in common."""
        leader, own = lane.leader, lane.slot
        if leader is None or own is None:
            return True
        if leader.slot is not None and leader.computed < lane.shared:
            return False
        lane.leader = None
        source, length = (
            (leader.slot, lane.shared) if leader.slot else self._slots.best(lane.identity, lane.key, lane.shortened)
        )
        length = min(length, lane.shared)
        if source is not None and source is not own and length > lane.computed:
            self._slots.copy(source, own, length)
            if lane is row.lane:
                row.reused = length
        return True

    def _take_slots(self, row: Row) -> None:
        for lane in row.lanes:
            if lane.slot is not None:
                self._slots.release(lane.slot)
                lane.slot = None

    def _leave(self, row: Row) -> None:
        self._take_slots(row)
        self._rows.remove(row)

    def _fail(self, row: Row, error: BaseException) -> None:
        if row in self._rows:
            self._leave(row)
        if not isinstance(error, UserError):
            log.error("a reply failed", exc_info=error)
            error = Unavailable(_explained(error))
        row.events.fail(error)

    # --- one step

    @torch.inference_mode()
    def _work(self) -> bool:
        """Compute one step. False where there is nothing to compute now."""
        shares, prompt_tokens = self._plan()
        if not shares:
            return False
        if guesses := self._guesses(shares):
            self._check(shares[0], guesses)
            return True
        decoding = any(share.row.started for share in shares)
        began = time.monotonic()
        self._step(shares)
        self._pace.note(time.monotonic() - began, prompt_tokens, decoding)
        return True

    def _plan(self) -> tuple[list[Share], int]:
        """(what each lane computes now, how many of these tokens are prompt): replies go on, prompts share what is left."""
        now = time.monotonic()
        shares: list[Share] = []
        reading: list[Row] = []
        for row in self._rows:
            if row.started:
                if row.due <= now:
                    shares += [Share(row, lane, lane.pending) for lane in row.lanes]
            else:
                followed = [self._follow(row, lane) for lane in row.lanes]
                reading += [row] if all(followed) else []
        budget = self._pace.budget(decoding=bool(shares)) if self._compute.together else 1 << 30
        prompt_tokens = 0
        # The shortest first, each at most its fair part: a short question need not wait for a long one.
        reading.sort(key=lambda row: sum(lane.pending for lane in row.lanes))
        for index, row in enumerate(reading if budget else ()):
            part = max(1, (budget - prompt_tokens) // (len(reading) - index))
            pending = [lane.pending for lane in row.lanes]
            if row.repeatable and self._compute.reuses and max(pending) > 1:
                # A prompt from the cache leaves its last token to compute. A fresh one does that last and alone as well: other
                # shapes round otherwise, and in 16 bits a reply that has a seed would be another one.
                pending = [count - 1 for count in pending]
            counts = _counts(pending, part)
            shares += [Share(row, lane, count) for lane, count in zip(row.lanes, counts, strict=True) if count]
            prompt_tokens += sum(counts)
            if prompt_tokens >= budget:
                break
        return shares, prompt_tokens

    def _step(self, shares: Sequence[Share]) -> None:
        """Compute `shares` and give every row that is due its next token. What fails ends its own row only."""
        shares = self._with_room(shares)
        if not shares:
            return
        try:
            last, scores = self._forward(shares)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the thread
            self._recover(shares, error)
            return
        self._choose(last, scores)

    def _guesses(self, shares: Sequence[Share]) -> list[int]:
        """What may come next, where a single reply is running and guessing is on."""
        if self._guesser is None or len(shares) != 1 or self._waiting:
            return []
        row, lane = shares[0].row, shares[0].lane
        if not row.started or len(row.lanes) > 1 or row.contrast is not None or row.request.sampling.max_tokens_per_second:
            return []
        try:
            return self._guesser.next(lane.tokens)[: row.left - 1]
        except Exception:
            log.exception("guessing ahead failed and is given up")
            self._guesser = None
            return []

    def _check(self, share: Share, guesses: list[int]) -> None:
        """Compute the pending token and all guesses in one pass; keep those that the row's own sampler would have chosen."""
        row, lane = share.row, share.lane
        if not self._with_room([Share(row, lane, 1 + len(guesses))]):
            return
        slot = lane.slot
        assert slot is not None
        start = len(slot.tokens)
        tokens = [lane.tokens[-1], *guesses]
        piece = Piece(slot.store, start, len(tokens), *lane.key)
        try:
            scores = self._compute.logits([piece], tokens, range(len(tokens)), [None])
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the thread
            self._recover([share], error)
            return
        slot.tokens.append(lane.identity[start])
        for place, guess in enumerate([*guesses, None]):
            self._choose([row], scores[place : place + 1])
            if row not in self._rows or lane.tokens[-1] != guess:
                return
            slot.tokens.append(lane.tokens[-1])

    def _with_room(self, shares: Sequence[Share]) -> list[Share]:
        """Grow the slots; where memory is short, the newest rows give theirs up."""
        for share in shares:
            while share.row in self._rows and share.lane.slot is not None:
                needed = share.lane.computed + share.count
                try:
                    if needed > share.lane.slot.store.capacity:
                        self._slots.grow(share.lane.slot, max(needed, needed * 5 // 4))
                    break
                except NoRoom:
                    self._fail(
                        self._rows[-1], Unavailable("The cache memory is full. Try again when fewer replies are running.")
                    )
                except Exception as error:  # noqa: BLE001 - out of memory, mostly: this row cannot go on
                    self._slots.forget_idle()
                    self._fail(share.row, error)
        return [share for share in shares if share.row in self._rows]

    def _forward(self, shares: Sequence[Share]) -> tuple[list[Row], Tensor]:
        """Compute, note what is computed, and return the rows whose sequences are complete with the scores of their lanes."""
        pieces, tokens, keep, embeds = [], [], [], []
        complete: dict[Row, int] = {}
        for share in shares:
            lane, slot = share.lane, share.lane.slot
            assert slot is not None
            start = len(slot.tokens)
            pieces.append(Piece(slot.store, start, share.count, *lane.key))
            embeds.append(lane.embedded(start, share.count))
            if _echoed(share):
                keep += range(len(tokens), len(tokens) + share.count)
            elif share.count == lane.pending:
                keep.append(len(tokens) + share.count - 1)
            tokens += lane.tokens[start : start + share.count]
            if share.count == lane.pending:
                complete[share.row] = complete.get(share.row, 0) + 1
        rows = [row for row, lanes in complete.items() if lanes == len(row.lanes)]
        if any(share.row.contrast is not None for share in shares):
            scores, states = self._compute.states(pieces, tokens, keep, embeds)
            _note_states(shares, states)
        else:
            scores = self._compute.logits(pieces, tokens, keep, embeds)
        chosen: list[int] = []
        at = 0
        for share in shares:
            slot = share.lane.slot
            assert slot is not None
            first = len(slot.tokens)
            whole = share.count == share.lane.pending
            echo = _echoed(share)
            if echo:
                share.row.note_prompt(scores[at : at + share.count], first)
            at += share.count if echo else whole
            if whole:
                chosen.append(at - 1)
            slot.tokens += share.lane.identity[first : first + share.count]
            if not share.row.started and share.lane is share.row.lane:
                share.row.progress()
        if len(chosen) < len(scores):
            scores = scores[torch.tensor(chosen, dtype=torch.long, device=scores.device)]
        return rows, scores

    def _choose(self, rows: Sequence[Row], scores: Tensor) -> None:
        if not rows:
            return
        scores = _guided(rows, scores)
        plain = [index for index, row in enumerate(rows) if row.contrast is None]
        if plain:
            self._decide([rows[index] for index in plain], scores if len(plain) == len(rows) else scores[plain])
        for index, row in enumerate(rows):
            if row.contrast is not None:
                self._contrast(row, row.contrast, scores[index : index + 1])

    def _decide(self, rows: Sequence[Row], scores: Tensor) -> None:
        """Give every row its next token; what fails is found by deciding for each row by itself."""
        try:
            for index, row in enumerate(rows):
                if row.look is not None:
                    row.look(scores[index : index + 1])
            with OneThread() if scores.is_cpu and scores.numel() < SMALL else nullcontext():
                chosen = choose(scores, [row.sampler for row in rows], logprobs=[row.request.logprobs for row in rows])
                tokens = chosen.tokens.tolist()
        except Exception as error:  # noqa: BLE001 - it ends one row only
            if len(rows) == 1:
                self._fail(rows[0], error)
                return
            for index, row in enumerate(rows):
                self._decide([row], scores[index : index + 1])
            return
        for row, token, detail in zip(rows, tokens, chosen.details, strict=True):
            self._accept(row, token, detail)

    def _contrast(self, row: Row, contrast: Contrast, scores: Tensor) -> None:
        """Give a row of contrastive search its next token: each candidate is computed in the place that it would have."""
        lane = row.lane
        if not self._with_room([Share(row, lane, 1)]) or lane.slot is None:
            return
        piece = Piece(lane.slot.store, len(lane.slot.tokens), 1, *lane.key)
        try:
            ids, probabilities = likeliest(scores, row.sampler)
            tokens = ids.tolist() or [-1]
            if len(tokens) > 1:
                states = torch.cat([self._compute.states([piece], [token], [], [None])[1] for token in tokens])
                tokens = [tokens[contrast.best(probabilities, states)]]
            (detail,) = details(scores, torch.tensor(tokens, device=scores.device), [row.request.logprobs])
        except Exception as error:  # noqa: BLE001 - it ends this row only
            self._fail(row, error)
            return
        self._accept(row, tokens[0], detail)

    def _accept(self, row: Row, token: int, detail: Detail | None) -> None:
        try:
            reason = row.accept(token, detail)
        except Exception as error:  # noqa: BLE001 - it ends this row only
            self._fail(row, error)
            return
        if reason is not None:
            self._leave(row)
            row.finish(reason)

    def _recover(self, shares: Sequence[Share], error: Exception) -> None:
        """After a failed pass: free memory, or find the row at fault by computing each by itself."""
        for share in shares:
            if share.lane.slot is not None and not self._compute.together:
                share.lane.slot.cut(0)
        rows = list(dict.fromkeys(share.row for share in shares))
        if is_out_of_memory(error):
            log.warning("out of memory: %s", error)
            if not self._slots.forget_idle():
                newest = max(rows, key=self._rows.index)
                self._fail(newest, Unavailable("The memory is full. Try again when fewer replies are running."))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        elif len(rows) == 1:
            self._fail(rows[0], error)
        else:
            for row in rows:
                self._step([share for share in shares if share.row is row])


def _common(leader: Lane, lane: Lane) -> int:
    """How much of its prompt a lane may take from another that is still reading."""
    shared = common(leader.identity, lane.identity)
    exact = leader.slot.exact if leader.slot is not None else None
    return shared if lane.shortened or exact is None else min(shared, exact)


def _note_states(shares: Sequence[Share], states: Tensor) -> None:
    """Give the rows that compare with their text the states [tokens, hidden] of what was just computed of it."""
    for share, part in zip(shares, states.split([share.count for share in shares]), strict=True):
        if share.row.contrast is not None and share.lane is share.row.lane:
            share.row.contrast.add(part)


def _echoed(share: Share) -> bool:
    """Whether the scores after each of its tokens are asked for."""
    return share.row.wants_prompt_details and not share.row.started and share.lane is share.row.lane


def _counts(pending: Sequence[int], budget: int) -> list[int]:
    """How many tokens each lane of a row computes: the last one of all lanes together, so that their scores can be mixed.

    >>> _counts([5], 3), _counts([5, 2], 6), _counts([3, 2], 8)
    ([3], [4, 1], [3, 2])
    """
    if sum(pending) <= budget or len(pending) == 1:
        return [min(count, budget) for count in pending]
    counts = []
    for count in pending:
        counts.append(max(0, min(count - 1, budget - sum(counts))))
    return counts if any(counts) else list(pending)


def _guided(rows: Sequence[Row], scores: Tensor) -> Tensor:
    """One line of scores for each row; a row with a negative prompt has two, and gets their mixture."""
    if all(len(row.lanes) == 1 for row in rows):
        return scores
    own, other, at = [], [], 0
    for row in rows:
        own.append(at)
        at += len(row.lanes)
        other.append(at - 1)
    scale = torch.tensor(
        [row.request.sampling.guidance_scale if len(row.lanes) > 1 else 1.0 for row in rows], device=scores.device
    )
    return guide(scores[own], scores[other], scale)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _explained(error: BaseException) -> str:
    if is_out_of_memory(error):
        return "The memory is full. Try again when fewer replies are running."
    return f"The model failed: {error or type(error).__name__}"
