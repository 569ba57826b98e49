"""Small files, written whole or not at all, and their hashes. Knows nothing of cases."""

import csv
import errno
import hashlib
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from core.errors import CaseFileError

_HALF_PAIR = re.compile("[\ud800-\udfff]")
WINDOWS_TRIES, WINDOWS_WAIT_SECONDS = 20, 0.05
"""How often, and how far apart, a file that someone reads is moved or removed on Windows. Source: unverified choice (a second)."""


def now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` so that a reader sees the old file or the new one, never a part. Raises: CaseFileError."""
    payload = data if isinstance(data, bytes) else data.encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        patiently(lambda: os.replace(temporary, path))
    except OSError as error:
        with suppress(OSError):  # a read-only disk refuses this too
            temporary.unlink(missing_ok=True)
        raise cannot_write(path.name, error) from error


def patiently(act: Callable[[], object]) -> None:
    """Move or remove a file; on Windows, which refuses that while someone reads it, for up to a second. Raises: OSError."""
    for left in reversed(range(WINDOWS_TRIES if sys.platform == "win32" else 1)):
        try:
            act()
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(WINDOWS_WAIT_SECONDS)


def cannot_write(name: str, error: OSError) -> CaseFileError:
    """Return the error for a file that cannot be written: disk full, read-only, too large."""
    return CaseFileError(f"Cannot write {name}: {error.strerror or error}. Free space or choose another folder.")


def cannot_work(error: OSError) -> CaseFileError:
    """Return the error for whatever the machine refused in the middle of something, named by its file where there is one."""
    name = Path(os.fsdecode(error.filename)).name if error.filename else "the case"
    if error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR):
        return CaseFileError(f"{name}: {error.strerror}; check the path and its rights.")
    return cannot_write(name, error)


def refuse_links(folder: Path) -> None:
    """Raise CaseFileError when `folder` holds, at any depth, anything but plain files and folders.

    Whoever copied it here may have left a link, by which other files would be read or overwritten, or a pipe, which is waited
    for without end. A file that goes while this looks does no harm.
    """
    waiting = [str(folder)]
    while waiting:
        with suppress(FileNotFoundError, PermissionError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                    name = os.path.relpath(entry.path, folder)
                    raise CaseFileError(f"{name!a} in {folder} is a link or no file; put a plain copy in its place.")


def dump(data: object, *, indent: int | None = 1) -> str:
    """Return JSON text that can be written as UTF-8 and reads as the same value; half surrogate pairs become escapes.

    Infinities and NaN stay readable by Python and are refused nowhere.
    """
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    return _HALF_PAIR.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object (as `object_pairs_hook`); ValueError for a name that stands twice, which readers take differently."""
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:40]!r} stands twice in one object")
        found[name] = value
    return found


SEPARATOR = re.compile(r"sep=([,;\t|])(?:\r\n|\r|\n|$)", re.IGNORECASE)
"""The first line by which spreadsheets say what stands between two cells."""


def wide_cells(limit: int) -> None:
    """Let cells of tables have `limit` characters. The library's limit is one for all threads, so it only grows: what bounds memory
    is how much of a table is read.
    """
    csv.field_size_limit(max(limit, csv.field_size_limit()))


def digest(data: object) -> str:
    """Return the SHA-256 of plain JSON data, whatever the order of its keys, as hex."""
    text = json.dumps(data, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def so_far(path: Path) -> dict[str, object]:
    """Return bytes and SHA-256 of a file that only grows, as it is now; of none that of an empty one."""
    data = path.read_bytes() if path.is_file() else b""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def begins_as(path: Path, told: object) -> bool:
    """Return whether a file that only grows begins as `so_far` told of it; never where that is no such thing."""
    n = told.get("bytes") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(n, int):
        return False
    data = path.read_bytes()[:n] if path.is_file() else b""
    return len(data) == n and hashlib.sha256(data).hexdigest() == told.get("sha256")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
