"""A server on 127.0.0.1 that gives files for a signed address, as Meta's does: with ranges, an end of validity, lines that break."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class MetaServer:
    """address: with the * for the file. asked: (path, first byte). break_after: path → bytes before the line breaks, each once."""

    files: dict[str, bytes]
    address: str = ""
    expired: bool = False
    asked: list[tuple[str, int]] = field(default_factory=list)
    break_after: dict[str, list[int]] = field(default_factory=dict)


@contextmanager
def running_meta_server(files: dict[str, bytes]) -> Iterator[MetaServer]:
    state = MetaServer(dict(files))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}/*?Policy=abc&Signature=right"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(state: MetaServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if state.expired or parse_qs(address.query).get("Signature") != ["right"]:
                return self.refuse(403)
            name = address.path[1:]
            if name not in state.files:
                return self.refuse(404)
            content = state.files[name]
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(wanted[1]) if wanted else 0
            state.asked.append((name, first))
            if first >= len(content) and first:
                return self.refuse(416, f"bytes */{len(content)}")
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            breaks = state.break_after[name].pop(0) if state.break_after.get(name) else None
            self.wfile.write(content[first:] if breaks is None else content[first : first + breaks])
            if breaks is not None:
                self.close_connection = True

        def refuse(self, status: int, content_range: str = "") -> None:
            self.send_response(status)
            if content_range:
                self.send_header("Content-Range", content_range)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
