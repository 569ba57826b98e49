"""Chat templates rendered in a process of their own: one that loops, grows or crashes ends there, and only there.

`python -m core.rendering` reads one request a line and answers one line, until its input closes. It renders with the
library's own function and sandbox, so the text is the one `apply_chat_template` gives.

* Time: the system ends the child by its processor time, even in a loop that never returns to Python, so that a busy machine is
  not held against a template; a watchdog thread in C (`faulthandler`) ends it by the clock, much later.
* Memory: a limit on its address space, where the system has such a limit (not on Windows).
* Network: no look-up of, and no connection to, another host (offline.py).

What this does not do: judge the text, or keep a template from being slow within the limits.
"""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from core.errors import TokenMismatchError
from core.offline import forbid_other_hosts

SECONDS = 10.0
"""Processor time one rendering may take; an honest one takes a millisecond. Source: unverified choice."""
CLOCK_FACTOR = 12.0
"""How much longer it may take by the clock; on Windows, which has no such timer, the clock alone counts and this is 1.
Source: tests/bench/LOG.md (a machine that gave the child a tenth of a core)."""
START_SECONDS = 60.0
"""Processor time the child may take to start. Source: unverified choice."""
MEMORY_BYTES = 1_000_000_000
"""Memory a rendering may take beyond what the child has at its start. Source: unverified choice."""
MAX_RENDERED = 8_000_000
"""Characters a rendered conversation may have. Source: unverified choice (40 messages of the longest intake reads)."""


class TemplateFault(Exception):
    """What a template raised, on one line; `chat.py` says what to do about it."""


class _Child:
    """The rendering process of this process; started by the first use, started again after it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._template: str | None = None

    def start(self) -> None:
        """Start the process unless it runs; returns at once."""
        with self._lock:
            self._running()

    def ask(self, template: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the child's answer. Raises: TokenMismatchError when it ended instead."""
        with self._lock:
            process = self._running()
            if template != self._template:
                request["template"] = template
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(request, default=str).encode("ascii") + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            except BaseException:  # interrupted half-way: the next answer would be to this question
                self._end()
                raise
            if not line.endswith(b"\n"):
                self._end()
                raise TokenMismatchError(
                    f"this model's chat template did not end within {SECONDS:.0f} s of processor time and {MEMORY_BYTES / 1e9:.0f} GB of "
                    "memory, so it was stopped: check the template of this model"
                )
            self._template = template
            answer: dict[str, Any] = json.loads(line)
            return answer

    def _running(self) -> "subprocess.Popen[bytes]":
        """Return the process, a new one where there is none, it has ended, or it belongs to the process we forked from."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is not None:
            self._end()
        if self._process is None or self._owner != os.getpid():
            self._template, self._owner = None, os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "core.rendering"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parent.parent,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )
        return self._process

    def _end(self) -> None:
        """End the process and close its pipes."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):
                self._process.communicate()
            self._process = None


_CHILD = _Child()
start = _CHILD.start


def render(
    template: str, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, names: Mapping[str, Any]
) -> str:
    """Return the conversation as the template writes it; `names` are what else it may read (the special tokens).

    Raises: TemplateFault for what the template raises; TokenMismatchError when it takes too long or too much memory.
    """
    request = {"messages": list(messages), "add": add_generation_prompt, "names": dict(names), "seconds": SECONDS}
    answer = _CHILD.ask(template, request)
    if "fault" in answer:
        raise TemplateFault(answer["fault"])
    text: str = answer["text"]
    return text


# in the child ---------------------------------------------------------------------------------------------------------


def _limit_memory() -> None:
    """Let the address space grow by `MEMORY_BYTES` and no more."""
    if sys.platform == "win32":
        return
    import resource

    import psutil

    most = psutil.Process().memory_info().vms + MEMORY_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # a system that knows the limit but does not set it
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _limit_time(seconds: float) -> None:
    """End this process after `seconds` of its processor time, or long after by the clock; with 0 lift both limits."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody handles its signal, which ends the process
        seconds *= CLOCK_FACTOR
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def _answer(template: str, request: dict[str, Any]) -> dict[str, str]:
    """Return the text or the fault of one request."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(
            conversations=[request["messages"]],
            chat_template=template,
            add_generation_prompt=request["add"],
            **request["names"],
        )
        text = texts[0]
        if not isinstance(text, str) or len(text) > MAX_RENDERED:
            return {"fault": f"it makes no text of at most {MAX_RENDERED:,} characters"}
    except MemoryError:
        return {"fault": f"it needs more than {MEMORY_BYTES / 1e9:.0f} GB of memory"}
    except Exception as error:  # the template is hostile input
        return {"fault": " ".join(str(error)[:2_000].split())[:200] or type(error).__name__}
    return {"text": text}


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    _limit_time(START_SECONDS)
    import transformers.utils.chat_template_utils  # noqa: F401  before memory is limited

    _limit_memory()
    _limit_time(0.0)
    template = ""
    for line in requests:
        request = json.loads(line)
        template = request.get("template", template)
        _limit_time(request["seconds"])
        answer = _answer(template, request)
        payload = json.dumps(answer).encode("ascii") + b"\n"
        _limit_time(0.0)
        answers.write(payload)
        answers.flush()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    forbid_other_hosts()
    serve(sys.stdin.buffer, sys.stdout.buffer)
