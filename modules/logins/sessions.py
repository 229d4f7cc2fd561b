"""Who is logged in, in one SQLite file: sessions that last through a restart, and end at a logout or with a new password."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from modules.errors import Unavailable
from modules.settings.disk import full_disk_told

SESSION_SECONDS = 30 * 24 * 3600
BROWSER_SECONDS = 365 * 24 * 3600
_TABLES = """
    CREATE TABLE IF NOT EXISTS sessions (token BLOB PRIMARY KEY, user TEXT NOT NULL, begun REAL NOT NULL);
    CREATE TABLE IF NOT EXISTS browsers (token BLOB PRIMARY KEY, user TEXT NOT NULL, begun REAL NOT NULL);
    CREATE TABLE IF NOT EXISTS passwords (user TEXT PRIMARY KEY, salt BLOB NOT NULL, hash BLOB NOT NULL);
"""


class Sessions:
    """Sessions and known browsers. Only digests of their tokens are kept, and salted scrypt hashes of passwords.

    Safe to use from any thread, and by several servers with the same folder.
    """

    def __init__(self, path: Path) -> None:
        """Raises Unavailable where the file cannot be opened."""
        self._lock = threading.Lock()
        self._path = path
        self._checked: dict[str, str] = {}
        """User → the password that his sessions are known to be of."""
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_TABLES)
        except (sqlite3.DatabaseError, OSError) as error:
            raise Unavailable(f"The logins in {path} cannot be opened ({error}). Remove it: everybody logs in again.") from None

    def begin(self, user: str, password: str) -> str:
        """The token of a new session. Raises DiskFull."""
        with self._writing():
            self._hold(user, password)
            self._forget_old()
            return self._add("sessions", user)

    def user_of(self, token: str, passwords: Mapping[str, str]) -> str | None:
        """Whose session `token` is, while the user has the password that it began with. Raises DiskFull."""
        with self._writing():
            user = self._owner("sessions", token, SESSION_SECONDS)
            password = passwords.get(user) if user is not None else None
            if user is None or password is None:
                return None
            self._hold(user, password)
            return self._owner("sessions", token, SESSION_SECONDS)

    def end(self, token: str) -> None:
        """Raises DiskFull."""
        with self._writing():
            self._db.execute("DELETE FROM sessions WHERE token = ?", (_digest(token),))

    def remember_browser(self, user: str) -> str:
        """The token by which a browser is known again, in which `user` has logged in. Raises DiskFull."""
        with self._writing():
            return self._add("browsers", user)

    def knows_browser(self, token: str, user: str) -> bool:
        with self._lock:
            return bool(token) and self._owner("browsers", token, BROWSER_SECONDS) == user

    def close(self) -> None:
        with self._lock, closing(self._db):
            pass

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, full_disk_told(self._path):
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _add(self, table: str, user: str) -> str:
        token = secrets.token_urlsafe(32)
        self._db.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (_digest(token), user, time.time()))
        return token

    def _owner(self, table: str, token: str, seconds: float) -> str | None:
        row = self._db.execute(
            f"SELECT user FROM {table} WHERE token = ? AND begun > ?", (_digest(token), time.time() - seconds)
        ).fetchone()
        return row[0] if row is not None else None

    def _forget_old(self) -> None:
        self._db.execute("DELETE FROM sessions WHERE begun < ?", (time.time() - SESSION_SECONDS,))
        self._db.execute("DELETE FROM browsers WHERE begun < ?", (time.time() - BROWSER_SECONDS,))

    def _hold(self, user: str, password: str) -> None:
        """Compare with the password of the last time; another one ends the sessions. Hashing takes a while, so once only."""
        if self._checked.get(user) == password:
            return
        row = self._db.execute("SELECT salt, hash FROM passwords WHERE user = ?", (user,)).fetchone()
        if row is None or not hmac.compare_digest(_hash(password, row[0]), row[1]):
            salt = secrets.token_bytes(16)
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM sessions WHERE user = ?", (user,))
            self._db.execute("INSERT OR REPLACE INTO passwords VALUES (?, ?, ?)", (user, salt, _hash(password, salt)))
            self._db.execute("COMMIT")
        self._checked[user] = password


def _digest(token: str) -> bytes:
    """Tokens are random and long: a plain digest is enough, where passwords need a slow hash."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, maxmem=64 * 1024**2)
