"""Memory that threads have used goes back to the system: in processes of their own, for how the heap is kept is decided at the start."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.serving import ROOT

THREADS_THAT_END = """
import ctypes, sys, threading
from modules.library.hardware import keep_one_heap

def resident():
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work(kept):
    kept += [bytearray(1 << 20) for _ in range(12)]
    bytearray(30 << 20)

if sys.argv[1] == "one heap":
    keep_one_heap()
before = resident()
bytearray(31 << 20)  # from now on glibc keeps blocks up to this size on a heap
for _ in range(6):
    kept = []
    thread = threading.Thread(target=work, args=(kept,))
    thread.start()
    thread.join()
    del kept
print(resident() - before)
"""


def left_over(heaps: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", THREADS_THAT_END, heaps], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has several heaps")
def test_with_one_heap_all_goes_back():
    assert left_over("one heap") < 4 << 20
    assert left_over("many heaps") > 16 << 20  # which shows that the line above can fail
