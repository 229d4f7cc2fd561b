"""Who may use the server: logins of the page as a signed cookie, keys of the API, and who administers."""

from __future__ import annotations

import hmac
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import HTTPConnection

from modules.errors import Forbidden, NotAllowed, UserError
from modules.settings.logins import read_logins
from modules.settings.server import ServerOptions

COOKIE = "textloom-login"
COOKIE_SECONDS = 30 * 24 * 3600
ANYONE = "local"
"""The owner of chats where no login is asked for."""


@dataclass
class _Attempts:
    """Wrong passwords of one address: the next try must wait a little longer each time."""

    count: int = 0
    until: float = 0.0


@dataclass(frozen=True)
class Access:
    """The rules of one server. Safe to use from any thread.

    logins: user → password; without any, everyone is ANYONE. admins: who may change models and settings; empty means everyone.
    one_time: the password was made at this start and must be shown to the person who started the server.
    """

    logins: Mapping[str, str]
    admins: frozenset[str]
    api_key: str
    admin_key: str
    one_time: bool
    _signer: URLSafeTimedSerializer = field(repr=False)
    _attempts: dict[str, _Attempts] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    # --- the page

    def log_in(self, user: str, password: str, address: str) -> str:
        """The value of the login cookie. Raises NotAllowed for a wrong pair, and where `address` tries too fast."""
        with self._lock:
            tries = self._attempts.setdefault(address, _Attempts())
            if time.monotonic() < tries.until:
                raise NotAllowed("Too many wrong passwords: wait a little before the next try.")
            expected = self.logins.get(user)
            if not _same(password, expected if expected is not None else secrets.token_hex()):
                tries.count += 1
                tries.until = time.monotonic() + min(30.0, 0.25 * 2 ** max(0, tries.count - 4)) * (tries.count > 3)
                raise NotAllowed("User or password is wrong.")
            self._attempts.pop(address, None)
        return self._signer.dumps([user, _fingerprint(password)])

    def user_of(self, connection: HTTPConnection) -> str | None:
        """Who asks: the login name, ANYONE where no login is asked for, None for a stranger."""
        if not self.logins:
            return ANYONE
        try:
            user, fingerprint = self._signer.loads(connection.cookies.get(COOKIE, ""), max_age=COOKIE_SECONDS)
        except (BadSignature, ValueError, TypeError):
            return None
        password = self.logins.get(user)
        return user if password is not None and _same(fingerprint, _fingerprint(password)) else None

    def require_user(self, connection: HTTPConnection) -> str:
        """Like user_of, but raises NotAllowed for a stranger."""
        user = self.user_of(connection)
        if user is None:
            raise NotAllowed("Log in first: the session is over or there was none.")
        return user

    def is_admin(self, user: str | None) -> bool:
        return user is not None and (not self.admins or user in self.admins)

    def require_admin(self, user: str) -> None:
        """Raises Forbidden where `user` may not change models and settings."""
        if not self.is_admin(user):
            raise Forbidden("Only an administrator of this server can do that.")

    # --- the API

    def require_api(self, connection: HTTPConnection) -> str:
        """The name under which an API client acts. Raises NotAllowed without a valid key, login pair or cookie."""
        key = _bearer(connection)
        if user := self._login_of(key) or (self.user_of(connection) if self.logins else None):
            return user
        if self._is_key(key, self.api_key) or self._is_key(key, self.admin_key):
            return next(iter(self.logins), ANYONE)
        if not self.api_key and not self.logins:
            return ANYONE
        raise NotAllowed(
            "This server asks for a key: send it as the header 'Authorization: Bearer KEY' (api_key of the client)."
        )

    def require_api_admin(self, connection: HTTPConnection) -> str:
        """The same for administration: the admin key, an administrator's login, or the API key where there is no admin key.

        Raises NotAllowed for strangers, and Forbidden for those who may use the API and nothing else.
        """
        user = self.require_api(connection)
        if not self.admin_key and not self.logins:
            return user
        key = _bearer(connection)
        login = self._login_of(key) or (self.user_of(connection) if self.logins else None)
        if login and self.is_admin(login):
            return login
        if self._is_key(key, self.admin_key) or (not self.admin_key and self._is_key(key, self.api_key)):
            return user
        raise Forbidden("This needs the server's admin key: send it as the header 'Authorization: Bearer KEY'.")

    def _login_of(self, key: str) -> str | None:
        """The user of a key of the form user:password."""
        user, colon, password = key.partition(":")
        expected = self.logins.get(user) if colon else None
        return user if expected is not None and _same(password, expected) else None

    @staticmethod
    def _is_key(given: str, expected: str) -> bool:
        return bool(expected) and _same(given, expected)


def make_access(options: ServerOptions, data: Path) -> Access:
    """The rules that `options` ask for. A public address without any gets a one-time password. Raises UserError."""
    logins = read_logins(options.gradio_auth, options.gradio_auth_path)
    public = options.share or options.listen or options.listen_host not in ("", "127.0.0.1", "localhost", "::1")
    one_time = public and not logins and not options.no_auth
    if one_time:
        logins = {"user": secrets.token_urlsafe(9)}
    unknown = set(options.admin_users) - set(logins)
    if unknown:
        raise UserError(f"--admin-users: there is no login for {', '.join(sorted(unknown))}.")
    admins = frozenset(options.admin_users or list(logins)[:1])
    signer = URLSafeTimedSerializer(_signing_key(data / "session.key"), salt=COOKIE)
    return Access(logins, admins, options.api_key, options.admin_key, one_time, signer)


def _signing_key(path: Path) -> str:
    """A secret kept beside the chats, so that a restart logs nobody out."""
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        key = secrets.token_urlsafe(32)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(key)
        return key


def _fingerprint(password: str) -> str:
    """Ends all sessions of a user whose password changes."""
    return hmac.new(b"textloom", password.encode(), "sha256").hexdigest()[:16]


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _bearer(connection: HTTPConnection) -> str:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
