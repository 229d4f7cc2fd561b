"""server.py as people start it: ready line, ports, logins, errors, and an orderly end."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import httpx
import pytest

from tests.serving import ROOT, Server, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory):
    """Without a model."""
    folder = tmp_path_factory.mktemp("empty")
    with Server(["--model-dir", str(folder / "models")], data=folder / "data") as server:
        yield server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "server.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_it_starts_without_a_model_and_says_how_to_get_one(empty_server):
    text = "".join(empty_server.lines)
    assert "download-model.py starter" in text
    assert f"READY local={empty_server.url}\n" in text
    with empty_server.client() as client:
        assert client.get("/health").json() == {"status": "ok", "model": None, "error": None}
        assert client.get("/v1/models").status_code == 200


def test_the_page_is_at_the_root_and_asks_no_other_host(empty_server):
    with empty_server.client() as client:
        page = client.get("/")
    assert page.status_code == 200
    assert "gradio" in page.text
    hosts = set(re.findall(r"""(?:src|href)=["']?(https?://[^/"' ]+)""", page.text))
    assert not {host for host in hosts if not host.startswith(empty_server.url)}


def test_a_taken_port_is_named_with_a_free_one(empty_server, tmp_path):
    done = run("--listen-port", str(empty_server.port), "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert re.search(rf"Port {empty_server.port} .* Port \d+ is free: add --listen-port \d+", done.stderr)


def test_an_unknown_flag_is_refused_with_the_nearest_one():
    done = run("--modle", "x")
    assert (done.returncode, done.stderr.strip()) == (2, "There is no flag --modle. Did you mean --model?")


def test_an_unknown_model_is_said_and_the_server_goes_on(tmp_path):
    with Server(["--model", "nosuch", "--model-dir", str(tmp_path / "models"), "--nowebui"], data=tmp_path / "data") as server:
        assert any("nosuch" in line for line in server.lines)
        with server.client() as client:
            assert client.get("/health").status_code == 200
            answer = client.post("/v1/chat/completions", json={"model": "x", "messages": [{"role": "user", "content": "hi"}]})
        assert answer.status_code in (404, 503)
        assert answer.json()["error"]["message"]
        assert server.stop() == 0


def test_strangers_are_sent_to_the_login(tmp_path):
    arguments = ["--gradio-auth", "ann:secret,bob:other", "--model-dir", str(tmp_path / "models")]
    with Server(arguments, data=tmp_path / "data") as server, server.client() as client:
        page = client.get("/", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/login")
        assert client.get("/config").status_code == 401
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health").status_code == 200
        assert "secret" not in "".join(server.lines)
        wrong = client.post("/login", data={"user": "ann", "password": "guess"})
        assert wrong.status_code == 401
        assert "wrong" in wrong.text
        right = client.post("/login", data={"user": "ann", "password": "secret"})
        assert right.status_code == 303
        assert client.get("/", headers={"accept": "text/html"}).status_code == 200
        assert client.get("/config").status_code == 200
        assert client.get("/v1/models").status_code == 200


def test_a_public_address_prints_a_one_time_password(tmp_path):
    arguments = ["--listen-host", "0.0.0.0", "--model-dir", str(tmp_path / "models")]
    with Server(arguments, data=tmp_path / "data") as server, server.client() as client:
        shown = re.search(r"User: (\S+)  Password: (\S+)", "".join(server.lines))
        assert shown
        assert client.get("/config").status_code == 401
        client.post("/login", data={"user": shown[1], "password": shown[2]})
        assert client.get("/config").status_code == 200


def test_behind_a_proxy_with_a_path_the_page_finds_its_own_parts(tmp_path):
    arguments = ["--root-path", "/user/me/proxy/1", "--model-dir", str(tmp_path / "models")]
    with Server(arguments, data=tmp_path / "data") as server, server.client() as client:
        assert any("READY local=" in line and line.rstrip().endswith("/user/me/proxy/1") for line in server.lines)
        assert client.get("/health").status_code == 200
        page = client.get("/", headers={"accept": "text/html"})
        assert page.status_code == 200
        assert "/user/me/proxy/1" in page.text


def test_a_wish_for_a_public_link_without_a_network_still_serves_locally(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        environment = {"HTTPS_PROXY": closed, "HTTP_PROXY": closed, "NO_PROXY": "127.0.0.1", "HF_HOME": str(tmp_path)}
        arguments = ["--share", "--no-auth", "--nowebui", "--model-dir", str(tmp_path / "models")]
        with Server(arguments, data=tmp_path / "data", environment=environment) as server:
            text = "".join(server.lines)
            assert "Three ways out" in text
            assert "ssh -L" in text
            assert httpx.get(server.url + "/health").status_code == 200


def test_ctrl_c_ends_it_and_frees_the_port(tmp_path):
    server = Server(["--nowebui", "--model-dir", str(tmp_path / "models")], data=tmp_path / "data")
    server.start()
    assert server.stop() == 0
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))
    assert free_port()


def test_behind_jupyterhub_its_proxy_is_let_in(tmp_path):
    arguments = ["--nowebui", "--model-dir", str(tmp_path / "models")]
    environment = {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/"}
    with Server(arguments, data=tmp_path / "data", environment=environment) as server, server.client() as client:
        assert f"READY local={server.url}/user/me/proxy/{server.port}\n" in server.lines
        assert client.get("/health", headers={"Host": "hub.example"}).status_code == 200


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--ssl-keyfile", "key.pem"], "--ssl-certfile"),
        (["--ssl-certfile", "nosuch.pem"], "no file nosuch.pem"),
        (["--load-in-8"], "--load-in-8bit"),
        (["--settings", "nosuch.yaml"], "nosuch.yaml"),
    ],
)
def test_flags_that_cannot_work_are_refused_in_words(flags, word):
    done = run(*flags)
    assert done.returncode == 2
    assert word in done.stderr and "Traceback" not in done.stderr
