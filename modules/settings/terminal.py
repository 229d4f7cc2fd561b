"""The terminal as it is: one that knows only ASCII gets escapes for other letters, and ends nothing."""

from __future__ import annotations

import contextlib
import io
import sys


def take_any_text() -> None:
    """Let standard output and error print every letter; called first by each of our commands."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")
