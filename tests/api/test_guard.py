"""Names under which a server for one machine answers, and those under which it does not."""

from __future__ import annotations

import httpx
import pytest

from modules.api.guard import is_local, is_private
from modules.settings.server import ServerOptions

LOCAL = [
    "localhost",
    "localhost:7860",
    "127.0.0.1",
    "127.0.0.1:7860",
    "127.8.8.8:1",
    "[::1]:7860",
    "[::1]",
    "app.localhost:80",
    "LOCALHOST",
]
FOREIGN = [
    "evil.example",
    "evil.example:7860",
    "localhost.evil.example",
    "192.168.1.5:7860",
    "127.0.0.1.evil.example",
    "[::2]:80",
    "0.0.0.0",
]


@pytest.mark.parametrize("host", LOCAL)
def test_local_names(host):
    assert is_local(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_names(host):
    assert not is_local(host)


@pytest.mark.parametrize(
    ("options", "private"),
    [
        ({}, True),
        ({"listen_host": "127.0.0.1"}, True),
        ({"listen_host": "::1"}, True),
        ({"listen": True}, False),
        ({"listen_host": "0.0.0.0"}, False),
        ({"share": True}, False),
        ({"root_path": "/textloom"}, False),
    ],
)
def test_only_a_server_for_one_machine_is_guarded(options, private):
    assert is_private(ServerOptions(**options)) is private


def test_a_web_site_cannot_reach_the_server_through_a_name_of_its_own(serve):
    url = serve().url
    for path in ("/v1/models", "/health"):
        reply = httpx.get(url + path, headers={"Host": "evil.example"})
        assert reply.status_code == 403
        assert "evil.example" in reply.json()["error"]["message"]
        assert httpx.get(url + path).status_code == 200


def test_no_other_site_may_read_answers(serve):
    server = serve()
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    reply = httpx.options(server.url + "/v1/chat/completions", headers=preflight)
    assert not any(name.startswith("access-control") for name in reply.headers)
    reply = httpx.get(server.url + "/v1/models", headers={"Origin": "http://evil.example"})
    assert not any(name.startswith("access-control") for name in reply.headers)
