"""Memory that the page no longer uses goes back to the system, where the C library is glibc; elsewhere nothing is done.

By itself glibc gives each thread of Gradio's pool a heap of its own and keeps what a redraw has freed in the middle of it, so that a
page which is used for hours grows without holding more. Source: mallopt(3), malloc_trim(3); tests/bench/LOG.md, soak.
"""

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

M_ARENA_MAX = -8
"""Its number in glibc's malloc.h."""
TRIM_SECONDS = 60.0
"""Seconds between two hand-backs. Source: unverified choice."""


def keep_small() -> None:
    """Let all threads of this process share two heaps, and hand back what is free in them every minute. Call it before they start."""
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        Thread(target=_trim, args=(libc.malloc_trim,), daemon=True, name="memory").start()


def _trim(trim: Callable[[int], int]) -> None:
    while True:
        time.sleep(TRIM_SECONDS)
        trim(0)
