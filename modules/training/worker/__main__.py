"""`python -m modules.training.worker FOLDER [--as NAME]`: train what a run's folder says, or go on from its newest checkpoint.

With --as the run is repeated from its beginning, in a folder NAME beside it, with a result of that name.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from modules.errors import UserError
from modules.library.paths import path_inside
from modules.settings.terminal import take_any_text
from modules.training.events import Failed, append_event
from modules.training.folder import RunFolder

log = logging.getLogger("training")


def main(arguments: list[str]) -> int:
    """Exit status: 0 done or stopped, 1 failed; the reason is the last event."""
    take_any_text()
    parser = argparse.ArgumentParser("python -m modules.training.worker", description="Train what a run's folder says.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--as", dest="name", metavar="NAME", help="repeat the run from its beginning under this name")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    folder = RunFolder(options.folder.resolve())
    if options.name:
        try:
            folder = repeated(folder, options.name)
        except UserError as error:  # nothing that the run itself must tell
            print(f"failed: {error.message}", file=sys.stderr)
            return 1
    try:
        train(folder)
    except UserError as error:
        return _failed(folder, error.message)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # whatever it is, the run must say that it failed, and why
        traceback.print_exc()
        return _failed(folder, describe(error))
    return 0


def train(folder: RunFolder) -> None:
    """Run to the end in this process. Raises UserError, and whatever else happens."""
    from modules.training.worker.distributed import Group
    from modules.training.worker.run import Run
    from modules.training.worker.sharded import ShardedGroup

    sharding = folder.read_config().sharding
    group = Group() if sharding == "none" else ShardedGroup(keep_weights=sharding == "fsdp-gradients")
    with closing(group), closing(Run(folder, group)) as run:
        run()


def repeated(folder: RunFolder, name: str) -> RunFolder:
    """A folder for the same run under another name; where it is there already, that run goes on. Raises UserError."""
    again = RunFolder(path_inside(folder.path.parent, name))
    if os.environ.get("RANK", "0") == "0":
        if not again.plan_file.exists():
            folder.repeat(again, name)
    else:
        for _ in range(600):
            if again.plan_file.exists():
                break
            time.sleep(0.1)
    return again


def describe(error: BaseException) -> str:
    """An error as a sentence for people."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    if any(_is_full_disk(one) for one in _with_causes(error)):
        return "The disk is full: the newest complete checkpoint is intact. Make room and resume the run."
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
        return (
            "The memory does not suffice: lower the cutoff or the micro-batch, turn gradient checkpointing on, or take qlora."
        )
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:2000]


def _is_full_disk(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)  # libraries in other languages have words alone


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came out of: torch wraps what a file says in its own."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _failed(folder: RunFolder, reason: str) -> int:
    print(f"failed: {reason}", file=sys.stderr)
    if os.environ.get("RANK", "0") == "0":
        try:
            append_event(folder.events, Failed(reason))
        except OSError as error:
            print(f"the reason could not be written to {folder.events}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
