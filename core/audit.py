"""The log of a case: every act in `audit.jsonl`, each line bound to the one before it.

1. A line says who did what, when (UTC), on which facts; `files` among them are hashes of files of the case at that time.
2. `seq` counts the lines, `previous` is the hash of the line before, `hash` the SHA-256 of this line without `hash`.
3. Lines are appended under a lock and never rewritten. `audit.head` holds count and hash of the last one, so that a tail
   that was cut off is noticed; it is there before the first line, so that a head that is gone or unreadable was taken away.
   An append after a cut goes on from the head, or from none, which leaves the gap in the chain for ever.
4. Lines of versions before the chain may stand first; `previous` of the first chained line is the hash of them all.

What the chain shows: that a line was changed, removed, inserted, moved or cut off by someone who did not write a head that
fits. What it cannot show: who may write the folder may cut lines off or write a whole new log, with a head that fits. Against
that, hold the log against what else knows of its acts: the case itself (report_check.py), or better a report that left the
folder, which states how many acts there were then, and the hash of the last.
A name in the log is what was typed, not who typed it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.errors import CaseFileError
from core.files import cannot_write, now, write_atomic

FILE, HEAD, LOCK = "audit.jsonl", "audit.head", "audit.lock"
LOCK_SECONDS = 5.0
"""A check waits this long for a writer. Source: unverified choice; a writer holds the lock for milliseconds."""


@dataclass(frozen=True, kw_only=True)
class AuditLine:
    """One act: who did what, when (UTC), on which facts. `seq` is -1 and the hashes are empty before the chain."""

    time: str
    actor: str
    action: str
    facts: dict[str, Any]
    seq: int = -1
    previous: str = ""
    hash: str = ""

    def hashes(self, key: str = "files") -> dict[str, str]:
        """Return the hashes of files that the act names under `key`, by file; nothing where it names none."""
        files = self.facts.get(key)
        return {str(name): str(digest) for name, digest in files.items()} if isinstance(files, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Head:
    """How many lines there are, and the hash of the last."""

    n: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class ChainCheck:
    """What a check of the log found: `broken` is the number of the first broken line, from 1, or None; `why` says how.

    `unchained` lines of an older version stand before the chain; `note` says what is odd but in order.
    """

    acts: int
    unchained: int
    head: Head
    broken: int | None = None
    why: str = ""
    note: str = ""


def append(folder: Path, action: str, actor: str, facts: dict[str, Any]) -> AuditLine:
    """Append one act to the log in `folder` and return it; `facts` is plain JSON data.

    Raises: CaseFileError; nothing of the act is left then.
    """
    try:
        return _append(folder, action, actor, facts)
    except OSError as error:
        raise cannot_write(FILE, error) from error


def _append(folder: Path, action: str, actor: str, facts: dict[str, Any]) -> AuditLine:
    with FileLock(folder / LOCK):
        path = folder / FILE
        path.touch()
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # a writer was killed in the middle of a line
            facts = facts | {"unfinished_line": data[whole:].decode("utf-8", "replace")}
            with open(path, "r+b") as file:
                file.truncate(whole)
        head = stored_head(folder)
        before = _before(data[:whole], head)
        if head is None:
            _write_head(folder, before)
        line = _sealed(
            AuditLine(time=now(), actor=actor, action=action, facts=facts, seq=before.n, previous=before.hash)
        )
        try:
            with open(path, "ab") as file:
                file.write(_text(line).encode("ascii") + b"\n")
                file.flush()
                os.fsync(file.fileno())  # before the head, which would otherwise know a line that a power cut took
            _write_head(folder, Head(n=line.seq + 1, hash=line.hash))
        except (OSError, CaseFileError):  # two lines that the head does not know would read as a log that was changed
            with suppress(OSError):
                os.truncate(path, whole)
            raise
    return line


def _write_head(folder: Path, head: Head) -> None:
    write_atomic(folder / HEAD, json.dumps(asdict(head)))


def lines(folder: Path) -> Iterator[AuditLine]:
    """Yield every act, oldest first. Raises: CaseFileError when a line cannot be read."""
    for number, text in enumerate(_lines(folder), start=1):
        line = _parsed(text)
        if line is None:
            raise CaseFileError(f"Line {number} of {FILE} cannot be read; run `audit` on the case.")
        yield line


def stored_head(folder: Path) -> Head | None:
    """Return what `audit.head` says, or None when it is missing or unreadable."""
    try:
        data = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        return Head(n=int(data["n"]), hash=str(data["hash"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check(folder: Path, *, chained: bool = True) -> ChainCheck:
    """Return what is wrong with the log. With `chained` a line outside the chain is a fault (cases of schema 2 on).

    What looks broken is read again under the lock, where that may be taken: a writer may have been at work meanwhile.
    """
    found = _checked(folder, chained)
    if found.broken is not None:
        with suppress(OSError), FileLock(folder / LOCK, timeout=LOCK_SECONDS):
            found = _checked(folder, chained)
    return found


def _checked(folder: Path, chained: bool) -> ChainCheck:
    """Return what is wrong with the log as it can be read now."""
    seen = hashlib.sha256()
    unchained, last = 0, Head(n=0, hash=seen.hexdigest())
    before = last
    for number, text in enumerate(_lines(folder), start=1):
        line = _parsed(text)
        why = ""
        if line is None:
            why = "it is no line of this log"
        elif not line.hash and not chained and unchained == number - 1:
            unchained = number
        elif not line.hash:
            why = "it is not part of the chain"
        elif line.seq != number - 1 or line.previous != last.hash:
            why = "it does not follow the line before it: lines were removed, inserted or moved"
        elif _text(_sealed(line)).encode("ascii") != text:
            why = "it was changed after it was written"
        if why:
            return ChainCheck(acts=number - 1, unchained=unchained, head=last, broken=number, why=why)
        assert line is not None
        seen.update(text + b"\n")
        before, last = last, Head(n=number, hash=line.hash or seen.hexdigest())
    return _against_head(folder, unchained, before, last, chained)


def _against_head(folder: Path, unchained: int, before: Head, last: Head, chained: bool) -> ChainCheck:
    """Return the check of a whole chain that ends in `before` and `last` against `audit.head`."""
    head, n = stored_head(folder), last.n
    note, broken, why = "", None, ""
    if head is not None and head.n > n:
        broken, why = n + 1, f"{head.n - n} of {head.n} lines are missing from the end"
    elif n == unchained and chained:
        broken, why = 1, "the log is missing or empty"
    elif head is None and n == unchained:
        note = "The acts of this case were written by an older version, without a chain." if n else ""
    elif head is None:
        broken, why = n, f"{HEAD} is missing or unreadable, so that a cut tail would not be noticed"
    elif head.n == n:
        if head.hash != last.hash:
            broken, why = n, f"{HEAD} holds another hash of it"
    elif head != before:
        broken, why = n, f"{HEAD} knows {head.n} lines, and does not fit"
    else:
        note = "The last act was written and not yet counted when its writer ended."
    return ChainCheck(acts=n, unchained=unchained, head=last, broken=broken, why=why, note=note)


def _before(data: bytes, head: Head | None) -> Head:
    """Return count and hash of what a new line follows: the last line, unless the head knows better.

    Chained lines without any head are followed by a gap: nobody can tell how many there were.
    """
    n = data.count(b"\n")
    last = _parsed(data[data.rfind(b"\n", 0, -1) + 1 : -1]) if n else None
    if last is None or not last.hash:
        found = Head(n=n, hash=hashlib.sha256(data).hexdigest())
    else:
        found = Head(n=n, hash=last.hash if head is not None else "")
    if head is None or head == found:
        return found
    uncounted = last is not None and found.n == head.n + 1 and last.previous == head.hash
    return found if uncounted else head


def _lines(folder: Path) -> Iterator[bytes]:
    """Yield the finished lines of the log, without their ends; one at a time, since the log of a long case is large."""
    with suppress(FileNotFoundError), open(folder / FILE, "rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield text[:-1]


def _parsed(text: bytes) -> AuditLine | None:
    """Return a line of the log, or None when it is none."""
    try:
        data = json.loads(text)
        names = ("time", "actor", "action", "previous", "hash")
        strings = {name: data[name] for name in names if name in data}
        line = AuditLine(**strings, facts=data["facts"], seq=data.get("seq", -1))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    plain = all(isinstance(one, str) for one in strings.values())
    return line if plain and isinstance(line.facts, dict) and isinstance(line.seq, int) else None


def _text(line: AuditLine) -> str:
    """Return the one way to write a line: ASCII, so that no text in it can drive a terminal."""
    data = asdict(line)
    return json.dumps(data if line.hash else {name: data[name] for name in data if name != "hash"}, ensure_ascii=True)


def _sealed(line: AuditLine) -> AuditLine:
    """Return the line with its hash."""
    fields = asdict(line) | {"hash": ""}
    return AuditLine(**fields | {"hash": hashlib.sha256(_text(AuditLine(**fields)).encode("ascii")).hexdigest()})
