"""What a user can do on the Default and Notebook pages: type, have text written, undo it, keep prompts, look at tokens."""

from __future__ import annotations

import math
from typing import Any

from modules.chats.conversation import fixed_seed
from modules.chats.notebook import How, Notebook, NotebookPage
from modules.errors import UserError
from modules.generation.types import GenerationRequest, name_of
from modules.library.trash import Undo
from modules.services.base import Service
from modules.services.preferences import Preferences

MOST_NEXT = 1000
"""How many next tokens are looked at."""
MOST_TOKENS = 4000
"""How many tokens are shown one by one."""


class NotebookTabs(Service):
    """The two pages of a user, with what is needed to write on them."""

    @property
    def pages(self) -> Notebook:
        return self.app.notebooks.for_owner(self.owner)

    def write(self, name: str, how: How, adapter: str | None = None) -> NotebookPage:
        """Begin a reply with the user's sampling settings. Raises Conflict while one is being written, and UserError."""
        sampling, preset = self.of(Preferences).sampling
        return self.pages.write(name, fixed_seed(sampling), how=how, adapter=adapter, preset=preset)

    # --- prompts

    def prompts(self) -> list[str]:
        """The names of everybody's prompts and one's own."""
        return self.app.prompts.of(self.owner).names()

    def prompt(self, name: str) -> str:
        return self.app.prompts.of(self.owner).read(name)

    def save_prompt(self, name: str, text: str) -> Undo:
        prompts = self.app.prompts.of(self.owner)
        with self.app.trash.undoable(self.owner, "prompt", name, [prompts.file(name)]) as undo:
            prompts.save(name, text)
        return undo

    def delete_prompt(self, name: str) -> Undo:
        prompts = self.app.prompts.of(self.owner)
        with self.app.trash.undoable(self.owner, "prompt", name, [prompts.file(name)]) as undo:
            prompts.delete(name)
        return undo

    # --- tokens

    def count(self, text: str) -> dict[str, int]:
        """How many tokens a text has, and how many the context holds."""
        with self.app.manager.lease(wait=True) as model:
            return {"tokens": len(model.tokenize(text, special=True)), "context": model.context_length}

    def tokenize(self, text: str) -> dict[str, Any]:
        """The tokens of a text, the first MOST_TOKENS of them each with its text."""
        with self.app.manager.lease(wait=True) as model:
            ids = model.tokenize(text, special=True)
            return {"count": len(ids), "tokens": [[token, model.detokenize([token])] for token in ids[:MOST_TOKENS]]}

    def next_tokens(self, text: str, top: int) -> dict[str, Any]:
        """The `top` likeliest tokens after a text: probabilities by the model alone, and with the user's settings."""
        sampling, _ = self.of(Preferences).sampling
        with self.app.manager.lease(wait=True) as model:
            if not model.capabilities.logprobs:
                raise UserError(f"{model.name} cannot report probabilities with its loader.")
            found = model.next_tokens(GenerationRequest(text, fixed_seed(sampling), overflow="drop_oldest"), MOST_NEXT)
        left = None if found.left is None else {token.id: math.exp(token.logprob) for token in found.left}
        shown = {token.id: token for token in (*(found.left or ())[:top], *found.model)}
        before = {token.id: math.exp(token.logprob) for token in found.model}
        order = sorted(shown.values(), key=lambda token: before.get(token.id, 0.0), reverse=True)[:top]
        rows = [
            {
                "id": token.id,
                "text": name_of(token),
                "before": before.get(token.id, 0.0),
                "after": None if left is None else left.get(token.id, 0.0),
            }
            for token in order
        ]
        return {"tokens": rows, "kept": None if left is None else len(left), "all": len(before), "most": MOST_NEXT}
