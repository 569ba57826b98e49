"""Where the files of a repair lie while it may go on, and how they are removed; imports no torch, `checkpoints` writes and reads them.

    OUT/best/                   the best adapter so far, a PEFT folder
    OUT/checkpoint-000040/      adapter.safetensors, optimizer.safetensors, said.json, state.json; only the newest is kept
    OUT/dummy/                  the adapter that holds a dummy trigger, where the repair unlearns one (`dummy`)

A checkpoint is renamed before it is removed, so that one that can be seen is whole.
"""

import shutil
from contextlib import suppress
from pathlib import Path

BEST = "best"
PREFIX = "checkpoint-"
PLANTED = "dummy"


def clear(out: Path, *, best: bool) -> None:
    """Remove all checkpoints, and the best adapter when asked."""
    for folder in folders(out):
        remove(folder)
    for rest in out.glob(f".{PREFIX}*.tmp"):
        shutil.rmtree(rest, ignore_errors=True)
    for file in out.glob("teacher-*.tmp"):  # left by a process that could not take its name away
        with suppress(OSError):
            file.unlink()
    if best:
        shutil.rmtree(out / BEST, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a checkpoint, out of sight first: a process that is killed meanwhile leaves none that is half there."""
    hidden = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(OSError):  # not there, or a disk that was made read-only
        folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def there(out: Path) -> bool:
    """Return whether there is a checkpoint to go on from."""
    return bool(folders(out))


def folders(out: Path) -> list[Path]:
    return sorted(out.glob(f"{PREFIX}*"))
