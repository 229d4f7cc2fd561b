"""Proxies of the environment as people have them: SOCKS beside VPN programs, unknown schemes, and our own machine through none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from modules.errors import Unavailable, UserError
from modules.generation.remote.client import Client
from modules.settings import proxies
from tests.library.hub_server import running_hub
from tests.serving import ROOT, Server

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
HAS_SOCKS = importlib.util.find_spec("socksio") is not None


def environment(**named: str) -> dict[str, str]:
    """Ours, with `named` in place of every proxy that it names."""
    return {name: value for name, value in os.environ.items() if name.lower() not in VARIABLES} | named


class Proxy(BaseHTTPRequestHandler):
    """Takes every request, and never passes one on."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(502)
        self.end_headers()

    do_POST = do_CONNECT = do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """(address, what it was asked for) of a proxy behind which nothing can be reached."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", server.asked  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def run(*words: str, **named: str) -> subprocess.CompletedProcess[str]:
    given = environment(**named)
    given.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=given, capture_output=True, text=True, timeout=120, check=False
    )


UNUSABLE = {
    "an unknown scheme": ("ALL_PROXY", "socks4://127.0.0.1:9"),
    "a misspelt scheme": ("https_proxy", "htp://127.0.0.1:9"),
    "no port": ("HTTP_PROXY", "http://127.0.0.1:port"),
    "no host": ("HTTPS_PROXY", "http://"),
}


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_proxy_that_cannot_be_used_is_one_sentence_with_the_name_of_the_variable(how):
    variable, value = UNUSABLE[how]
    with pytest.raises(UserError) as told:
        proxies.prepare({variable: value})
    assert told.value.message.startswith(f"{variable} is set to {value}")
    proxies.prepare({variable: value, "NO_PROXY": "*"})  # nobody asks it then


def test_a_socks_proxy_without_its_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for value in ("socks5://127.0.0.1:9", "socks5h://user:secret@127.0.0.1:9"):
        with pytest.raises(UserError, match=r"ALL_PROXY names a SOCKS proxy.*socksio") as told:
            proxies.prepare({"ALL_PROXY": value})
        assert "secret" not in told.value.message


def test_the_one_in_small_letters_counts(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    proxies.prepare({"ALL_PROXY": "nonsense://x", "all_proxy": "socks5://127.0.0.1:9"})
    with pytest.raises(UserError, match=r"^all_proxy"):
        proxies.prepare({"ALL_PROXY": "http://127.0.0.1:9", "all_proxy": "nonsense://x"})


def test_a_proxy_is_not_named_with_its_password():
    with pytest.raises(UserError) as told:
        proxies.prepare({"HTTPS_PROXY": "ftp://me:secret@proxy.example:1"})
    assert "ftp://proxy.example:1" in told.value.message and "secret" not in told.value.message
    assert proxies.through("https://hub.example", {"HTTPS_PROXY": "http://me:secret@p:1"}) == (
        " through the proxy http://p:1 (HTTPS_PROXY)"
    )


@pytest.mark.parametrize("excluded", [None, "", "example.org", "[::1]", "::1/128,fd00::/8", "10.0.0.0/8, .lan"])
def test_this_machine_is_kept_from_proxies_for_every_client(excluded, monkeypatch):
    import urllib.request

    import httpx
    import httpx2
    import requests

    named = {"HTTP_PROXY": "http://127.0.0.1:9"} | ({"NO_PROXY": excluded} if excluded is not None else {})
    proxies.prepare(named)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    for address in ("http://localhost:1/", "http://127.0.0.1:1/", "http://[::1]:1/", "http://hub.localhost/"):
        for library in (httpx, httpx2):
            with library.Client() as client:
                assert client._transport_for_url(library.URL(address)) is client._transport, (library, address)
        host = address.removeprefix("http://").partition("/")[0]
        if "[" not in host:
            assert urllib.request.proxy_bypass(host), address  # type: ignore[attr-defined]
            assert not requests.utils.get_environ_proxies(address), address
    with httpx2.Client() as client:
        assert client._transport_for_url(httpx2.URL("http://far.example/")) is not client._transport
    if excluded == "10.0.0.0/8, .lan":
        assert not proxies.through("http://10.1.2.3/", named) and not proxies.through("http://a.lan/", named)
        assert proxies.through("http://11.1.2.3/", named)


def test_an_environment_without_proxies_stays_as_it_is():
    for named in ({}, {"NO_PROXY": "x"}, {"HTTP_PROXY": ""}):
        before = dict(named)
        proxies.prepare(named)
        assert named == before


def test_an_engine_of_this_machine_is_never_asked_through_a_proxy(proxy, monkeypatch):
    address, asked = proxy
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, address)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "elsewhere.example")
    for host in ("127.0.0.1:9", "localhost:9", "[::1]:9", "127.8.8.8:9"):
        client = Client(f"http://{host}/v1", "")
        with pytest.raises(Unavailable) as told:
            client.ask("/health")
        client.close()
        assert "proxy" not in told.value.message
    assert not asked


def test_an_error_says_which_proxy_was_used(proxy, monkeypatch):
    address, asked = proxy
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTP_PROXY", address)
    client = Client("http://engine.example/v1", "")
    with pytest.raises(Unavailable, match=rf"through the proxy {address} \(HTTP_PROXY\)"):
        client.ask("/health")
    client.close()
    assert asked
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    client = Client("http://engine.example/v1", "")
    with pytest.raises(Unavailable, match=r"through the proxy http://127.0.0.1:1 \(HTTP_PROXY\)"):
        client.ask("/health")
    client.close()


# --- the two programs


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [["server.py", "--listen-port", "0"], ["download-model.py", "a/b"]], ids=["server", "download"]
)
def test_neither_program_ends_in_a_traceback(program, tmp_path):
    more = ["--data-dir", str(tmp_path)] if program[0] == "server.py" else ["--model-dir", str(tmp_path)]
    for value, word in {"socks9://127.0.0.1:9": "ALL_PROXY is set to socks9://127.0.0.1:9"}.items():
        done = run(*program, *more, ALL_PROXY=value)
        assert done.returncode in (1, 2)
        assert word in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    if program[0] == "download-model.py" or not HAS_SOCKS:
        done = run(*program, *more, ALL_PROXY="socks5://127.0.0.1:9", HF_ENDPOINT="https://hub.example")
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        assert "ALL_PROXY" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SOCKS, reason="socksio is not installed")
def test_the_page_is_there_beside_a_socks_proxy(tmp_path):
    named: dict[str, Any] = {"ALL_PROXY": "socks5://127.0.0.1:9"}
    with (
        Server(["--model-dir", str(tmp_path / "m")], data=tmp_path / "d", environment=named) as server,
        server.client() as client,
    ):
        assert client.get("/").status_code == 200


@pytest.mark.slow
def test_a_mirror_of_this_machine_is_asked_without_the_proxy(proxy, tmp_path: Path):
    address, asked = proxy
    with running_hub() as hub:
        hub.repositories["org/model"] = {"main": {"config.json": b"{}", "model.safetensors": b"x" * 2000}}
        named = {"HTTP_PROXY": address, "HTTPS_PROXY": address, "ALL_PROXY": address, "NO_PROXY": "elsewhere.example"}
        done = run("download-model.py", "org/model", "--model-dir", str(tmp_path), HF_ENDPOINT=hub.address, **named)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "org_model" / "config.json").exists()
    assert not asked


@pytest.mark.slow
def test_a_download_says_through_which_proxy_it_went(proxy, tmp_path: Path):
    address, _ = proxy
    named = {"HTTPS_PROXY": address, "HF_ENDPOINT": "https://hub.example"}
    done = run("download-model.py", "org/model", "--model-dir", str(tmp_path), **named)
    assert done.returncode == 1
    assert f"hub.example cannot be reached through the proxy {address} (HTTPS_PROXY)" in done.stderr
