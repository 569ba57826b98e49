"""Evidence compared with what was hashed when it came in, before anything is built on it.

1. The log's chain must hold, and `case.json` must be the file that the log knows.
2. The report file and the prompts in the case; model, adapter, reference and judge folders outside it: every file that
   was hashed at intake is there with the same bytes, and none was added.
3. What a stage builds on (triage, confirmation, the end of the repair, earlier rounds) must be what its last act in the log
   wrote, and the events must begin as when an act last took their hash; a file that no act wrote was put there by hand.
   What a step writes anew it need not find whole: that is how it is made good.
   A step that changes a file in part checks it first. Where a file was there before, an act of its own says what will be
   written (`record`), so that a writer that is killed in between leaves no file that no act knows.
The first difference stops with the name of the file. Nothing here ever writes to evidence. Acts of cases of schema 1 may not
name what they wrote; there a file without an act is taken as it is.

A case copied to another machine opens there; its model may lie elsewhere: `relocate` takes a folder whose hashes match.
What this does not do: prove when, or by whom, evidence was collected.
"""

import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from core import audit
from core.casefile import PLACES, RELOCATED, Case, Manifest, as_stored, hash_folder, moved_manifest
from core.errors import CaseFileError, EvidenceError, ModelLoadError
from core.event_log import NAME as EVENTS
from core.files import begins_as, hash_file, so_far

INPUTS = (
    "case.json",
    "triage.json",
    "confirmation.json",
    "repair/finished.json",
    "verification.json",
    "again.json",
    "labels.json",
    "containment.json",
)
"""Files of the case that later stages build on, in the order in which they do."""
RESULTS = "results/"
"""Where most of the others lie: what a person and the report read."""
ROUNDS = "repair/round-*/*.json"
"""Files of rounds of repair that have ended; every later round builds on them."""
OTHERS = (f"{RESULTS}*.json", "scan-*.json", ROUNDS)
"""What a report tells of beside `INPUTS`."""
NO_EVIDENCE = ("results/links.json", "results/repair_memory.json")
"""Of these what no act writes: other cases as each report finds them anew, and an estimate."""
EXPORTS = "export/"
"""Where the page writes the repaired model; nothing builds on it."""
ARRAYS = "attribution.npz"
"""What the results of attribution were drawn from; `core/locate_stage.py` says what is in it."""


def verify(case: Case, *, before: str | None = None) -> None:
    """Raise EvidenceError, naming the file, when evidence differs from intake or an input from its last act.

    With `before` only the inputs that come before that one, which is about to be written anew.
    """
    unchanged(case, *INPUTS[: None if before is None else INPUTS.index(before)], *_present(case, ROUNDS))
    verify_events(case)
    for name, digest in case.intake.evidence.items():
        _same(case.path / name, digest, f"{name} of the case")
    case.splits()
    verify_folders(case, *PLACES)


def unchanged(case: Case, *names: str) -> None:
    """Raise EvidenceError, naming the file, when the log is broken or a file of the case is not what its last act wrote."""
    log = audit.check(case.path, chained=case.schema != 1)
    if log.broken is not None:
        raise EvidenceError(f"Line {log.broken} of {audit.FILE} is broken: {log.why}.")
    written = _written(case)
    for name in names:
        if _fits(case, name, *written):
            continue
        written = _written(case)  # a writer may have been at work meanwhile
        if _fits(case, name, *written):
            continue
        if name in written[0]:
            _differs(case.path / name, f"{name} of the case")
        elif case.schema != 1 and (case.path / name).exists():
            raise EvidenceError(
                f"{name} of the case was written by no act of the log; remove it and run its step, or start a new case."
            )
    if case.schema != 1 and written[0].get("case.json", case.read_as) != case.read_as:
        raise EvidenceError("case.json of the case is not what was read at first; open the case again.")


def places(manifest: Manifest) -> dict[str, str]:
    """Return the folders outside the case that it rests on, by place."""
    return {place: folder for place, (folder, _) in folders(manifest).items()}


def folders(manifest: Manifest) -> dict[str, tuple[str, Mapping[str, str]]]:
    """Return folder and hashes of everything outside the case that it rests on, by place."""
    model, reference = manifest.model, manifest.reference
    found: dict[str, tuple[str, Mapping[str, str]]] = {"model": (model.path, model.files)}
    if model.adapter is not None:
        found["adapter"] = (model.adapter, model.adapter_files)
    if reference is not None:
        found["reference"] = (reference.path, reference.files)
    if manifest.judge is not None:
        found["judge"] = (manifest.judge, manifest.judge_files)
    return found


def verify_folders(case: Case, *places: str) -> None:
    """Raise EvidenceError, naming the file, when one of these folders of the case does not hold what was hashed at intake."""
    for place, (folder, hashes) in folders(case.manifest).items():
        if place in places:
            verify_folder(place, folder, hashes, case)


def verify_folder(place: str, folder: str, hashes: Mapping[str, str], case: Case) -> None:
    """Raise EvidenceError, naming the file, when a folder does not hold exactly what was hashed at intake."""
    if not Path(folder).is_dir():
        raise EvidenceError(
            f"The {place} of this case is not at {folder}. If the case was copied, say where it is: "
            f"python -m core relocate --case {case.path.name} --{place} DIR (taken when its hashes match)."
        )
    found = hash_folder(Path(folder))
    for name in sorted({*hashes, *found}):
        if found.get(name) != hashes.get(name):
            what = "is gone" if name not in found else "was added" if name not in hashes else "changed"
            raise EvidenceError(f"{name} of the {place} {what} after intake; restore {folder} or start a new case.")


def recorded_files(case: Case) -> dict[str, str]:
    """Return the hash that the latest act in the log gives for each file of the case it names."""
    return _written(case)[0]


def _written(case: Case) -> tuple[dict[str, str], dict[str, str]]:
    """Return the hash of each file as its latest act wrote it, and of each that was about to be written, or removed (none), when its
    writer ended."""
    recorded: dict[str, str] = {}
    coming: dict[str, str] = {}
    for line in case.acts():
        written = line.hashes()
        recorded |= written
        coming = {name: digest for name, digest in coming.items() if name not in written} | line.hashes("coming")
    return {name: digest for name, digest in recorded.items() if digest}, coming  # none: the act moved the file away


def results(case: Case) -> list[str]:
    """Return the names of the results beside `INPUTS`: those that acts of the log wrote, and those that lie where these do."""
    return sorted(matching(recorded_files(case), *OTHERS, ARRAYS) | set(_present(case, *OTHERS)))


def matching(names: Iterable[str], *patterns: str) -> set[str]:
    """Return the names that match, but for those that are no evidence."""
    return {name for name in names if any(fnmatch(name, one) for one in patterns)}.difference(NO_EVIDENCE)


def _present(case: Case, *patterns: str) -> list[str]:
    """Return the names of the case's files that match, but for those that are no evidence."""
    paths = [path for pattern in patterns for path in case.path.glob(pattern) if not path.name.startswith(".")]
    return sorted({path.relative_to(case.path).as_posix() for path in paths}.difference(NO_EVIDENCE))


def events_so_far(case: Case) -> dict[str, object]:
    """Return how many bytes of events there are and their SHA-256, for an act."""
    path = case.path / EVENTS
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could take what the act, which is on the disk, knows of
    return so_far(path)


def verify_events(case: Case) -> None:
    """Raise EvidenceError when the events do not begin as they did when an act last took their hash."""
    told: Any = None
    for line in case.acts():
        told = line.facts.get("events", told)
    if told is not None and not begins_as(case.path / EVENTS, told):
        raise EvidenceError(f"{EVENTS} of the case changed since it was recorded; restore it or start a new case.")


def as_written(case: Case, *names: str) -> list[str]:
    """Return those files of the case that are what their latest acts wrote; never one that no act wrote."""
    written = _written(case)
    return [name for name in names if (case.path / name).exists() and _fits(case, name, *written)]


def is_as_written(case: Case, name: str) -> bool:
    """Return whether a file of the case is what its latest act wrote; never for one that no act wrote."""
    return as_written(case, name) == [name]


def _fits(case: Case, name: str, recorded: Mapping[str, str], coming: Mapping[str, str]) -> bool:
    """Return whether a file is there with the hash that was written, or was to be; or is gone as it was to be."""
    return (_digest(case.path / name) or "") in (recorded.get(name), coming.get(name))


def record(
    case: Case,
    name: str,
    value: object,
    action: str,
    also: Mapping[str, bytes] | None = None,
    /,
    *,
    actor: str,
    **facts: Any,
) -> str:
    """Store `value` under `name`, and what `also` names, as one act; return `name`.

    Before it, the act of what comes in place of files that are there.
    """
    files = {name: as_stored(value)} | dict(also or {})
    coming = {one: sha256(data).hexdigest() for one, data in files.items() if (case.path / one).exists()}
    if coming:
        case.audit("writing", actor=actor, coming=coming)
    for one, data in files.items():
        case.write(one, data)
    case.audit(action, actor=actor, **facts, files=list(files))
    return name


def changed_files(case: Case) -> list[str]:
    """Return the files of the case that are gone or differ from what their latest act wrote."""
    changed, written = [], _written(case)
    for name in written[0]:
        inside = case.path.resolve() in (case.path / name).resolve().parents
        if name.startswith(EXPORTS) and not (case.path / name).exists():
            continue  # a copy, which may be moved away
        if not inside or not (_fits(case, name, *written) or _fits(case, name, *_written(case))):
            changed.append(name)
    return sorted(changed)


def relocate(case: Case, places: Mapping[str, Path], actor: str) -> Manifest:
    """Note where folders of the evidence lie on this machine; return the manifest with them. Hashes must match.

    Raises: EvidenceError naming the first file that differs; CaseFileError for a place that the case does not have.
    """
    known = folders(case.intake)
    for place, folder in places.items():
        if place not in known:
            raise CaseFileError(f"This case has no {place}; it has {', '.join(known)}.")
        try:
            verify_folder(place, str(folder), known[place][1], case)
        except ModelLoadError as error:
            raise EvidenceError(str(error)) from error
    moved = {name: str(folder.resolve()) for name, folder in places.items()}
    stored = case.read(RELOCATED, dict) or {}
    kept = {name: str(stored[name]) for name in PLACES if name in stored} | moved
    case.write(RELOCATED, kept)
    case.audit("relocated", actor=actor, places=moved)
    return moved_manifest(case.intake, kept)


def _digest(path: Path) -> str | None:
    return hash_file(path) if path.is_file() else None


def _same(path: Path, digest: str, what: str) -> None:
    if _digest(path) != digest:
        _differs(path, what)


def _differs(path: Path, what: str) -> NoReturn:
    state = "changed" if path.is_file() else "is gone"
    raise EvidenceError(f"{what} {state} since it was recorded; restore it, or run its step again.")
