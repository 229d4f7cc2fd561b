"""What a user can do in a chat: say something, have replies made, edited and continued, change its settings, delete."""

from __future__ import annotations

from collections.abc import Sequence

from modules.chats import files
from modules.chats.conversation import ChatSettings
from modules.chats.records import Chat, Figures, StoredMessage, pictures_of
from modules.errors import UserError
from modules.generation.reasoning import without_reasoning
from modules.generation.types import Role
from modules.services.reply_builder import ReplyService, draft_of, runs_of, settings_of, with_runs


class Chats(ReplyService):
    """Every refusal is a UserError; nothing is kept where the model refuses a request."""

    def begin(self, content: str, settings: dict[str, object], pictures: Sequence[int] = ()) -> StoredMessage:
        """Say the first thing in a new chat, which is made only if the model takes the message."""
        return self._say_and_answer(self.builder.new_chat(settings), [], content, pictures)

    def send(self, chat_id: int, content: str, after: int | None, pictures: Sequence[int] = ()) -> StoredMessage:
        """Say something after message `after` (None: first of all), and begin the reply, which is returned."""
        chat = self.history.chats.get(chat_id)
        return self._say_and_answer(chat, self.builder.branch(chat_id, after), content, pictures)

    def _say_and_answer(
        self, chat: Chat, branch: Sequence[StoredMessage], content: str, pictures: Sequence[int] = ()
    ) -> StoredMessage:
        """Add what a user says under a branch, and a reply to it. A chat with the id 0 is made first."""
        with self.app.manager.lease(wait=True) as model:
            if pictures and not model.capabilities.images:
                raise UserError(f"{model.name} cannot see pictures. Take them away, or load a model that sees.")
            draft = draft_of(chat, branch[-1].id if branch else None, content, self.history.pictures.check(pictures))
            how = self.builder.settings(chat)
            request = self.builder.request(model, how, [*branch, draft])

            def make() -> StoredMessage:
                kept, said = self.builder.keep_draft(chat, draft)
                return self.builder.add_reply(model, kept, said.id, how, request)

            return self.replies.begin(model, request, make, preset=how.preset)

    def add(
        self, chat_id: int | None, after: int | None, role: Role, content: str, settings: dict[str, object] | None = None
    ) -> StoredMessage:
        """Keep a message after message `after` without an answer; without a chat in a new one with `settings`."""
        if not content:
            raise UserError("The message is empty: write something first.")
        if chat_id is None:
            chat = self.history.chats.create(settings=self.builder.new_chat(settings).settings)
        else:
            chat = self.history.chats.get(chat_id)
        return self.history.messages.add(chat.id, after, role, content)

    def regenerate(self, message_id: int) -> StoredMessage:
        """Another version of a reply; for a message of the user, a reply to it."""
        message = self.history.messages.get(message_id)
        chat = self.history.chats.get(message.chat_id)
        branch = self.builder.branch(chat.id, message.id if message.role == "user" else message.parent_id)
        how = self.builder.settings(chat)
        with self.app.manager.lease(wait=True) as model:
            request = self.builder.request(model, how, branch)

            def make() -> StoredMessage:
                return self.builder.add_reply(model, chat, branch[-1].id, how, request)

            return self.replies.begin(model, request, make, preset=how.preset)

    def continue_reply(self, message_id: int) -> StoredMessage:
        """Go on at the end of a reply: in the same message where it is the last one, else in a version of it.

        What others have answered to stays as they saw it.
        """
        history = self.history
        message = history.messages.get(message_id)
        chat = history.chats.get(message.chat_id)
        how = self.builder.settings(chat)
        branch = self.builder.branch(chat.id, message.id)
        with self.app.manager.lease(wait=True) as model:
            request = self.builder.request(model, how, branch, continue_reply=True)

            def make() -> StoredMessage:
                extra = with_runs(*runs_of(message), self.builder.run(model, how, request, at=len(message.content)))
                if not history.messages.answered(message_id):
                    history.messages.select(message_id)
                    history.messages.annotate(message_id, extra)
                    return history.messages.reopen(message_id)
                copy = history.messages.add(
                    chat.id,
                    message.parent_id,
                    "assistant",
                    message.content,
                    state="streaming",
                    figures=message.figures,
                    extra={**message.extra, **extra},
                )
                history.tokens.replace(copy.id, history.tokens.get(message.id))
                return copy

            return self.replies.begin(model, request, make, preset=how.preset)

    def edit(self, message_id: int, content: str, *, answer: bool = True) -> StoredMessage:
        """A new version of a message beside the old one; one of the user's is answered, unless `answer` is off.

        Its pictures and files stay.
        """
        message = self.history.messages.get(message_id)
        chat = self.history.chats.get(message.chat_id)
        pictures = pictures_of(message.extra)
        if message.role == "user":
            content = files.joined(files.split(message.content)[0], content)
        if message.role == "user" and answer:
            return self._say_and_answer(chat, self.builder.branch(chat.id, message.parent_id), content, pictures)
        if not content.strip():
            raise UserError("The message is empty. Delete it instead.")
        opened = message.figures.opened
        if opened and not without_reasoning(content, opened):
            opened = ""  # people took the end of the thinking away: what is left is said
        return self.history.messages.add(
            chat.id,
            message.parent_id,
            message.role,
            content,
            model=message.model,
            sampling=message.sampling,
            figures=Figures(edited=True, opened=opened),
            extra={"pictures": list(pictures)} if pictures else None,
        )

    def stop(self, message_id: int) -> bool:
        """End a reply of one's own."""
        self.history.messages.get(message_id)
        return self.replies.stop(message_id)

    def delete_message(self, message_id: int) -> Chat:
        """Take a message and what follows it away; replies being written there end first."""
        message = self.history.messages.get(message_id)
        for reply in self._being_written(message.chat_id):
            path = self.history.messages.path(message.chat_id, reply)
            if any(node.message.id == message_id for node in path):
                self.replies.stop(reply)
        return self.history.messages.delete_branch(message_id)

    def delete(self, chat_id: int) -> None:
        """Take a chat away; replies being written in it end first."""
        for reply in self._being_written(chat_id):
            self.replies.stop(reply)
        self.history.chats.delete(chat_id)

    def _being_written(self, chat_id: int) -> list[int]:
        return [message.id for message in self.history.messages.tree(chat_id) if message.state == "streaming"]

    def change_settings(self, chat_id: int, values: dict[str, object]) -> Chat:
        """Change the chat's own settings. Raises UserError for values that cannot be."""
        checked = settings_of(self.history.chats.get(chat_id)).changed(values)
        if checked.template:
            self.app.templates.read(checked.template)
        if checked.character:
            self.app.characters.read(self.owner, checked.character)
        differences = checked.differences()
        neutral = set(ChatSettings.model_fields) - set(differences)
        return self.history.chats.change_settings(chat_id, differences | dict.fromkeys(neutral))
