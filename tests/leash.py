"""`python leash.py PARENT COMMAND …`: becomes the command, which ends when PARENT does, also by `kill -9` (Linux)."""

import ctypes
import os
import signal
import sys

_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of <linux/prctl.h>."""


def leashed(command: list[str]) -> list[str]:
    """`command` as one that ends with this process."""
    return [sys.executable, "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the test that wanted this process has ended")
    os.execvp(sys.argv[2], sys.argv[2:])
