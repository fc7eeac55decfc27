"""Memory that is used again: on a CPU, what a step takes anew costs a page fault for every 4 kB of it.

XLA takes a program's scratch memory from `malloc` at every call and gives it back at the end, and glibc
hands pieces that large back to the system, which clears each of their pages when it is touched again. A
step that needs 70 MB pays 17,000 faults of some 2 μs. glibc can be told to keep what is freed
(`mallopt(3)`).
"""

from __future__ import annotations

import ctypes
import os
import sys

# From <malloc.h>. One arena: those of other threads have heaps that large pieces do not fit in.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
SETTINGS = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}


def keep_memory() -> bool:
    """Let glibc keep freed memory for the next step, before JAX starts its threads; whether it does.

    Nothing is done elsewhere, nor where the environment says how `malloc` shall go (`MALLOC_ARENA_MAX`,
    `MALLOC_TRIM_THRESHOLD_`, …). The process then keeps as much memory as it needed at most.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ)
    if told or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    return mallopt is not None and all(mallopt(name, value) for name, value in SETTINGS.items())
