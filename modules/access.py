"""Who may use the server: logins of the page as a session, keys of the API, and who administers."""

from __future__ import annotations

import hmac
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from starlette.requests import HTTPConnection

from modules.errors import Forbidden, NotAllowed, TooManyTries, UserError
from modules.logins.sessions import SESSION_SECONDS, Sessions
from modules.logins.throttling import Tries, place_of
from modules.settings.addresses import is_loopback
from modules.settings.logins import read_logins
from modules.settings.server import ServerOptions

COOKIE = "textloom-login"
COOKIE_SECONDS = SESSION_SECONDS
ANYONE = "local"
"""The owner of chats where no login is asked for."""


@dataclass(frozen=True)
class _Holder:
    """Whose a right key is: of a login, or one of the server's two keys."""

    kind: Literal["login", "api", "admin"]
    user: str


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
    _sessions: Sessions | None = field(repr=False)
    """None without logins."""
    _tries: Tries = field(default_factory=Tries, repr=False)

    # --- the page

    def log_in(self, user: str, password: str, address: str, *, browser: str = "") -> str:
        """The value of the login cookie. Raises NotAllowed for a wrong pair, and TooManyTries.

        address: where the request comes from; browser: what `browser_of` gave it, so that nobody else's tries delay it.
        """
        assert self._sessions is not None
        known = self._sessions.knows_browser(browser, user)
        guesser = (user, browser) if known else (user, place_of(address))
        expected = self.logins.get(user)

        def right() -> bool:
            return _same(password, expected if expected is not None else secrets.token_hex())

        if not self._attempt(guesser, password, right):
            raise NotAllowed("User or password is wrong.")
        return self._sessions.begin(user, password)

    def log_out(self, connection: HTTPConnection) -> None:
        """End the session for good, wherever its cookie was copied to."""
        if self._sessions is not None:
            self._sessions.end(connection.cookies.get(COOKIE, ""))

    def browser_of(self, user: str, browser: str = "") -> str:
        """What tells a browser, in which `user` has logged in, from those of strangers at the same address."""
        assert self._sessions is not None
        known = self._sessions.knows_browser(browser, user)
        return browser if known else self._sessions.remember_browser(user)

    def user_of(self, connection: HTTPConnection) -> str | None:
        """Who asks: the login name, ANYONE where no login is asked for, None for a stranger."""
        if self._sessions is None:
            return ANYONE
        token = connection.cookies.get(COOKIE, "")
        return self._sessions.user_of(token, self.logins) if token else None

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
        """The name under which an API client acts. Raises NotAllowed without a valid key, login pair or cookie; TooManyTries."""
        if not self.api_key and not self.logins:
            return ANYONE
        if holder := self._holder_of_key(connection):
            return holder.user
        if self.logins and (user := self.user_of(connection)):
            return user
        raise NotAllowed(
            "This server asks for a key: send it as the header 'Authorization: Bearer KEY' (api_key of the client)."
        )

    def require_api_admin(self, connection: HTTPConnection) -> str:
        """The same for administration: the admin key, an administrator's login, or the API key where there is no admin key.

        Raises NotAllowed for strangers, TooManyTries, and Forbidden for those who may use the API and nothing else.
        """
        user = self.require_api(connection)
        if not self.admin_key and not self.logins:
            return user
        holder = self._holder_of_key(connection)
        if holder is None and self.logins:
            holder = _Holder("login", user)
        if holder is not None:
            match holder.kind:
                case "login" if self.is_admin(holder.user):
                    return holder.user
                case "admin":
                    return user
                case "api" if not self.admin_key:
                    return user
                case _:
                    pass
        raise Forbidden("This needs the server's admin key: send it as the header 'Authorization: Bearer KEY'.")

    def close(self) -> None:
        if self._sessions is not None:
            self._sessions.close()

    def _holder_of_key(self, connection: HTTPConnection) -> _Holder | None:
        """Whose key the request has; None without one and for a wrong one, which counts as a try. Raises TooManyTries."""
        key = _bearer(connection)
        if not key:
            return None
        found: list[_Holder] = []

        def right() -> bool:
            found.extend(self._holders(key))
            return bool(found)

        account = key.partition(":")[0] if ":" in key and not self._has_colons() else ""
        address = connection.client.host if connection.client else ""
        secret = key.partition(":")[2] if account else key
        self._attempt((account, place_of(address)), secret, right, program=True)
        return found[0] if found else None

    def _holders(self, key: str) -> list[_Holder]:
        user, colon, password = key.partition(":")
        expected = self.logins.get(user) if colon else None
        first = next(iter(self.logins), ANYONE)
        found = [_Holder("login", user)] if expected is not None and _same(password, expected) else []
        if self.admin_key and _same(key, self.admin_key):
            found.append(_Holder("admin", first))
        if self.api_key and _same(key, self.api_key):
            found.append(_Holder("api", first))
        return found

    def _has_colons(self) -> bool:
        """Whether what looks like a login may be a try at a key: all tries count together then."""
        return ":" in self.api_key or ":" in self.admin_key

    def _attempt(self, guesser: tuple[str, ...], secret: str, right: Callable[[], bool], *, program: bool = False) -> bool:
        """Whether `secret` is right. Raises TooManyTries where it is not looked at."""
        ok, wait = self._tries.attempt(guesser, secret, right, program=program)
        if wait:
            raise TooManyTries(math.ceil(wait))
        return ok


def make_access(options: ServerOptions, data: Path) -> Access:
    """The rules that `options` ask for. A public address without any gets a one-time password. Raises UserError."""
    logins = read_logins(options.gradio_auth, options.gradio_auth_path)
    here = not options.listen_host or is_loopback(options.listen_host)
    public = options.share or options.listen or not here
    one_time = public and not logins and not options.no_auth
    if one_time:
        logins = {"user": secrets.token_urlsafe(9)}
    unknown = set(options.admin_users) - set(logins)
    if unknown:
        raise UserError(f"--admin-users: there is no login for {', '.join(sorted(unknown))}.")
    admins = frozenset(options.admin_users or list(logins)[:1])
    sessions = Sessions(data / "logins.sqlite3") if logins else None
    (data / "session.key").unlink(missing_ok=True)  # signed the cookies of earlier versions
    return Access(logins, admins, options.api_key, options.admin_key, one_time, sessions)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected.encode())


def _bearer(connection: HTTPConnection) -> str:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
