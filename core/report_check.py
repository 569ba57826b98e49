"""Whether a report says what its case holds: it is rendered again by its own stamp, and compared line by line.

1. The stamp in the page names the time, the marking, and how far the log had come; the log must be whole and hold that act.
2. The same case and stamp always give the same page, so any word or figure that was changed in it is a difference, and so
   is any result that changed in the case since; the digest in the stamp tells the data from the page.
3. The act that wrote the page holds its hash, so that a stamp that was changed with the page, marking and time, is noticed.
The other way round, the case is asked what it knows of acts that its log has no more (`unlogged`), and which reports it has
gone on from (`overtaken`).
What this does not do: tell which of the two is right. Nothing in the page is run or loaded to check it.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from html import unescape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from core import audit, evidence
from core.case_view import Stamp
from core.casefile import Case
from core.errors import CaseFileError, EvidenceError
from core.files import begins_as, dump, hash_file, so_far, write_atomic
from core.report import render_report, report_json
from core.serial import from_json

MANIFEST = "manifest.json"
MAX_BYTES = 64_000_000
"""A page larger than this is not read. Source: unverified choice."""
SHOWN = 5
"""Differing lines that are named. Source: unverified choice."""
LINE = 160
"""Characters of a differing line that are shown. Source: unverified choice."""
_STAMP = re.compile(r'<meta name="patcher-report" content="([^"]*)">')
_GROWING = (audit.FILE, "events.jsonl")
"""Files that are only appended to: the manifest holds their length and the hash of that much."""
_LEFT_OUT = re.compile(
    r"(^|/)(\..*|.*\.lock|worker\..*|audit\.head|lease\.json)$|^(requests|control|repair/checkpoint-[^/]*)/|^"
    + re.escape(MANIFEST)
    + "$"
)
"""Files that say what runs now, not what was found, and checkpoints that a repair goes on from."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One line of the page that is not what the case gives; empty where one side has none."""

    line: int
    page: str
    case: str


@dataclass(frozen=True, kw_only=True)
class ReportCheck:
    """What a check of a report found. `same`: page, data and log all agree; `known`: an act wrote just these bytes."""

    stamp: Stamp
    same: bool
    data: bool
    known: bool
    log: str
    differences: tuple[Difference, ...]
    n_differences: int


def check_report(case: Case, path: Path) -> ReportCheck:
    """Return how the page in `path` compares with the case. Raises: EvidenceError when it is no page of this program."""
    page = _page(path)
    stamp = _stamp(page, path.name)
    again = render_report(case, stamp)
    data = report_json(case, stamp)["stamp"]["content"] == stamp.content
    theirs, ours = page.split("\n"), again.split("\n")
    pairs = enumerate(zip_longest(theirs, ours, fillvalue=""), start=1)
    differing = [
        Difference(line=number, page=_around(one, other), case=_around(other, one))
        for number, (one, other) in pairs
        if one != other
    ]
    log = _log(case, stamp)
    known = not log and sha256(page.encode("utf-8")).hexdigest() in _reported(case)
    return ReportCheck(
        stamp=stamp,
        same=page == again and data and known,
        data=data,
        known=known,
        log=log,
        differences=tuple(differing[:SHOWN]),
        n_differences=len(differing),
    )


def _page(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EvidenceError(f"{path.name} is larger than any report; check the path.")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise EvidenceError(f"{path.name} is no report of this program: it is not UTF-8.") from error


def _stamp(page: str, name: str) -> Stamp:
    found = _STAMP.search(page)
    try:
        return from_json(Stamp, json.loads(unescape(found.group(1)))) if found else _no_stamp(name)
    except (ValueError, CaseFileError, RecursionError) as error:
        raise EvidenceError(f"The stamp in {name} cannot be read; write the report again.") from error


def _no_stamp(name: str) -> Stamp:
    raise EvidenceError(f"{name} holds no stamp of this program; check reports that `report` wrote.")


def _log(case: Case, stamp: Stamp) -> str:
    """Return what is wrong with the log, or between stamp and log, or nothing."""
    checked = audit.check(case.path, chained=case.schema != 1)
    if checked.broken is not None:
        return f"line {checked.broken} of {audit.FILE} is broken: {checked.why}"
    lines = case.audit_lines()
    if not 0 < stamp.acts <= len(lines):
        return f"the report was written after {stamp.acts} acts, the log holds {len(lines)}"
    if lines[stamp.acts - 1].hash != stamp.head:
        return f"act {stamp.acts} of the log is not the one that the report was written after"
    return ""


def _reported(case: Case) -> set[str]:
    """Return the hashes of all files that acts of reporting wrote."""
    return {digest for line in case.acts() if line.action == "report" for digest in line.hashes().values()}


def overtaken(case: Case) -> set[str]:
    """Return the files of reports after whose act in the log one of what they tell of was written anew, or taken away.

    A picture that was drawn again tells them nothing new.
    """
    old: set[str] = set()
    current: set[str] = set()
    for line in case.acts():
        names = set(line.hashes())
        if line.action == "report":
            current |= names
            old -= names
        elif line.action != "drawn again" and evidence.matching(names, *evidence.INPUTS, *evidence.OTHERS):
            old |= current
            current = set()
    return old


def unlogged(case: Case) -> str:
    """Return what of the case knows of an act that its log, itself whole, does not hold; or nothing.

    A log that was cut off with a head that fits is noticed by what came after: pages and the manifest state how far it had
    come, and every request is an act (in cases of schema 2 on). What this does not do: notice it where these were cut, too.
    """
    asked = {line.facts.get("request") for line in case.acts() if line.action == "asked"}
    if case.schema != 1:
        for path in sorted((case.path / "requests").glob("*.json")):
            if path.stem not in asked:
                return f"requests/{path.name} was asked by no act of the log"
    for path in sorted(case.path.glob("report*.html")):
        with suppress(EvidenceError):  # a page without a stamp is of an older version, and says nothing
            why = _log(case, _stamp(_page(path), path.name))
            if why:
                return f"{path.name}: {why}"
    if audit.FILE in (changed_since(case) or ()):
        return f"{MANIFEST} knows a log that began otherwise or was longer"
    return ""


def _around(line: str, other: str) -> str:
    """Return the part of a line around the first place where it differs from another."""
    at = next(
        (i for i, (one, two) in enumerate(zip(line, other, strict=False)) if one != two), min(len(line), len(other))
    )
    start = max(0, at - LINE // 3)
    return line[start : start + LINE]


def write_manifest(case: Case) -> str:
    """Write the hash of every file of the case into `manifest.json`; return its name."""
    files = {}
    for path in sorted(case.path.rglob("*")):
        name = path.relative_to(case.path).as_posix()
        if path.is_file() and not path.is_symlink() and name not in _GROWING and not _LEFT_OUT.search(name):
            files[name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    growing = {name: so_far(case.path / name) for name in _GROWING}
    write_atomic(case.path / MANIFEST, dump({"case": case.intake.id, "files": files, "grows": growing}))
    return MANIFEST


def changed_since(case: Case) -> list[str] | None:
    """Return the files that are gone or changed since the manifest was written, None without one; new ones do not count."""
    manifest = case.read(MANIFEST, dict)
    if manifest is None:
        return None
    changed = []
    for name, told in _entries(manifest.get("files")):
        path = case.path / name
        inside = case.path.resolve() in path.resolve().parents
        if not inside or not path.is_file() or hash_file(path) != told.get("sha256"):
            changed.append(name)
    for name, told in _entries(manifest.get("grows")):
        if name not in _GROWING or not begins_as(case.path / name, told):
            changed.append(name)
    return changed


def _entries(value: object) -> list[tuple[str, dict[str, Any]]]:
    named = value if isinstance(value, dict) else {}
    return [(str(name), told if isinstance(told, dict) else {}) for name, told in named.items()]
