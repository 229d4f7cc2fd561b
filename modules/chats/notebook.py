"""The Default and Notebook pages: a prompt with its reply beside it, and one free page. Each user has one of each."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from modules.chats.records import Figures, State
from modules.chats.replies import Progress, Reply, RunningReplies
from modules.chats.store import ChatHistory, ChatStore
from modules.errors import Conflict, NotFound, UserError
from modules.generation.model_manager import ModelManager
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest

PageName = Literal["default", "notebook"]
How = Literal["generate", "continue", "regenerate"]
STEPS = 20
"""How many replies can be undone."""


@dataclass(frozen=True)
class NotebookPage:
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
    def read(cls, stored: dict[str, Any]) -> NotebookPage:
        return cls(**{**stored, "figures": Figures.read(stored.get("figures", {}))})


class Notebooks(RunningReplies[tuple[str, PageName]]):
    """The replies being written on the pages of all users, by owner and name. Safe to use from any thread."""

    def __init__(self, store: ChatStore, manager: ModelManager) -> None:
        super().__init__()
        self._store = store
        self._manager = manager
        self._changing = threading.RLock()

    def for_owner(self, owner: str) -> Notebook:
        """The pages of one user."""
        return Notebook(self, self._store.for_owner(owner), owner, self._manager, self._changing)


class Notebook:
    """The pages of one user, by name. Raises NotFound for a name that no page has."""

    def __init__(
        self, jobs: Notebooks, history: ChatHistory, owner: str, manager: ModelManager, changing: threading.RLock
    ) -> None:
        self._jobs = jobs
        self._history = history
        self._owner = owner
        self._manager = manager
        self._changing = changing

    def reply(self, name: str) -> Reply | None:
        """The reply that is being written on a page; None where none is."""
        return self._jobs.get((self._owner, page_name(name)))

    def stop(self, name: str) -> bool:
        """End the reply that is being written on a page, and wait until it is kept. False where there is none."""
        return self._jobs.stop((self._owner, page_name(name)))

    def read(self, name: str) -> NotebookPage:
        """The page as it is now."""
        with self._changing:
            page = self._stored(name)
            reply = self.reply(name)
        if reply is not None:
            progress = reply.progress
            state = progress.state if progress.phase == "over" else "streaming"  # until it is kept
            return replace(page, text=progress.text, state=state, figures=progress.figures)
        if page.state == "streaming":  # the server died while it wrote
            return replace(page, state="cut", figures=replace(page.figures, ending="killed"))
        return page

    def change(self, name: str, revision: int, *, prompt: str | None = None, text: str | None = None) -> NotebookPage:
        """Keep what a user typed. Raises Conflict where the page is not the one of `revision`, or is being written."""
        with self._changing:
            page = self.read(name)
            if page.revision != revision or (page.state == "streaming" and text is not None):
                raise Conflict("This page was changed in another tab: here is how it is now.")
            changes = {field: value for field, value in (("prompt", prompt), ("text", text)) if value is not None}
            if text is not None:
                changes |= {"state": "whole"}
            return self._keep(name, replace(page, revision=page.revision + 1, **changes))  # type: ignore[arg-type]

    def write(
        self,
        name: str,
        sampling: SamplingParams,
        *,
        how: How,
        adapter: str | None = None,
        preset: str | None = None,
    ) -> NotebookPage:
        """Begin a reply. generate: a new one; continue: the last one goes on; regenerate: the last one again.

        Raises Conflict while one is being written, and UserError where the model refuses; then nothing has changed.
        """
        with self._changing:
            page = self._free(name)
            before, steps = _beginning(name, how, page.text, self._steps(name))
            prompt = page.prompt + before
            if not prompt:
                raise UserError("The page is empty: write how the text begins.")
            request = GenerationRequest(prompt, sampling, adapter=adapter, overflow="drop_oldest")
            with self._manager.lease(wait=True) as model:
                events, context_length = model.stream(request), model.context_length
            try:
                figures = Figures(
                    adapter=adapter,
                    preset=preset,
                    seed=sampling.seed,
                    opened=page.figures.opened or "",
                    context_length=context_length,
                )
                begun = replace(
                    page, text=before, state="streaming", revision=page.revision + 1, figures=figures, steps=len(steps)
                )
                with self._history.transaction():
                    self._history.preferences.set(_steps_of(name), steps)
                    self._keep(name, begun)
            except BaseException:
                events.close()
                raise
            self._jobs.start(
                (self._owner, page_name(name)), Reply(before, figures, events, lambda progress, _: self._save(name, progress))
            )
            return begun

    def undo(self, name: str) -> NotebookPage:
        """Take the last reply away. Raises Conflict while one is being written, UserError where there is none."""
        with self._changing:
            page = self._free(name)
            steps = self._steps(name)
            if not steps:
                raise UserError("There is no reply to take back.")
            text = steps.pop()
            undone = replace(page, text=text, state="whole", revision=page.revision + 1, figures=Figures(), steps=len(steps))
            with self._history.transaction():
                self._history.preferences.set(_steps_of(name), steps)
                return self._keep(name, undone)

    # --- below: how it is kept

    def _free(self, name: str) -> NotebookPage:
        reply = self.reply(name)
        if reply is not None and reply.progress.phase != "over":
            raise Conflict("The reply is still being written: stop it or let it end first.")
        return self.read(name)

    def _stored(self, name: str) -> NotebookPage:
        return NotebookPage.read(self._history.preferences.get(_place_of(name), {}))

    def _steps(self, name: str) -> list[str]:
        """The text before each of the last replies, the latest at the end."""
        return self._history.preferences.get(_steps_of(name), [])

    def _keep(self, name: str, page: NotebookPage) -> NotebookPage:
        stored = {**asdict(page), "figures": page.figures.stored()}
        self._history.preferences.set(_place_of(name), stored)
        return page

    def _save(self, name: str, progress: Progress) -> None:
        with self._changing:
            page = self._stored(name)
            self._keep(name, replace(page, text=progress.text, state=progress.state, figures=progress.figures))


def _beginning(name: str, how: How, text: str, steps: list[str]) -> tuple[str, list[str]]:
    """(the text that the next reply goes on from, the texts before the last replies with that one)."""
    if how == "continue":
        return text, steps or [text]
    again = how == "regenerate" and bool(steps)
    earlier = steps[-1] if again else text
    return "" if name == "default" else earlier, steps if again else [*steps, earlier][-STEPS:]


def page_name(name: str) -> PageName:
    """`name`, where there is such a page. Raises NotFound."""
    if name not in get_args(PageName):
        raise NotFound(f"There is no page called {name}.")
    return name  # type: ignore[return-value]


def _place_of(name: str) -> str:
    return f"sheet.{page_name(name)}"


def _steps_of(name: str) -> str:
    return f"{_place_of(name)}.steps"
