"""The preferences of one user, each a JSON value under its name."""

from __future__ import annotations

import json
from typing import Any

from modules.chats.owned_rows import OwnedTable


class PreferenceTable(OwnedTable):
    """What is remembered for a user, across restarts."""

    def get(self, name: str, default: Any = None) -> Any:
        with self._reading() as own:
            row = own.db.execute("SELECT value FROM preferences WHERE owner = ? AND name = ?", (self._owner, name)).fetchone()
        return default if row is None else json.loads(row["value"])

    def set(self, name: str, value: Any) -> None:
        """None forgets it."""
        with self._transaction() as own:
            if value is None:
                own.db.execute("DELETE FROM preferences WHERE owner = ? AND name = ?", (self._owner, name))
            else:
                own.db.execute("INSERT OR REPLACE INTO preferences VALUES (?, ?, ?)", (self._owner, name, json.dumps(value)))
