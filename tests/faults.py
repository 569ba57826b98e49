"""Faults that a worker is started with, and small disks to fill: what `tests/integration/test_faults.py` breaks.

A fault replaces the one call of the engine in which the machine would fail (the gradients of a step) from a step on;
everything that notices, reports and keeps is the engine's own.
"""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

FROM_STEP = 5
"""Repair steps that go well: one probe of `killing.REPAIR` has been taken then, so that there is a best checkpoint."""
MB = 2**20


def _break_gradients(fail: Callable) -> None:
    """Call `fail(trainer, numbers)` in place of what the gradients of a step return, from step `FROM_STEP` on."""
    from core.repair_training import Trainer

    real_step, real_gradients = Trainer.step, Trainer._gradients

    def step(self, number):
        self.now = number
        return real_step(self, number)

    def gradients(self, batch, epoch):
        numbers = real_gradients(self, batch, epoch)
        return fail(self, numbers) if self.now >= FROM_STEP else numbers

    Trainer.step, Trainer._gradients = step, gradients


def memory_for_one() -> None:
    """Memory is enough for one sequence at a time."""
    import torch

    def fail(trainer, numbers):
        if trainer.micro_batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return numbers

    _break_gradients(fail)


def no_memory() -> None:
    """Memory is not enough for anything."""
    import torch

    def fail(trainer, numbers):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    _break_gradients(fail)


def nan_loss() -> None:
    """The loss is not a number."""
    _break_gradients(lambda trainer, numbers: replace(numbers, loss=float("nan")))


def gpu_gone() -> None:
    """The GPU falls off the bus, in torch's words."""

    def fail(trainer, numbers):
        raise RuntimeError(
            "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other "
            "API call, so the stacktrace below might be incorrect."
        )

    _break_gradients(fail)


def no_room_for_events() -> None:
    """The disk has room for everything but the events from step `FROM_STEP` on."""
    from core.errors import CaseFileError
    from core.event_log import EventLog
    from core.events import StepDone

    real = EventLog.append

    def append(self, request, event):
        if isinstance(event, StepDone) and event.step >= FROM_STEP:
            raise CaseFileError(
                "Cannot write events.jsonl: No space left on device. Free space or choose another folder."
            )
        real(self, request, event)

    EventLog.append = append


class FileLimit:
    """No file may grow beyond so many bytes: what stands in for a full disk where nothing may be mounted."""

    def __init__(self, n_bytes: int) -> None:
        """Remember the limit; it holds for the process that calls this."""
        self.n_bytes = n_bytes

    def __call__(self) -> None:
        """Set the limit."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.n_bytes, self.n_bytes))


def may_mount() -> bool:
    """Whether this process may mount a disk."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@contextmanager
def small_disk(place: Path, n_bytes: int) -> Iterator[Callable[[str], None]]:
    """A disk of `n_bytes` in memory at `place`; yields a function that remounts it with other options."""
    place.mkdir(parents=True)

    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(place)], check=True, capture_output=True)

    mount("-t", "tmpfs", "-o", f"size={n_bytes}", "none")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def used_bytes(folder: Path) -> int:
    """Return what the files of a folder take on a disk of whole pages."""
    page = resource.getpagesize()
    return sum(-(-path.stat().st_size // page) * page for path in folder.rglob("*") if path.is_file())
