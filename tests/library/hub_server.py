"""A small Hub-compatible server on 127.0.0.1: listings, files with ranges, gated and missing models, lines that break, any fault."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 1000  # bytes from which a file counts as large, and has a SHA-256


@dataclass(frozen=True)
class Answer:
    """To one request. length: what Content-Length says, where that is not so (-1: nothing, the line's end ends it); breaks: after how many bytes the line does."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    breaks: int | None = None


Fault = Callable[[bytes, int | None], Answer | None]
"""From a file's content, and the first byte that was asked for (None: all of it), to another answer than the right one."""


@dataclass
class Hub:
    """What the server offers, and what it was asked for.

    repositories: "ORG/NAME" (of a data set: "datasets/ORG/NAME") → branch → path → content. gated: names that need `token`. sent: (path, first byte) of each transfer.
    break_after: path → how many bytes to send before the line breaks, once for each entry of the list. slow: seconds for each 64 KiB.
    busy: how many of the next file requests are answered with 503. corrupt: paths whose content arrives changed.
    faults: path → what answers in place of the file. without: what the listing does not say (size, blobId, lfs). no_tags: nor do files; no_head: they are not asked.
    listed: the listing itself, in place of the right one. tokens: what was sent as authorization, by path.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"
    sent: list[tuple[str, int]] = field(default_factory=list)
    break_after: dict[str, list[int]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    no_ranges: bool = False
    slow: float = 0.0
    busy: int = 0
    html: bool = False
    faults: dict[str, Fault] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    no_tags: bool = False
    no_head: bool = False
    listed: bytes | None = None
    tokens: dict[str, str | None] = field(default_factory=dict)
    address: str = ""

    def listing(self, repository: str, branch: str) -> dict[str, object] | None:
        files = self.repositories[repository].get(branch)
        if files is None:
            return None
        siblings = []
        for path, content in files.items():
            entry: dict[str, object] = {"rfilename": path, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if len(content) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append({key: value for key, value in entry.items() if key not in self.without})
        return {"id": repository, "modelId": repository, "sha": self.commit(repository, branch), "siblings": siblings}

    def tree(self, repository: str) -> list[dict[str, object]]:
        files = self.repositories[repository]["main"]
        return [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in files]

    def commit(self, repository: str, branch: str) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[repository][branch].items()):
            digest.update(path.encode())
            digest.update(content)
        return digest.hexdigest()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the other side may go at any moment


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            if hub.no_head:
                return self.answer(405, b"")
            self.do_GET()

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if found := re.fullmatch(r"/api/(datasets/.+?)/paths-info/.+", unquote(urlsplit(self.path).path)):
                files = hub.tree(found[1])
                return self.answer(200, json.dumps([file for file in files if file["path"] in asked["paths"]]).encode())
            return self.answer(404, b"")

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if hub.html:
                return self.answer(200, b"<html>Sign in to this network</html>", {"Content-Type": "text/html"})
            if found := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
                return self.listing(found[1], found[2])
            if found := re.fullmatch(r"/api/(datasets/.+?)/tree/[^/]+(/.*)?", path):
                if found[1] not in hub.repositories or found[2]:
                    return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return self.answer(200, json.dumps(hub.tree(found[1])).encode(), {"Content-Type": "application/json"})
            if found := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                return self.listing(found[1], "main")
            if found := re.fullmatch(r"/((?:datasets/)?(?:[^/]+/)?[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.file(found[1], found[2], found[3])
            return self.answer(404, b"")

        def listing(self, repository: str, branch: str) -> None:
            if repository not in hub.repositories:
                return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            listing = hub.listing(repository, branch)
            if listing is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            body = json.dumps(listing).encode() if hub.listed is None else hub.listed
            self.answer(200, body, {"Content-Type": "application/json"})

        def file(self, repository: str, commit: str, path: str) -> None:
            if repository in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                status = 403 if self.headers.get("Authorization") else 401
                return self.answer(status, b"", {"X-Error-Code": "GatedRepo"})
            if hub.busy:
                hub.busy -= 1
                return self.answer(503, b"busy")
            branches = hub.repositories.get(repository, {})
            files = next(
                (files for branch, files in branches.items() if commit in (branch, hub.commit(repository, branch))), {}
            )
            if path not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = files[path]
            hub.tokens[path] = self.headers.get("Authorization")
            if path in hub.faults and self.command == "GET":
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if answer := hub.faults[path](content, int(asked[1]) if asked else None):
                    hub.sent.append((path, int(asked[1]) if asked else 0))
                    return self.other(answer)
            if path in hub.corrupt:
                content = content[:-1] + bytes([content[-1] ^ 1])
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if not hub.no_ranges else None
            first = int(wanted[1]) if wanted else 0
            if first and first >= len(content):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            hub.sent.append((path, first))
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            if not hub.no_tags:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", hub.commit(repository, next(iter(branches))))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.transfer(content[first:], hub.break_after[path].pop(0) if hub.break_after.get(path) else None)

        def transfer(self, content: bytes, breaks: int | None) -> None:
            allowed = content if breaks is None else content[:breaks]
            try:
                for start in range(0, len(allowed), 65536):
                    self.wfile.write(allowed[start : start + 65536])
                    if hub.slow:
                        time.sleep(hub.slow)
            except OSError:
                breaks = 0  # the other side has gone
            if breaks is not None:
                self.close_connection = True

        def other(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.length != -1:
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
            self.end_headers()
            if answer.length == -1:
                self.close_connection = True
            self.transfer(answer.body, answer.breaks)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
