"""Who may come in: logins, keys, and what a public address asks for by itself."""

from __future__ import annotations

import itertools

import pytest
from starlette.requests import Request

from modules.access import ANYONE, COOKIE, make_access
from modules.errors import Forbidden, NotAllowed, UserError
from modules.settings.server import ServerOptions


def request(cookie: str = "", bearer: str = "") -> Request:
    headers = [(b"cookie", f"{COOKIE}={cookie}".encode())] if cookie else []
    if bearer:
        headers.append((b"authorization", f"Bearer {bearer}".encode()))
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers, "query_string": b""})


def access(tmp_path, **options):
    return make_access(ServerOptions(**options), tmp_path)


def test_on_this_machine_alone_nobody_is_asked(tmp_path):
    assert access(tmp_path).user_of(request()) == ANYONE


@pytest.mark.parametrize("public", [{"share": True}, {"listen": True}, {"listen_host": "0.0.0.0"}])
def test_a_public_address_gets_a_one_time_password(tmp_path, public):
    rules = access(tmp_path, **public)
    assert rules.one_time
    assert rules.user_of(request()) is None
    with pytest.raises(NotAllowed):
        rules.require_api(request())
    user, password = next(iter(rules.logins.items()))
    assert rules.user_of(request(rules.log_in(user, password, "a"))) == user
    assert access(tmp_path, no_auth=True, **public).user_of(request()) == ANYONE


def test_a_cookie_survives_a_restart_but_not_a_new_password(tmp_path):
    cookie = access(tmp_path, gradio_auth="ann:one").log_in("ann", "one", "a")
    assert access(tmp_path, gradio_auth="ann:one").user_of(request(cookie)) == "ann"
    assert access(tmp_path, gradio_auth="ann:two").user_of(request(cookie)) is None
    assert access(tmp_path, gradio_auth="ann:one").user_of(request(cookie + "x")) is None


def test_guessing_passwords_is_slowed_down(tmp_path):
    rules = access(tmp_path, gradio_auth="ann:one")
    messages = []
    for guess in range(8):
        with pytest.raises(NotAllowed) as error:
            rules.log_in("ann", f"guess {guess}", "thief")
        messages.append(error.value.message)
    assert "wait" in messages[-1]
    assert rules.log_in("ann", "one", "home")


def test_the_first_login_administers_unless_others_are_named(tmp_path):
    rules = access(tmp_path, gradio_auth="ann:1,bob:2")
    assert rules.is_admin("ann")
    assert not rules.is_admin("bob")
    assert access(tmp_path, gradio_auth="ann:1,bob:2", admin_users=["bob"]).is_admin("bob")
    with pytest.raises(UserError, match="eve"):
        access(tmp_path, gradio_auth="ann:1", admin_users=["eve"])


@pytest.mark.parametrize("pair", ["ann", "ann:", ":x"])
def test_a_login_without_both_parts_is_refused_without_repeating_it(tmp_path, pair):
    with pytest.raises(UserError, match="login 2") as error:
        access(tmp_path, gradio_auth="bob:secret," + pair)
    assert "secret" not in error.value.message


KEYS = {"nobody": "", "wrong": "nope", "api": "K", "admin": "A", "ann": "ann:1", "bob": "bob:2"}
ALLOWED = {
    # (server has an API key, an admin key, logins): who may use the API, who may administer by it
    (False, False, False): ("nobody wrong api admin ann bob", "nobody wrong api admin ann bob"),
    (True, False, False): ("api", "api"),
    (False, True, False): ("nobody wrong api admin ann bob", "admin"),
    (True, True, False): ("api admin", "admin"),
    (False, False, True): ("ann bob", "ann"),
    (True, False, True): ("api ann bob", "api ann"),
    (True, True, True): ("api admin ann bob", "admin ann"),
    (False, True, True): ("admin ann bob", "admin ann"),
}


@pytest.mark.parametrize(("server", "who"), list(itertools.product(ALLOWED, KEYS)), ids=str)
def test_keys_open_what_they_are_for(tmp_path, server, who):
    has_key, has_admin, has_logins = server
    rules = access(
        tmp_path,
        api_key="K" * has_key,
        admin_key="A" * has_admin,
        gradio_auth="ann:1,bob:2" if has_logins else "",
    )
    for check, allowed in zip((rules.require_api, rules.require_api_admin), ALLOWED[server], strict=True):
        if who in allowed.split():
            assert check(request(bearer=KEYS[who]))
        else:
            with pytest.raises(NotAllowed if who not in ALLOWED[server][0].split() else Forbidden):
                check(request(bearer=KEYS[who]))
