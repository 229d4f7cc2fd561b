"""Start Textloom: `python server.py --help` lists the flags."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.library.hardware import keep_one_heap
from modules.loaders.options import LoadOptions
from modules.settings import command_line, ports, proxies, terminal
from modules.settings.addresses import in_url
from modules.settings.page import PageSettings
from modules.settings.retired import RETIRED
from modules.settings.server import ServerOptions

if TYPE_CHECKING:
    from modules.api.legacy.serve import LegacyServer
    from modules.app import App

ROOT = Path(__file__).resolve().parent
log = logging.getLogger("textloom")
SECONDS_TO_END = 20


def read_flags(
    arguments: Sequence[str],
) -> tuple[ServerOptions, LoadOptions, SamplingParams, PageSettings, tuple[str, ...]]:
    """Flags, CMD_FLAGS.txt, environment and settings.yaml into settings. Raises UserError; ends the process for --help."""
    words = [*command_line.read_flags_file(ROOT / "CMD_FLAGS.txt"), *arguments]
    classes = (ServerOptions, LoadOptions, SamplingParams, PageSettings)
    options = {"environment": os.environ, "retired": RETIRED, "description": "Run, tune and serve language models."}
    first = command_line.parse(words, classes, **options).settings[ServerOptions]
    assert isinstance(first, ServerOptions)
    required = "settings" in first.model_fields_set
    defaults = command_line.read_settings_file(ROOT / first.settings, required=required)
    parsed = command_line.parse(words, classes, defaults=defaults, **options)
    server, loading, sampling, page = (parsed.settings[cls] for cls in classes)
    return server, loading, sampling, page, parsed.notes  # type: ignore[return-value]


class Running:
    """A started server: where it answers, and how to end it."""

    share_url: str | None = None

    def __init__(self, app: App, server: Any, ended: threading.Event, url: str, host: str, port: int) -> None:
        self.app = app
        self.url = url
        self.host = host
        self.port = port
        self._server = server
        self._ended = ended
        self.legacy: LegacyServer | None = None

    def stop(self) -> None:
        """End all replies, close the port and give the model's memory back. Idempotent."""
        self.app.stop()
        self._server.should_exit = True
        until = time.monotonic() + SECONDS_TO_END
        while not self._ended.is_set() and time.monotonic() < until:
            # Replies that are cut still tell their clients so; those that begin before the port is closed as well.
            self.app.manager.stop_all()
            self._ended.wait(0.05)
        if self.legacy is not None:
            self.legacy.close()
        self.app.close()

    def wait(self) -> None:
        """Block until the server ends."""
        while not self._ended.wait(0.5):  # a thread whose join() is interrupted by a signal counts as ended
            pass


def launch(arguments: Sequence[str] = ()) -> Running:
    """Start the server in this process without blocking, as a notebook does. Raises UserError."""
    server_options, loading, sampling, page, notes = read_flags(arguments)
    return start(server_options, loading, sampling, page, notes)


def start(
    options: ServerOptions, loading: LoadOptions, sampling: SamplingParams, page: PageSettings, notes: Sequence[str] = ()
) -> Running:
    """Open the port, load the model and build the page side by side, and return when both are done."""
    keep_one_heap()
    _quiet_libraries(options.verbose)
    for note in notes:
        log.warning("%s", note)
    _check(options)
    proxies.prepare()
    listener = _open_port(options)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        options = options.changed({"root_path": _root_path(options, listener.getsockname()[1])})
        from modules.app import App

        app = App(ROOT, options, loading, sampling, page)
        undo.callback(app.close)
        loader = threading.Thread(target=app.load_at_start, name="load", daemon=True)
        if options.model:
            loader.start()
        running = _serve(app, listener)
        undo.callback(running.stop)
        if options.api:
            from modules.api.legacy.serve import LegacyServer

            running.legacy = LegacyServer(app, listener.getsockname()[0])
        if options.share:
            running.share_url = _share(running)
        if options.model:
            loader.join()
        _announce(running)
        undo.pop_all()
    return running


def _share(running: Running) -> str | None:
    from modules.tunnel import open_tunnel

    try:
        return open_tunnel(running.host, running.port)
    except UserError as error:
        log.warning("%s", error.message)
        return None


def _serve(app: App, listener: socket.socket) -> Running:
    import uvicorn

    from modules import web
    from modules.api.connections import TimedProtocol

    options = app.options
    config = uvicorn.Config(
        web.build(app),
        log_level="info" if options.verbose else "warning",
        access_log=options.verbose,
        root_path=options.root_path,
        ssl_keyfile=options.ssl_keyfile or None,
        ssl_certfile=options.ssl_certfile or None,
        timeout_graceful_shutdown=2,
        http=TimedProtocol,
        ws="none",
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    ended = threading.Event()

    def serve() -> None:
        try:
            server.run([listener])
        finally:
            ended.set()

    threading.Thread(target=serve, name="web", daemon=True).start()
    while not server.started:
        if ended.is_set():
            raise UserError("The web server ended while starting; the lines above say why.")
        time.sleep(0.01)
    scheme = "https" if options.ssl_certfile else "http"
    host, port = listener.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host) or str(host)
    return Running(app, server, ended, f"{scheme}://{in_url(here)}:{port}{options.root_path}", here, port)


PROXY_PREFIXES = ("JUPYTERHUB_SERVICE_PREFIX", "NB_PREFIX")
"""What JupyterHub and Kubeflow call the path of a notebook server; its proxy shows our port below it."""


def _root_path(options: ServerOptions, port: int) -> str:
    """The path a proxy shows us under: as told, or as the proxy of a hosted notebook does it. "" without one."""
    hosted = next((prefix for name in PROXY_PREFIXES if (prefix := os.environ.get(name, "").strip("/"))), "")
    path = options.root_path or (f"{hosted}/proxy/{port}" if hosted else "")
    return "/" + path.strip("/") if path.strip("/") else ""


def _open_port(options: ServerOptions) -> socket.socket:
    """A listening socket. Raises UserError that names a free port where the chosen one is taken."""
    host = options.listen_host or ("0.0.0.0" if options.listen else "127.0.0.1")
    return ports.listen(host, options.listen_port, lambda free: f"add --listen-port {free}.")


def _check(options: ServerOptions) -> None:
    """Raises UserError for flags that do not go together, and for files that are not there."""
    if options.ssl_keyfile and not options.ssl_certfile:
        raise UserError("--ssl-keyfile needs --ssl-certfile: give the certificate too for https.")
    for flag, name in (("--ssl-keyfile", options.ssl_keyfile), ("--ssl-certfile", options.ssl_certfile)):
        if name and not Path(name).is_file():
            raise UserError(f"{flag}: there is no file {name}.")
    if options.share and options.ssl_certfile:
        raise UserError(
            "The link of --share is https already, and its tunnel speaks plain http to this server: leave out --ssl-*."
        )


def _quiet_libraries(verbose: bool) -> None:
    """Log lines of ours in one form; no analytics, no progress bars or notices of libraries on the screen."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("httpx", "httpcore", "asyncio", "urllib3", "matplotlib", "PIL", "markdown_it", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def _announce(running: Running) -> None:
    status = running.app.manager.status
    if status.error:
        print(f"No model is loaded: {status.error}", flush=True)
    elif status.state == "empty":
        print(
            "No model is loaded yet: `python download-model.py starter` gets a small one; choose it on the Models tab.",
            flush=True,
        )
    if running.app.access.one_time:
        user, password = next(iter(running.app.access.logins.items()))
        print(f"This address is public, so it asks for a login. User: {user}  Password: {password}", flush=True)
        print("Choose your own with --gradio-auth USER:PASSWORD, or let everyone in with --no-auth.", flush=True)
    share = f" share={running.share_url}" if running.share_url else ""
    print(f"READY local={running.url}{share}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run until Ctrl-C. Returns the exit status."""
    terminal.take_any_text()
    signal.signal(signal.SIGTERM, lambda *_: _raise_interrupt())
    running = None
    try:
        running = launch(arguments)
        if running.app.options.auto_launch:
            import webbrowser

            webbrowser.open(running.url)
        running.wait()
    except UserError as error:
        print(error.message, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopping.", flush=True)
    finally:
        if running is not None:
            running.stop()
    return 0


def _raise_interrupt() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
