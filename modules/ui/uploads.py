"""Files that Gradio's own controls send: where they lie, how large they may be, one and all, and for how long."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modules.settings.paths import path_of

ADDRESS = "/gradio_api/upload"
LARGEST = 1024**3
"""Bytes of one upload: training data."""
MOST = 4 * 1024**3
"""Bytes of all that lie there."""
KEPT_SECONDS = 24 * 3600
SWEEP_SECONDS = 3600


def prepare(data: Path) -> Path:
    """The folder for uploads, told to Gradio, without what an earlier server left there; call before the page is built."""
    folder = data / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder.resolve())
    sweep(folder)
    return folder


def sweep(folder: Path) -> int:
    """Remove what is older than KEPT_SECONDS; the bytes that are left."""
    before = time.time() - KEPT_SECONDS
    left = 0
    for path in sorted(folder.rglob("*"), reverse=True):  # what lies in a folder comes before it
        try:
            facts = path.lstat()
            if path.is_dir() and not path.is_symlink():
                if facts.st_mtime < before:
                    path.rmdir()
            elif facts.st_mtime < before:
                path.unlink()
            else:
                left += facts.st_size
        except OSError:  # not empty, or gone meanwhile
            continue
    return left


class UploadRoom:
    """ASGI middleware: refuses an upload that is too large, or has no room beside the others, before it is read."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = folder
        self._arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope)
        if path != ADDRESS or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        promised = Headers(scope=scope).get("content-length", "")
        size = int(promised) if promised.isdecimal() else 0
        status, problem = await self._problem(size)
        if problem:
            error = {"message": problem, "type": "invalid_request_error", "param": None, "code": "upload_refused"}
            await JSONResponse({"error": error}, status)(scope, receive, send)
            return
        self._arriving += size
        try:
            await self._app(scope, receive, send)
        finally:
            self._arriving -= size

    async def _problem(self, size: int) -> tuple[int, str]:
        if not size:
            return 411, "Send the file with a Content-Length header."
        if size > LARGEST:
            return 413, f"The file is too large: {LARGEST // 1024**2} MB at most. Copy it into the folder by hand."
        if await asyncio.to_thread(sweep, self._folder) + self._arriving + size > MOST:
            return 413, f"There is no room for more uploads: {MOST // 1024**2} MB in a day at most."
        return 200, ""
