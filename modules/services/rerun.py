"""A reply made again exactly, and how a program would ask for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modules.chats.records import Run, StoredMessage
from modules.errors import Conflict, UserError
from modules.generation.types import GenerationRequest, LoadedModel
from modules.services.reply_builder import ReplyService, ReplySettings, runs_of, settings_of_run, with_runs
from modules.services.snippets import api_body, curl, python


class Rerun(ReplyService):
    """Replies made again, and as requests of a program."""

    def run(self, message_id: int) -> StoredMessage:
        """A version of a reply from the same prompt, seed, sampling and adapter. Raises UserError where that cannot be.

        Of a reply that was continued, the last stretch is made again. The version's `extra["again"]` names the reply; the page
        compares the two when it is finished.
        """
        message = self.history.messages.get(message_id)
        chat = self.history.chats.get(message.chat_id)
        runs = runs_of(message)
        if message.role != "assistant" or not runs:
            raise UserError("What made this reply is not known: it was written by hand, imported, or made by an older version.")
        if message.state == "streaming":
            raise UserError("This reply is still being written.")
        run = runs[-1]
        how = settings_of_run(run)
        with self.app.manager.lease(wait=True) as model:
            if model.name != run.model:
                raise Conflict(f"This reply was made by {run.model}, and {model.name} is loaded. Load {run.model} first.")
            request, tokens = self._request(model, message, run, how)

            def make() -> StoredMessage:
                if not run.at:
                    parent = message.parent_id
                    if parent is None:
                        raise UserError("This reply answers nothing.")
                    return self.builder.add_reply(model, chat, parent, how, request, again=message.id)
                again = self.builder.run(model, how, request, at=run.at, exact=run.exact)
                version = self.history.messages.add(
                    chat.id,
                    message.parent_id,
                    "assistant",
                    message.content[: run.at],
                    state="streaming",
                    extra={**with_runs(*runs[:-1], again), "again": message.id},
                )
                self.history.tokens.replace(version.id, tokens)
                return version

            return self.replies.begin(model, request, make, preset=how.preset)

    def _request(
        self, model: LoadedModel, message: StoredMessage, run: Run, how: ReplySettings
    ) -> tuple[GenerationRequest, list[Any]]:
        """(the request of a run, the tokens that are known of the text before it)."""
        branch = self.builder.branch(message.chat_id, message.parent_id)
        if not run.at:
            return self.builder.request(model, how, branch), []
        before = [stretch for stretch in self.history.tokens.get(message.id) if stretch.at < run.at]
        if run.exact:
            if not before:
                raise Conflict("The tokens that this reply went on from are not kept any more.")
            return self.builder.exact_request(model, message, how, before), before
        begun = replace(message, content=message.content[: run.at])
        return self.builder.request(model, how, [*branch, begun], continue_reply=True), before

    def comparison(self, version: StoredMessage) -> dict[str, Any] | None:
        """How a reply that was made again came out beside the first one; None where it is no such reply, or not finished."""
        first_id = version.extra.get("again")
        if not isinstance(first_id, int) or version.state == "streaming":
            return None
        try:
            first = self.history.messages.get(first_id)
        except UserError:
            return None
        hashes = {first.figures.prompt_hash, version.figures.prompt_hash}
        return {
            "of": first.id,
            "same_prompt": len(hashes) == 1 if None not in hashes else None,
            "same_text": first.content == version.content,
        }

    def as_programs(self, message_id: int, address: str) -> dict[str, str]:
        """{"curl", "python"}: how to ask the API at `address` (…/v1) for a reply. Raises UserError."""
        message = self.history.messages.get(message_id)
        chat = self.history.chats.get(message.chat_id)
        how = self.builder.settings_of_reply(chat, message)
        with self.app.manager.lease(wait=True) as model:
            if message.role == "assistant":
                runs = runs_of(message)
                run = runs[-1] if runs else Run(message.model or "")
                request, _ = self._request(model, message, replace(run, exact=False), how)
            else:
                request = self.builder.request(model, how, self.builder.branch(chat.id, message.id))
            path, body = api_body(request, message.model or model.name, self._template_named(model, request, how))
        return {"curl": curl(address + path, body), "python": python(address, path, body)}

    def _template_named(self, model: LoadedModel, request: GenerationRequest, how: ReplySettings) -> str | None:
        """How the API is told the template of a request: by name or as source, None where it would take that one by itself."""
        named = how.settings.template
        if named and request.template == self.app.templates.read(named):
            return named
        return None if request.template == self.builder.requests.template(model, how.settings) else request.template
