"""Faults of the machine in plain sentences: a disk that is full or read-only, memory that runs out, a GPU that is gone."""

import os
import re

from safetensors import SafetensorError

from core.errors import CaseFileError, TriageError
from core.files import cannot_work
from core.loaded import is_device_lost, is_out_of_memory

DEVICE_LOST = (
    "The GPU stopped answering (see the log). What was kept is safe; ask again, a repair can resume. "
    "If it happens again, restart the machine's driver or use the CPU."
)
OUT_OF_MEMORY = (
    "Out of memory. What was kept is safe. Free memory, lower the batch size of the model's settings, or use another device, "
    "then ask again."
)


def told(error: BaseException) -> TriageError | None:
    """Return the error to show for a fault of the machine, None for any other."""
    system = refused(error)
    if system is not None:
        return cannot_work(system)
    if isinstance(error, SafetensorError):
        return CaseFileError(
            f"Weights could not be read or written: {reason(error)}. Free space or choose another folder."
        )
    if is_out_of_memory(error):
        return TriageError(OUT_OF_MEMORY)
    return TriageError(DEVICE_LOST) if is_device_lost(error) else None


def refused(error: BaseException) -> OSError | None:
    """Return what the operating system refused; libraries in Rust (safetensors, tokenizers) wrap its number in words of their own."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def reason(error: Exception) -> str:
    """Return what the operating system said, or else the first line of what the error says."""
    system = refused(error)
    return (system and system.strerror) or (str(error) or type(error).__name__).splitlines()[0]
