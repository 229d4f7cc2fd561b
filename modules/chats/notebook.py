"""The pages that are no chat: a prompt with its reply beside it, and one free page. Each user has one of each."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from modules.chats.records import Figures, State
from modules.chats.replies import Progress, Reply, RunningReplies
from modules.chats.store import ChatStore
from modules.errors import Conflict, NotFound, UserError
from modules.generation.model_manager import Engine
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest

SheetName = Literal["default", "notebook"]
How = Literal["generate", "continue", "regenerate"]
STEPS = 20
"""How many replies can be undone."""


@dataclass(frozen=True)
class Sheet:
    """What stands on a page. prompt: the left column, "" on the free page; text: the reply, or all of the free page.

    revision: grows with each change, so that a stale page overwrites nothing. steps: how many replies can be undone.
    """

    prompt: str = ""
    text: str = ""
    state: State = "whole"
    revision: int = 0
    figures: Figures = field(default_factory=Figures)
    steps: int = 0

    @classmethod
    def read(cls, stored: dict[str, Any]) -> Sheet:
        return cls(**{**stored, "figures": Figures.read(stored.get("figures", {}))})


class Sheets(RunningReplies[tuple[str, SheetName]]):
    """All pages and the replies being written on them, by owner and name. Safe to use from any thread."""

    def __init__(self, store: ChatStore, engine: Engine) -> None:
        super().__init__()
        self._store = store
        self._engine = engine
        self._changing = threading.RLock()

    def read(self, owner: str, name: str) -> Sheet:
        """The page as it is now. Raises NotFound for a name that no page has."""
        key = self._key(owner, name)
        with self._changing:
            sheet = self._stored(*key)
            reply = self.get(key)
        if reply is not None:
            progress = reply.progress
            state = progress.state if progress.phase == "over" else "streaming"  # until it is kept
            return replace(sheet, text=progress.text, state=state, figures=progress.figures)
        if sheet.state == "streaming":  # the server died while it wrote
            return replace(sheet, state="cut", figures=replace(sheet.figures, ending="killed"))
        return sheet

    def change(self, owner: str, name: str, revision: int, *, prompt: str | None = None, text: str | None = None) -> Sheet:
        """Keep what a user typed. Raises Conflict where the page is not the one of `revision`, or is being written."""
        key = self._key(owner, name)
        with self._changing:
            sheet = self.read(*key)
            if sheet.revision != revision or (sheet.state == "streaming" and text is not None):
                raise Conflict("This page was changed in another tab: here is how it is now.")
            changes = {field: value for field, value in (("prompt", prompt), ("text", text)) if value is not None}
            if text is not None:
                changes |= {"state": "whole"}
            return self._keep(key, replace(sheet, revision=sheet.revision + 1, **changes))  # type: ignore[arg-type]

    def write(
        self,
        owner: str,
        name: str,
        sampling: SamplingParams,
        *,
        how: How,
        adapter: str | None = None,
        preset: str | None = None,
    ) -> Sheet:
        """Begin a reply. generate: a new one; continue: the last one goes on; regenerate: the last one again.

        Raises Conflict while one is being written, and UserError where the model refuses; then nothing has changed.
        """
        key = self._key(owner, name)
        with self._changing:
            sheet = self._free(key)
            before, steps = _beginning(key[1], how, sheet.text, self._steps(*key))
            prompt = sheet.prompt + before
            if not prompt:
                raise UserError("The page is empty: write how the text begins.")
            request = GenerationRequest(prompt, sampling, adapter=adapter, overflow="drop_oldest")
            events = self._engine.stream(request)
            try:
                model = self._engine.loaded
                figures = Figures(
                    adapter=adapter,
                    preset=preset,
                    seed=sampling.seed,
                    opened=sheet.figures.opened or "",
                    context_length=model.context_length if model else None,
                )
                begun = replace(
                    sheet, text=before, state="streaming", revision=sheet.revision + 1, figures=figures, steps=len(steps)
                )
                with self._store.transaction():
                    self._store.set_preference(owner, _steps_of(key[1]), steps)
                    self._keep(key, begun)
            except BaseException:
                events.close()
                raise
            self.start(key, Reply(before, figures, events, lambda progress, _: self._save(key, progress)))
            return begun

    def undo(self, owner: str, name: str) -> Sheet:
        """Take the last reply away. Raises Conflict while one is being written, UserError where there is none."""
        key = self._key(owner, name)
        with self._changing:
            sheet = self._free(key)
            steps = self._steps(*key)
            if not steps:
                raise UserError("There is no reply to take back.")
            text = steps.pop()
            undone = replace(sheet, text=text, state="whole", revision=sheet.revision + 1, figures=Figures(), steps=len(steps))
            with self._store.transaction():
                self._store.set_preference(owner, _steps_of(key[1]), steps)
                return self._keep(key, undone)

    # --- below: how it is kept

    @staticmethod
    def named(name: str) -> SheetName:
        """`name`, where there is such a page. Raises NotFound."""
        if name not in get_args(SheetName):
            raise NotFound(f"There is no page called {name}.")
        return name  # type: ignore[return-value]

    def _key(self, owner: str, name: str) -> tuple[str, SheetName]:
        return owner, self.named(name)

    def _free(self, key: tuple[str, SheetName]) -> Sheet:
        reply = self.get(key)
        if reply is not None and reply.progress.phase != "over":
            raise Conflict("The reply is still being written: stop it or let it end first.")
        return self.read(*key)

    def _stored(self, owner: str, name: SheetName) -> Sheet:
        return Sheet.read(self._store.preference(owner, _place_of(name), {}))

    def _steps(self, owner: str, name: SheetName) -> list[str]:
        """The text before each of the last replies, the latest at the end."""
        return self._store.preference(owner, _steps_of(name), [])

    def _keep(self, key: tuple[str, SheetName], sheet: Sheet) -> Sheet:
        stored = {**asdict(sheet), "figures": sheet.figures.stored()}
        self._store.set_preference(key[0], _place_of(key[1]), stored)
        return sheet

    def _save(self, key: tuple[str, SheetName], progress: Progress) -> None:
        with self._changing:
            sheet = self._stored(*key)
            self._keep(key, replace(sheet, text=progress.text, state=progress.state, figures=progress.figures))


def _beginning(name: SheetName, how: How, text: str, steps: list[str]) -> tuple[str, list[str]]:
    """(the text that the next reply goes on from, the texts before the last replies with that one)."""
    if how == "continue":
        return text, steps or [text]
    again = how == "regenerate" and bool(steps)
    earlier = steps[-1] if again else text
    return "" if name == "default" else earlier, steps if again else [*steps, earlier][-STEPS:]


def _place_of(name: SheetName) -> str:
    return f"sheet.{name}"


def _steps_of(name: SheetName) -> str:
    return f"sheet.{name}.steps"
