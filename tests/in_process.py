"""The real web application on a free port, in this process, for tests that decide what the model says."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules.app import App
from modules.generation.types import LoadedModel
from modules.settings import ports
from modules.settings.server import ServerOptions

ROOT = Path(__file__).resolve().parent.parent


def make_app(root: Path, model: LoadedModel | None = None, **options: object) -> App:
    """An App in an empty folder, with the shipped presets, prompts and templates, and `model` loaded."""
    for folder in ("presets", "prompts"):
        if not (root / folder).exists():
            shutil.copytree(ROOT / folder, root / folder)
    app = App(root, ServerOptions.read(options))
    if model is not None:
        app.manager.replace(model.name, lambda report: model)
    return app


@contextmanager
def serving(app: App, port: int = 0) -> Iterator[str]:
    """The address of the page and the API of `app`, until the block ends. The caller closes the app."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import uvicorn

    from modules import web
    from modules.api.connections import TimedProtocol

    with ports.listen("127.0.0.1", port, str) as listener:
        config = uvicorn.Config(
            web.build(app),
            http=TimedProtocol,
            log_level="warning",
            ws="none",
            timeout_graceful_shutdown=1,
            proxy_headers=False,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            app.stop()
            server.should_exit = True
            thread.join(timeout=10)


def events_of(client: Any, kind: str, of: object = "", **more: object) -> Iterator[Any]:
    """What the event stream tells of one topic, to its end. client: of httpx or of starlette's tests, at the address of the server."""
    topics = json.dumps({"it": {"kind": kind, "of": str(of), **more}})
    with client.stream("GET", "/chats/events", params={"topics": topics}) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line[5:])
