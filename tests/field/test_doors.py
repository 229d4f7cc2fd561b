"""Who comes in, and from where: guesses at passwords and keys, sessions that end, proxies that are believed, files that are sent."""

from __future__ import annotations

import asyncio
import io
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient
from websockets.sync.client import connect

from modules.access import COOKIE, make_access
from modules.api import remote_images
from modules.api.guard import is_of_another_site
from modules.api.legacy.serve import LegacyServer
from modules.app import App
from modules.errors import TooManyTries, UserError
from modules.logins.throttling import FREE, LONGEST, Tries, place_of
from modules.settings.server import ServerOptions
from modules.ui import uploads
from tests.fakes import EchoModel, loaded_in
from tests.in_process import make_app
from tests.serving import SCRIPTED, Server, free_port

EVIL = "https://evil.example"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., tuple[App, Callable[..., TestClient]]]]:
    """`site(**options)`: the whole application, and clients of it that come from an address of their own."""
    from modules import web

    made: list[App] = []

    def make(**options: object) -> tuple[App, Callable[..., TestClient]]:
        app = make_app(tmp_path, EchoModel(), **options)
        made.append(app)
        application = web.build(app)

        def client(address: str = "127.0.0.1") -> TestClient:
            return TestClient(application, base_url="http://localhost", follow_redirects=False, client=(address, 5))

        return app, client

    yield make
    for app in made:
        app.close()


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


def wrong_guesses(client: TestClient, account: str, **more: str) -> list[int]:
    """The statuses of 12 different guesses, sent as a key."""
    sent = [bearer(f"{account}:guess {count}" if account else f"guess {count}", **more) for count in range(12)]
    return [client.get("/v1/models", headers=headers).status_code for headers in sent]


# --- guesses


def test_guesses_are_slowed_down_the_same_by_every_way_in(site):
    _, client = site(gradio_auth="ann:secret,bob:other")
    assert wrong_guesses(client(), "ann") == [401] * FREE + [429] * (12 - FREE)
    told = client().get("/v1/models", headers=bearer("ann:secret"))
    assert told.status_code == 429
    assert int(told.headers["retry-after"]) >= 1
    assert told.json()["error"]["code"] == "too_many_tries"
    page = client().post("/login", data={"user": "ann", "password": "secret"}, headers={"Accept-Language": "zh-CN"})
    assert (page.status_code, COOKIE in page.cookies, "请等待" in page.text) == (429, False, True)
    for _ in range(FREE):
        client().post("/login", data={"user": "bob", "password": f"guess {_}"})
    assert client().get("/v1/models", headers=bearer("bob:other")).status_code == 429


def test_guessing_locks_nobody_else_out(site):
    _, client = site(gradio_auth="ann:secret,bob:other", api_key="a key of the server")
    assert client().get("/v1/models", headers=bearer("a key of the server")).status_code == 200  # a program that runs
    assert wrong_guesses(client(), "ann")[-1] == 429
    assert wrong_guesses(client(), "")[-1] == 429
    assert client().get("/v1/models", headers=bearer("bob:other")).status_code == 200
    assert client().post("/login", data={"user": "bob", "password": "other"}).status_code == 303
    assert client().get("/v1/models", headers=bearer("a key of the server")).status_code == 200
    elsewhere = client("192.0.2.7")
    assert elsewhere.get("/v1/models", headers=bearer("ann:secret")).status_code == 200
    assert elsewhere.post("/login", data={"user": "ann", "password": "secret"}).status_code == 303


def test_a_browser_that_was_logged_in_before_is_not_delayed_by_strangers_at_its_address(site):
    _, client = site(gradio_auth="ann:secret")
    anns, right = client(), {"user": "ann", "password": "secret"}
    assert anns.post("/login", data=right).status_code == 303
    assert anns.post("/logout").status_code == 303
    for guess in range(12):
        client().post("/login", data={"user": "ann", "password": f"guess {guess}"})
    assert client().post("/login", data=right).status_code == 429
    assert anns.post("/login", data=right).status_code == 303
    told = [anns.post("/login", data={"user": "ann", "password": f"guess {guess}"}).status_code for guess in range(12)]
    assert told[-1] == 429, "and gives no free guesses"


def test_a_program_that_runs_forgives_nobody_who_guesses_beside_it(site):
    _, client = site(api_key="a key of the server")
    statuses = []
    for count in range(8):
        assert client().get("/v1/models", headers=bearer("a key of the server")).status_code == 200
        statuses.append(client().get("/v1/models", headers=bearer(f"guess {count}")).status_code)
    assert statuses[-1] == 429


def test_a_short_key_is_not_found_by_trying_where_it_is_in_use(site):
    _, client = site(api_key="1234")
    assert client().get("/v1/models", headers=bearer("1234")).status_code == 200
    assert wrong_guesses(client(), "")[-1] == 429
    assert client().get("/v1/models", headers=bearer("1234")).status_code == 429


def test_a_program_with_an_old_key_is_told_so_and_delays_nobody(site):
    _, client = site(api_key="1234")
    assert {client().get("/v1/models", headers=bearer("old")).status_code for _ in range(30)} == {401}
    assert client().get("/v1/models", headers=bearer("1234")).status_code == 200


def test_the_admin_key_is_behind_the_same_limit(site):
    _, client = site(admin_key="A")
    sent = [client().post("/v1/internal/stop", headers=bearer(f"guess {count}")).status_code for count in range(8)]
    assert sent == [403] * FREE + [429] * (8 - FREE)
    assert client().get("/v1/models").status_code == 200


def test_delays_grow_to_a_minute_and_are_forgotten_after_an_hour():
    now = [0.0]
    tries = Tries(lambda: now[0])
    waits = []
    for guess in range(14):
        assert tries.attempt(("ann", "a"), str(guess), lambda: False) == (False, 0.0)
        waits.append(tries.attempt(("ann", "a"), str(guess + 1), lambda: True)[1] if guess >= FREE - 1 else 0.0)
        now[0] += waits[-1]
    grown = [wait for wait in waits if wait]
    assert grown == sorted(grown) and grown[0] >= 1 and grown[-1] == LONGEST
    now[0] += 3700
    for guess in range(FREE - 1):
        tries.attempt(("ann", "a"), f"later {guess}", lambda: False)
    assert tries.attempt(("ann", "a"), "right", lambda: True) == (True, 0.0)


def test_a_right_password_ends_the_count():
    tries = Tries(lambda: 0.0)
    for round in range(5):
        for guess in range(FREE - 1):
            assert tries.attempt(("ann", "a"), f"{round} {guess}", lambda: False) == (False, 0.0)
        assert tries.attempt(("ann", "a"), "right", lambda: True) == (True, 0.0)


def test_addresses_of_one_network_of_ipv6_count_together():
    assert place_of("2001:db8::1") == place_of("2001:db8::ffff:2") != place_of("2001:db8:0:1::1")
    assert place_of("::ffff:192.0.2.1") == "::ffff:192.0.2.1"
    assert place_of("192.0.2.1") != place_of("192.0.2.2")


# --- proxies


def test_a_forwarded_address_is_believed_of_nobody_who_was_not_named(site):
    _, client = site(gradio_auth="ann:secret")
    statuses = [
        client().get("/v1/models", headers=bearer(f"ann:{count}", **{"X-Forwarded-For": f"192.0.2.{count}"})).status_code
        for count in range(12)
    ]
    assert statuses[-1] == 429
    told = [
        client().post("/login", data={"user": "ann", "password": f"x{n}"}, headers={"X-Forwarded-For": f"192.0.2.{n}"})
        for n in range(12)
    ]
    assert told[-1].status_code == 429


def test_a_named_proxy_tells_its_visitors_apart(site):
    _, client = site(gradio_auth="ann:secret", trusted_proxies=["127.0.0.1", "10.0.0.0/8"])
    assert wrong_guesses(client(), "ann", **{"X-Forwarded-For": "192.0.2.1"})[-1] == 429
    right = bearer("ann:secret")
    assert client().get("/v1/models", headers={**right, "X-Forwarded-For": "192.0.2.1"}).status_code == 429
    assert client().get("/v1/models", headers={**right, "X-Forwarded-For": "192.0.2.2"}).status_code == 200
    # What stands before the last stranger is his own invention; what named proxies added after him is not.
    invented = {**right, "X-Forwarded-For": "203.0.113.9, 192.0.2.1, 10.1.1.1"}
    assert client().get("/v1/models", headers=invented).status_code == 429
    assert client("192.0.2.200").get("/v1/models", headers={**right, "X-Forwarded-For": "192.0.2.1"}).status_code == 200


@pytest.mark.parametrize("named", ["*", "localhost", "10.0.0.0/99", "127.0.0.1:80"])
def test_proxies_are_named_by_addresses(named):
    with pytest.raises(UserError, match="neither an IP address nor a network"):
        ServerOptions.read({"trusted_proxies": [named]})


def test_the_port_that_a_named_proxy_shows_is_in_the_pages_own_addresses(site):
    _, client = site(trusted_proxies=["127.0.0.1"])
    seen = {"Host": "chat.example", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "8443"}
    assert client().get("/config", headers=seen).json()["root"] == "https://chat.example:8443"
    seen["X-Forwarded-Host"] = "chat.example"
    assert client().get("/config", headers=seen).json()["root"] == "https://chat.example:8443"
    assert client().get("/config", headers={**seen, "X-Forwarded-Port": "443"}).json()["root"] == "https://chat.example"
    assert client().get("/config", headers={**seen, "X-Forwarded-Port": "x"}).json()["root"] == "https://chat.example"


def test_the_port_of_a_proxy_that_was_not_named_is_not_believed(site):
    _, client = site(root_path="/x")
    seen = {"Host": "chat.example", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "8443"}
    assert ":8443" not in client().get("/config", headers=seen).json()["root"]


# --- other sites

OURS = {
    "a program": {"host": "127.0.0.1:7860"},
    "a program with a key, whatever else": {"authorization": "bearer x", "origin": EVIL, "sec-fetch-site": "cross-site"},
    "the page": {"host": "localhost:7860", "origin": "http://localhost:7860", "sec-fetch-site": "same-origin"},
    "the page on plain http in the network": {"host": "192.168.1.5:7860", "origin": "http://192.168.1.5:7860"},
    "the page by IPv6": {"host": "[fd00::5]:7860", "origin": "http://[fd00::5]:7860"},
    "a page opened by hand": {"host": "localhost:7860", "sec-fetch-site": "none"},
    "behind a proxy on https that changes the name": {
        "host": "127.0.0.1:7860",
        "origin": "https://chat.example",
        "sec-fetch-site": "same-origin",
    },
    "behind a proxy on http that tells the name": {
        "host": "127.0.0.1:7860",
        "origin": "http://chat.lan:81",
        "x-forwarded-host": "chat.lan:81",
    },
    "behind a proxy on http that leaves the port out": {
        "host": "chat.lan",
        "origin": "http://chat.lan:81",
        "x-forwarded-for": "192.168.1.9",
    },
    "behind a tunnel": {"host": "x.gradio.live", "origin": "https://x.gradio.live", "x-forwarded-for": "192.0.2.1"},
    "the usual port, spelt out by a proxy": {"host": "chat.example:443", "origin": "https://chat.example"},
    "in a frame of a notebook, on its hub": {
        "host": "hub.example",
        "origin": "https://hub.example",
        "sec-fetch-site": "same-origin",
        "sec-fetch-dest": "empty",
    },
}
OTHERS = {
    "another site": {"host": "localhost:7860", "origin": EVIL, "sec-fetch-site": "cross-site"},
    "another site, of an old browser": {"host": "localhost:7860", "origin": EVIL},
    "another server of this machine": {"host": "localhost:7860", "origin": "http://localhost:3000"},
    "another server of the usual port": {"host": "chat.lan", "origin": "http://chat.lan:3000"},
    "another name of this machine": {"host": "localhost:7860", "origin": "http://127.0.0.1:7860"},
    "a sandboxed frame": {"host": "localhost:7860", "origin": "null"},
    "a neighbour below the same name": {"host": "a.example", "sec-fetch-site": "same-site"},
    "a name that begins like ours": {"host": "chat.example", "origin": "https://chat.example.evil.example"},
    "a login in the address": {"host": "localhost:7860", "origin": EVIL, "authorization": "Basic eDp5"},
    "no name at all": {"host": "", "origin": "http://"},
}


@pytest.mark.parametrize("how", OURS)
def test_the_own_page_and_programs_may_act(how):
    assert not is_of_another_site(OURS[how])


@pytest.mark.parametrize("how", OTHERS)
def test_pages_of_other_sites_may_not(how):
    assert is_of_another_site(OTHERS[how])


HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def test_a_site_reads_no_replies_by_the_websockets_of_2023(tmp_path):
    app = make_app(tmp_path, EchoModel(), api_blocking_port=free_port(), api_streaming_port=free_port())
    server = LegacyServer(app, "127.0.0.1")
    try:
        for path in ("stream", "chat-stream"):
            for origin in (EVIL, "null", "http://localhost:7860"):
                opening = {**HANDSHAKE, "Origin": origin}
                refused = httpx.get(f"http://127.0.0.1:{server.ports[1]}/api/v1/{path}", headers=opening)
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_site")
            assert not loaded_in(app.manager).requests
        with connect(f"ws://127.0.0.1:{server.ports[1]}/api/v1/stream") as socket:
            socket.send('{"prompt": "hello"}')
            assert "text_stream" in str(socket.recv(timeout=10))
    finally:
        server.close()
        app.close()


def test_no_other_server_of_this_machine_may_read_with_the_visitors_cookie(site):
    _, client = site()
    for path in ("/config", "/gradio_api/info", "/gradio_api/upload", "/chats", "/v1/models"):
        for method in ("GET", "OPTIONS"):
            asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
            answer = client().request(method, path, headers=asked)
            assert not any(name.startswith("access-control") for name in answer.headers), (method, path)


# --- sessions


def request_with(cookie: str) -> Request:
    return Request({"type": "http", "headers": [(b"cookie", f"{COOKIE}={cookie}".encode())], "path": "/", "method": "GET"})


def test_a_logout_ends_the_session_wherever_its_cookie_was_copied_to(site):
    _, client = site(gradio_auth="ann:secret")
    anns, thief = client(), client()
    anns.post("/login", data={"user": "ann", "password": "secret"})
    thief.cookies[COOKIE] = anns.cookies[COOKIE]
    assert thief.get("/config").status_code == 200
    other = client()
    other.post("/login", data={"user": "ann", "password": "secret"})
    assert anns.post("/logout").status_code == 303
    assert thief.get("/config").status_code == 401
    assert other.get("/config").status_code == 200, "the session of another browser goes on"


def test_sessions_outlive_a_restart_and_end_with_a_new_password_for_good(tmp_path):
    def access(logins: str) -> Any:
        return make_access(ServerOptions(gradio_auth=logins), tmp_path)

    rules = access("ann:one,bob:two")
    ann, bob = rules.log_in("ann", "one", "a"), rules.log_in("bob", "two", "a")
    rules.close()
    assert access("ann:one,bob:two").user_of(request_with(ann)) == "ann"
    changed = access("ann:new,bob:two")
    assert changed.user_of(request_with(ann)) is None
    assert changed.user_of(request_with(bob)) == "bob"
    assert access("ann:one,bob:two").user_of(request_with(ann)) is None, "the old password brings no old session back"
    assert access("bob:two").user_of(request_with(ann)) is None
    assert access("bob:two").user_of(request_with("")) is None


def test_a_session_ends_after_thirty_days(tmp_path):
    rules = make_access(ServerOptions(gradio_auth="ann:one"), tmp_path)
    cookie = rules.log_in("ann", "one", "a")
    with sqlite3.connect(tmp_path / "logins.sqlite3") as db:
        db.execute("UPDATE sessions SET begun = ?", (time.time() - 31 * 24 * 3600,))
    db.close()
    assert rules.user_of(request_with(cookie)) is None


def test_neither_cookie_nor_data_folder_tell_the_password(tmp_path):
    password = "mandarin-im-Keller"
    cookies = set()
    for _ in range(2):
        rules = make_access(ServerOptions(gradio_auth=f"ann:{password},bob:{password}"), tmp_path)
        cookies |= {rules.log_in("ann", password, "a"), rules.log_in("bob", password, "a")}
        rules.close()
    assert len(cookies) == 4, "each session has a token of its own"
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert password.encode() not in kept
    assert not any(cookie.encode() in kept for cookie in cookies)
    with sqlite3.connect(tmp_path / "logins.sqlite3") as db:
        rows = db.execute("SELECT salt, hash FROM passwords").fetchall()
    db.close()
    assert len(rows) == 2 and len(set(rows)) == 2 and len({salt for salt, _ in rows}) == 2, "salted"


def test_the_data_folder_is_closed_to_other_users_of_the_machine(tmp_path):
    (tmp_path / "data").mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        app = make_app(tmp_path, gradio_auth="ann:one")
        app.access.log_in("ann", "one", "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data" / "logins.sqlite3").stat().st_mode) == 0o600
    app.close()


# --- files that are sent


def sent(size: int = 10) -> dict[str, Any]:
    return {"files": {"files": ("rows.jsonl", io.BytesIO(b"x" * size), "application/json")}}


def test_a_file_of_the_page_lies_in_the_data_folder_and_one_of_another_site_nowhere(site, tmp_path):
    _, client = site()
    refused = client().post("/gradio_api/upload", headers={"Origin": EVIL}, **sent())
    assert refused.status_code == 403
    assert not [path for path in (tmp_path / "data" / "uploads").rglob("*") if path.is_file()]
    (path,) = client().post("/gradio_api/upload", headers={"Origin": "http://localhost"}, **sent()).json()
    assert Path(path).is_relative_to(tmp_path / "data" / "uploads")
    assert Path(path).read_bytes() == b"x" * 10


def test_uploads_are_bounded_one_by_one_and_all_together(site, monkeypatch):
    monkeypatch.setattr(uploads, "LARGEST", 2000)
    monkeypatch.setattr(uploads, "MOST", 3000)
    _, client = site()
    too_large = client().post("/gradio_api/upload", **sent(2000))
    assert (too_large.status_code, "too large" in too_large.json()["error"]["message"]) == (413, True)
    assert client().post("/gradio_api/upload", **sent(1500)).status_code == 200
    full = client().post("/gradio_api/upload", **sent(1501))
    assert (full.status_code, "no room" in full.json()["error"]["message"]) == (413, True)
    endless = client().post("/gradio_api/upload", content=iter([b"x"]), headers={"Content-Type": "multipart/form-data"})
    assert endless.status_code == 411


def test_uploads_of_yesterday_are_swept(site, tmp_path):
    app, client = site()
    (path,) = client().post("/gradio_api/upload", **sent()).json()
    old, folder = Path(path), Path(path).parent
    for place in (old, folder):
        os.utime(place, (0, time.time() - uploads.KEPT_SECONDS - 5))
    (new,) = client().post("/gradio_api/upload", **sent(11)).json()
    assert not old.exists() and Path(new).exists()
    os.utime(new, (0, time.time() - uploads.KEPT_SECONDS - 5))
    uploads.prepare(app.data)  # as the next start does
    assert not Path(new).exists()


# --- addresses


@pytest.mark.slow
@pytest.mark.parametrize("given", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_taken_with_brackets_and_shown_with_them(tmp_path, given):
    arguments = ["--listen-host", given, "--nowebui", "--model-dir", str(tmp_path / "models")]
    with Server(arguments, data=tmp_path / "data") as server:
        assert f"READY local=http://[::1]:{server.port}\n" in server.lines
        assert not any("Password" in line for line in server.lines), "it is no public address"
        assert httpx.get(f"http://[::1]:{server.port}/health").status_code == 200
        foreign = httpx.get(f"http://[::1]:{server.port}/health", headers={"Host": "evil.example"})
        assert foreign.status_code == 403


@pytest.mark.slow
def test_the_path_of_a_whole_address_is_the_path_of_the_page(tmp_path):
    program = ("-c", SCRIPTED)
    arguments = ["--root-path", "https://chat.example/a/b/", "--nowebui", "--model", "tiny"]
    with Server(arguments, data=tmp_path / "data", program=program) as server, server.client() as client:
        assert f"READY local={server.url}/a/b\n" in server.lines
        assert client.get("/a/b/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("given", "path"), [("https://x/a/b", "/a/b"), ("/a/b", "/a/b"), ("http://x", ""), ("HTTPS://x:8/a?b#c", "/a")]
)
def test_of_an_address_the_path_counts(given, path):
    assert ServerOptions.read({"root_path": given}).root_path == path


def test_too_many_tries_say_how_long_to_wait(tmp_path):
    rules = make_access(ServerOptions(gradio_auth="ann:one"), tmp_path)
    for guess in range(FREE):
        with pytest.raises(UserError):
            rules.log_in("ann", f"{guess}", "a")
    with pytest.raises(TooManyTries, match=r"wait \d+ s"):
        rules.log_in("ann", "one", "a")
    assert rules.log_in("ann", "one", "b")


# --- pictures that requests name

METADATA = "169.254.169.254"


class Internet:
    """Names and what they lead to, one answer after the other; every connection is to a site that sends on to `target`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]], target: str = "") -> None:
        import httpx as client

        self.connected: list[str] = []

        async def look_up(loop: Any, host: str, port: int, **more: Any) -> list[Any]:
            answers = names.get(host, [host])
            address = answers.pop(0) if len(answers) > 1 else answers[0]
            return [(2, 1, 6, "", (address, port))]

        async def answer(transport: Any, request: Any) -> Any:
            self.connected.append(request.url.host)
            if request.url.path == "/to":
                return client.Response(302, headers={"Location": target})
            return client.Response(200, content=b"the secret of the cloud")

        monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", look_up)
        monkeypatch.setattr(client.AsyncHTTPTransport, "handle_async_request", answer)


INSIDE = {
    "loopback": "http://127.0.0.1:7860/v1/models",
    "loopback by name": "http://inside.test/x",
    "the metadata of a cloud": f"http://{METADATA}/latest/meta-data/",
    "the metadata of a cloud, in IPv6": "http://[::ffff:a9fe:a9fe]/latest/",
    "another scheme": "gopher://127.0.0.1/",
}


@pytest.mark.parametrize("how", INSIDE)
def test_a_picture_is_not_fetched_where_a_redirect_leads_inside(monkeypatch, how):
    net = Internet(monkeypatch, {"site.test": ["8.8.8.8"], "inside.test": ["127.0.0.1"]}, INSIDE[how])
    with pytest.raises(UserError, match=r"public addresses|http address"):
        asyncio.run(remote_images.fetch("http://site.test/to", "messages"))
    assert net.connected == ["8.8.8.8"]


@pytest.mark.parametrize("inside", ["127.0.0.1", METADATA, "::1"])
def test_a_name_that_changes_its_answer_leads_nowhere_else(monkeypatch, inside):
    """The address that was looked at is the one that is connected to; each redirect is looked up again."""
    net = Internet(monkeypatch, {"site.test": ["8.8.8.8", inside]}, "http://site.test/picture.png")
    assert asyncio.run(remote_images.fetch("http://site.test/picture.png", "messages")) == b"the secret of the cloud"
    assert net.connected == ["8.8.8.8"]
    net = Internet(monkeypatch, {"site.test": ["8.8.8.8", inside]}, "http://site.test/picture.png")
    with pytest.raises(UserError, match="public addresses"):
        asyncio.run(remote_images.fetch("http://site.test/to", "messages"))
    assert net.connected == ["8.8.8.8"]
