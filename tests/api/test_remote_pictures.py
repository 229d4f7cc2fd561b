"""Pictures by http address: what is fetched, and what must never be."""

from __future__ import annotations

import http.server
import io
import ipaddress
import socket
import threading
from collections.abc import Iterator

import pytest
from PIL import Image as Pictures

from modules.api import remote_images
from tests.fakes import EchoModel

PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.5.5",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fd00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_of_this_machine_and_its_network_are_not_public(address):
    assert not remote_images.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address):
    assert remote_images.is_public(ipaddress.ip_address(address))


def png() -> bytes:
    file = io.BytesIO()
    Pictures.new("RGB", (4, 4), "red").save(file, "PNG")
    return file.getvalue()


class Site(http.server.BaseHTTPRequestHandler):
    """A site with a picture, a page, redirects and a picture that never ends."""

    def do_GET(self) -> None:
        self.server.seen.append((self.headers["Host"], self.path))  # type: ignore[attr-defined]
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none.png" else 200)
        self.end_headers()
        try:
            for _ in range(40 if self.path == "/huge.png" else 0):
                self.wfile.write(bytes(1024 * 1024))
            self.wfile.write(png() if self.path == "/red.png" else b"<html>")
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(port, what was asked) of a site that passes for one of the internet under every name with "site" in it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    real = socket.getaddrinfo

    def names(host, *more, **options):
        return real({"site.test": "127.0.0.1", "inside.test": "127.0.0.2"}.get(host, host), *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", names)
    monkeypatch.setattr(remote_images, "is_public", lambda address: str(address) == "127.0.0.1")
    yield server.server_address[1], server.seen  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def ask(server, url):
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})


def test_a_picture_is_fetched_and_may_be_redirected(serve, site):
    port, seen = site
    server = serve(EchoModel(), allow_remote_images=True)
    for path in ("/red.png", "/to?/red.png", f"/to?http://site.test:{port}/red.png"):
        assert ask(server, f"http://site.test:{port}{path}").status_code == 200
        assert server.model.requests[-1].prompt[0].images[0].data == png()
    assert {host for host, _ in seen} == {f"site.test:{port}"}


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/to?http://inside.test/red.png", "public addresses"),
        ("/to?http://127.0.0.2/red.png", "public addresses"),
        ("/to?http://[::1]/red.png", "public addresses"),
        ("/to?file:///etc/passwd", "http address"),
        ("/to?/to?/to?/to?/red.png", "more than 3 times"),
        ("/none.png", "answers 404"),
        ("/huge.png", "32 MiB"),
        ("/page", "PNG"),
    ],
)
def test_nothing_else_is_fetched(serve, site, path, word):
    port, seen = site
    reply = ask(serve(EchoModel(), allow_remote_images=True), f"http://site.test:{port}{path}")
    assert reply.status_code == 400
    assert word in reply.json()["error"]["message"]
    assert reply.json()["error"]["param"] == "messages.0.content"
    assert all(host == f"site.test:{port}" for host, _ in seen)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "2130706433", "0x7f.1"])
def test_the_network_of_the_server_is_out_of_reach(serve, host):
    reply = ask(serve(EchoModel(), allow_remote_images=True), f"http://{host}:9/x.png")
    assert reply.status_code == 400
    assert "public addresses" in reply.json()["error"]["message"] or "fetched" in reply.json()["error"]["message"]


def test_there_is_a_limit_to_how_many_a_request_may_name(serve):
    server = serve(EchoModel(), allow_remote_images=True)
    parts = [{"type": "image_url", "image_url": {"url": "http://site.test/red.png"}}] * 17
    reply = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    assert (reply.status_code, "16" in reply.json()["error"]["message"]) == (400, True)
