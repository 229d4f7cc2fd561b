"""`python -m modules.training.worker FOLDER`: train what the folder says, or go on from its newest checkpoint."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from pathlib import Path

from modules.errors import UserError
from modules.training.events import Failed, append_event
from modules.training.folder import RunFolder

log = logging.getLogger("training")


def main(arguments: list[str]) -> int:
    """Exit status: 0 done or stopped, 1 failed; the reason is the last event."""
    if len(arguments) != 1:
        print("usage: python -m modules.training.worker FOLDER", file=sys.stderr)
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    folder = RunFolder(Path(arguments[0]).resolve())
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
    from modules.training.worker.group import Group
    from modules.training.worker.run import Run
    from modules.training.worker.sharded import ShardedGroup

    sharding = folder.read_config().sharding
    group = Group() if sharding == "none" else ShardedGroup(keep_weights=sharding == "fsdp-gradients")
    try:
        Run(folder, group)()
    finally:
        group.close()


def describe(error: BaseException) -> str:
    """An error as a sentence for people."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in str(error):
        return "The disk is full: the newest complete checkpoint is intact. Make room and resume the run."
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
        return (
            "The memory does not suffice: lower the cutoff or the micro-batch, turn gradient checkpointing on, or take qlora."
        )
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:2000]


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
