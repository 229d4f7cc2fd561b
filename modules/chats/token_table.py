"""The tokens of one user's replies, with their probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence

from modules.chats.owned_rows import OwnedTable
from modules.chats.records import TokenStretch
from modules.chats.token_data import unpack
from modules.generation.types import Token


class TokenTable(OwnedTable):
    """Raises NotFound for messages that are not there, deleted, or somebody else's."""

    def get(self, message_id: int) -> list[TokenStretch]:
        """What was kept of a message's tokens, in the order of the text: one stretch for each time it was written at."""
        with self._reading() as own:
            own.message(message_id)
            rows = own.db.execute(
                "SELECT at, data FROM message_tokens WHERE message_id = ? ORDER BY id", (message_id,)
            ).fetchall()
        stretches: dict[int, list[Token]] = {}
        for row in rows:
            stretches.setdefault(row["at"], []).extend(unpack(row["data"]))
        return [TokenStretch(at, tuple(tokens)) for at, tokens in stretches.items()]

    def replace(self, message_id: int, stretches: Sequence[TokenStretch]) -> None:
        """Keep `stretches` in place of what is known of a message's tokens."""
        with self._transaction() as own:
            own.message(message_id)
            own.db.execute("DELETE FROM message_tokens WHERE message_id = ?", (message_id,))
            for stretch in stretches:
                own.add_tokens(message_id, stretch)

    def known(self, message_ids: Sequence[int]) -> set[int]:
        """Those of the user's messages whose tokens are known."""
        with self._reading() as own:
            rows = own.db.execute(
                "SELECT DISTINCT message_id FROM message_tokens WHERE message_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(message_ids)),),
            ).fetchall()
        return {row["message_id"] for row in rows}
