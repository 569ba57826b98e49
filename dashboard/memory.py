"""What keeps the page's memory flat while it is used for hours. Source: tests/bench/LOG.md, soak.

By itself glibc gives each thread of Gradio's pool a heap of its own and keeps what a redraw has freed in the middle of it: this
memory goes back to the system (mallopt(3), malloc_trim(3); with another C library nothing is done). And Gradio would keep every
component that a redraw has replaced.
"""

import dashboard.server  # noqa: F401  # isort: skip  (sets the environment before gradio is imported)

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

from gradio.blocks import Block
from gradio.state_holder import SessionState

M_ARENA_MAX = -8
"""Its number in glibc's malloc.h."""
TRIM_SECONDS = 60.0
"""Seconds between two hand-backs. Source: unverified choice."""
_PUT = SessionState.__setitem__


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


def forget_replaced() -> None:
    """Let a component that replaces another one at an update take over its number, for all pages of this process.

    Gradio 6.31 numbers the new one anew; where it is an input of a later call too, the session keeps it under the new number as well:
    one more for every update, as long as the tab is open. Call it before the page is served.
    """
    SessionState.__setitem__ = _put_in_place  # type: ignore[method-assign]


def _put_in_place(state: SessionState, key: int, value: Any) -> None:
    if isinstance(value, Block):
        value._id = key
    _PUT(state, key, value)
