"""Renders each template of a JSON list, in a process that may have a gigabyte and a minute; prints what each comes to."""

from __future__ import annotations

import json
import resource
import sys

from modules.errors import UserError
from modules.generation.template import render_chat
from modules.generation.types import Message

MEMORY = 1024**3
SECONDS_EACH = 10


def main() -> None:
    sources = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, source in enumerate(sources, 1):
        resource.setrlimit(resource.RLIMIT_CPU, (number * SECONDS_EACH, resource.RLIM_INFINITY))
        try:
            said = ["made", len(render_chat(source, [Message("user", "Hello")]))]
        except UserError as error:
            said = ["refused", error.message]
        except BaseException as error:  # noqa: BLE001 — it is what the test is told
            said = ["broke", repr(error)[:200]]
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
