"""Starting as people do where it is not the usual way: CMD_FLAGS.txt, https, behind a proxy, in a frame, from a shell that opens a browser."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import openai
import pytest

from tests.in_process import events_of
from tests.leash import leashed
from tests.serving import ROOT, SCRIPTED, Server

pytestmark = pytest.mark.slow
HI = [{"role": "user", "content": "hi"}]


def checkout(folder: Path) -> Path:
    """A root of its own for server.py, with the project's code: its models, data and CMD_FLAGS.txt are the test's."""
    folder.mkdir()
    shutil.copy(ROOT / "server.py", folder)
    for name in ("modules", "presets", "prompts", "characters"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def closed_network(home: Path) -> tuple[socket.socket, dict[str, str]]:
    """(a socket to keep, an environment) in which nothing outside this machine can be reached."""
    nobody = socket.socket()
    nobody.bind(("127.0.0.1", 0))
    closed = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    return nobody, {"HTTPS_PROXY": closed, "HTTP_PROXY": closed, "NO_PROXY": "127.0.0.1", "HF_HOME": str(home)}


def test_flags_are_read_from_the_file_and_those_of_the_command_line_win(tmp_path):
    root = checkout(tmp_path / "root")
    (root / "CMD_FLAGS.txt").write_text("# mine\n--nowebui --api-key KEY\n--idle-timeout 5 --listen-port 1\n", encoding="utf-8")
    with Server(["--idle-timeout", "7"], data=tmp_path / "data", program=(str(root / "server.py"),)) as server:
        assert f"READY local={server.url}\n" in server.lines
        assert httpx.get(server.url + "/v1/models").status_code == 401
        assert httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer KEY"}).status_code == 200
        assert httpx.get(server.url + "/").status_code == 404
    (root / "CMD_FLAGS.txt").write_text("--nowebiu\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "server.py"], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (2, "There is no flag --nowebiu. Did you mean --nowebui?")


def test_auto_launch_opens_the_address_once_it_answers(tmp_path):
    fake = (
        "import sys, urllib.request, webbrowser, server\n"
        "def opened(url):\n"
        "    print('OPENED', url, urllib.request.urlopen(url + '/health').status, flush=True)\n"
        "webbrowser.open = opened\n"
        "sys.exit(server.main(sys.argv[1:]))"
    )
    arguments = ["--auto-launch", "--nowebui", "--model-dir", str(tmp_path / "models")]
    with Server(arguments, data=tmp_path / "data", program=("-c", fake)) as server:
        end = time.monotonic() + 10
        while f"OPENED {server.url} 200\n" not in server.lines:
            assert time.monotonic() < end, server.lines
            time.sleep(0.05)


# --- https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """(key, certificate) for 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, file = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(file)]
        + ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
        check=True,
        capture_output=True,
    )
    return key, file


@pytest.fixture(scope="module")
def secure_server(certificate, tmp_path_factory) -> Iterator[Server]:
    """A server with a login on https."""
    folder = tmp_path_factory.mktemp("secure")
    key, file = certificate
    arguments = ["--ssl-keyfile", str(key), "--ssl-certfile", str(file), "--gradio-auth", "ann:secret", "--model", "tiny"]
    arguments += ["--model-dir", str(folder / "models")]
    with Server(arguments, data=folder / "data", program=["-c", SCRIPTED]) as server:
        yield server


@pytest.fixture
def secure(secure_server: Server, certificate) -> Iterator[tuple[Server, httpx.Client]]:
    """That server, and a client who has not been there yet and trusts its certificate."""
    context = ssl.create_default_context(cafile=str(certificate[1]))
    with httpx.Client(base_url=secure_server.url.replace("http:", "https:"), verify=context, timeout=60) as client:
        yield secure_server, client


def test_https_serves_the_page_the_api_and_streams(secure):
    server, client = secure
    assert f"READY local=https://127.0.0.1:{server.port}\n" in server.lines
    assert client.get("/health").status_code == 200
    assert client.get("/", headers={"accept": "text/html"}).headers["location"].endswith("/login")
    ai = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="ann:secret", http_client=client, max_retries=0)
    options = {"model": "tiny", "messages": HI, "max_tokens": 6, "extra_body": {"ban_eos": True}}
    assert ai.chat.completions.create(**options).usage.completion_tokens == 6
    assert len(list(ai.chat.completions.create(**options, stream=True))) > 2
    client.post("/login", data={"user": "ann", "password": "secret"})
    assert "gradio" in client.get("/").text
    with pytest.raises(httpx.HTTPError):
        httpx.get(server.url + "/health")  # plain http


def test_the_login_cookie_is_sent_inside_a_frame_of_another_site_on_https_alone(secure, tmp_path):
    _, client = secure
    cookie = client.post("/login", data={"user": "ann", "password": "secret"}).headers["set-cookie"].lower()
    assert all(word in cookie for word in ("samesite=none", "secure", "partitioned", "httponly"))
    arguments = ["--gradio-auth", "ann:secret", "--model-dir", str(tmp_path / "models")]
    with Server(arguments, data=tmp_path / "data") as plain, plain.client() as http_client:
        login = {"user": "ann", "password": "secret"}
        cookie = http_client.post("/login", data=login).headers["set-cookie"].lower()
        assert "samesite=lax" in cookie and "secure" not in cookie
        behind = http_client.post("/login", data=login, headers={"X-Forwarded-Proto": "https"}).headers["set-cookie"].lower()
        assert "samesite=none" in behind and "secure" in behind and "partitioned" in behind


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/logout", "/chats/send", "/v1/chat/completions", "/login"])
def test_other_sites_cannot_act_with_the_cookie_of_a_visitor(secure, path):
    _, client = secure
    client.post("/login", data={"user": "ann", "password": "secret"})
    for site in ("cross-site", "same-site"):
        answer = client.post(path, json={}, headers={"Sec-Fetch-Site": site})
        assert answer.status_code in (401, 403), answer.text
        assert answer.json()["error"]["message"]
    assert client.get("/config").status_code == 200  # still logged in


@pytest.mark.browser
def test_a_frame_of_another_site_keeps_its_login(secure, tmp_path):
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import FLAGS, PATIENCE, chromium

    _, client = secure

    class Outer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<iframe src='{client.base_url}' width=900 height=700></iframe>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Outer) as outer, sync_playwright() as playwright:
        threading.Thread(target=outer.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://localhost:{outer.server_address[1]}/")
        frame = page.frame_locator("iframe")
        frame.locator("[name=user]").fill("ann")
        frame.locator("[name=password]").fill("secret")
        frame.locator("button").first.click()
        frame.locator(".tl-composer textarea").fill("hello")
        frame.locator(".tl-composer textarea").press("Enter")
        frame.locator(".tl-message").nth(1).wait_for()
        browser.close()
        outer.shutdown()


# --- behind a proxy


class Proxy(BaseHTTPRequestHandler):
    """What jupyter-server-proxy and nginx do: shows a port below a path, and passes each piece on as it comes."""

    protocol_version = "HTTP/1.1"
    target: int
    prefix: str
    strip: bool

    def do_GET(self) -> None:
        path = self.path.removeprefix(self.prefix) if self.strip else self.path
        inner = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        inner.request(self.command, path or "/", self.rfile.read(length) if length else None, headers)
        answer = inner.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        while piece := answer.read1(65_536):
            self.wfile.write(piece)
            self.wfile.flush()
        self.close_connection = True
        inner.close()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module", params=[True, False], ids=["prefix cut off", "prefix left"])
def proxied(request, tmp_path_factory) -> Iterator[str]:
    """The address of a server behind a proxy: of a hub, which cuts its prefix off, and one that leaves --subpath."""
    folder = tmp_path_factory.mktemp("proxied")
    arguments = ["--model", "tiny", "--model-dir", str(folder / "models"), *([] if request.param else ["--subpath", "/loom"])]
    environment = {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/"} if request.param else {}
    with Server(arguments, data=folder / "data", environment=environment, program=["-c", SCRIPTED]) as server:
        prefix = f"/user/me/proxy/{server.port}" if request.param else "/loom"
        assert f"READY local={server.url}{prefix}\n" in server.lines
        proxied = type("Proxied", (Proxy,), {"target": server.port, "prefix": prefix, "strip": request.param})
        with ThreadingHTTPServer(("127.0.0.1", 0), proxied) as proxy:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{proxy.server_address[1]}{prefix}"
            proxy.shutdown()


def test_behind_a_proxy_the_page_finds_all_its_parts(proxied):
    with httpx.Client(timeout=60) as client:
        page = client.get(proxied + "/", headers={"accept": "text/html"})
        assert page.status_code == 200
        config = client.get(proxied + "/config").json()
        assert config["root"].endswith(proxied.partition("//")[2].partition("/")[2])
        parts = re.findall(r'(?:src|href)="(\.?/?[^"]+\.(?:js|css))"', page.text)
        assert parts
        for part in parts[:6]:
            assert client.get(httpx.URL(proxied + "/").join(part)).status_code == 200, part
        assert client.get(proxied + "/chats/static/main.js").status_code == 200


def test_behind_a_proxy_streams_come_piece_by_piece(proxied):
    body = {"messages": HI, "max_tokens": 60, "stream": True, "ban_eos": True}
    times = []
    with httpx.stream("POST", proxied + "/v1/chat/completions", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        times += [time.monotonic() for line in answer.iter_lines() if line.startswith("data: ")]
    assert len(times) > 20 and times[-1] - times[0] > 0.01
    with httpx.Client(base_url=proxied, timeout=60) as client:
        reply = client.post("/chats/send", json={"content": "hi"}).json()["reply"]
        assert "ending" in list(events_of(client, "reply", reply))[-1]["over"]["figures"]


# --- the command line of July 2023


@pytest.mark.slow
def test_the_command_line_of_july_2023_with_a_gptq_model_of_that_name(tmp_path, starter_folder):
    """The words of the README, only a free port added: the starter in 4 bits stands in for the 7B, and there is no network."""
    from tests.loaders.gptq_folder import write_gptq

    flags = "--share --model TheBloke_Llama-2-7B-chat-GPTQ --load-in-8bit --bf16 --auto-devices"
    assert f"server.py {flags}" in (ROOT / "README.md").read_text(encoding="utf-8")
    root = checkout(tmp_path / "root")
    write_gptq(starter_folder, root / "models" / "TheBloke_Llama-2-7B-chat-GPTQ", settings="quantize_config.json")
    nobody, environment = closed_network(tmp_path)
    command = leashed([sys.executable, "server.py", *flags.split(), "--listen-port", "0"])
    log = tmp_path / "terminal.txt"
    with nobody, log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, cwd=root, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            end = time.monotonic() + 180
            while "READY " not in (said := log.read_text(encoding="utf-8")):
                assert process.poll() is None and time.monotonic() < end, said
                time.sleep(0.1)
            user, password = re.findall(r"User: (\S+)  Password: (\S+)", said)[0]
            address = re.findall(r"READY local=(\S+)", said)[0]
            question = [{"role": "user", "content": "What is the capital of France?"}]
            name = "TheBloke_Llama-2-7B-chat-GPTQ"
            with openai.OpenAI(base_url=f"{address}/v1", api_key=f"{user}:{password}", max_retries=0) as client:
                reply = client.chat.completions.create(model=name, messages=question, max_tokens=24, temperature=0)  # type: ignore[arg-type]
            assert (reply.model, bool(reply.choices[0].message.content)) == (name, True)
            info = httpx.get(f"{address}/v1/internal/model/info", headers={"Authorization": f"Bearer {user}:{password}"}).json()
            assert info["state"] == "ready"
            assert httpx.post(f"{address}/v1/chat/completions", json={"messages": question}).status_code == 401
            page = httpx.post(f"{address}/login", data={"user": user, "password": password}, follow_redirects=True)
            assert "gradio" in page.text
        finally:
            process.send_signal(2)
            process.wait(timeout=60)
    lines = log.read_text(encoding="utf-8").splitlines()
    warnings = [line.split(" WARNING ", 1)[1] for line in lines if " WARNING " in line]
    assert "--load-in-8bit has no effect with the gptq loader." in warnings
    shared = [line for line in lines if "The public link could not be made" in line]
    assert len(shared) == 1 and "Three ways out" in shared[0]
    assert f"READY local={address}" in lines
    assert "Traceback" not in "\n".join(lines)
