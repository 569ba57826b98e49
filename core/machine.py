"""Faults of the machine in plain sentences: a disk that is full or read-only, memory that runs out, a GPU that is gone."""

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
    if isinstance(error, OSError):
        return cannot_work(error)
    if isinstance(error, SafetensorError):
        return CaseFileError(
            f"Weights could not be read or written: {reason(error)}. Free space or choose another folder."
        )
    if is_out_of_memory(error):
        return TriageError(OUT_OF_MEMORY)
    return TriageError(DEVICE_LOST) if is_device_lost(error) else None


def reason(error: Exception) -> str:
    """Return what the operating system said, which safetensors wraps in words of its own."""
    found = re.search(r"([^:(]+) \(os error", str(error))
    return getattr(error, "strerror", None) or (found[1].strip() if found else str(error).splitlines()[0])
