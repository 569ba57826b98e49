"""Rounds of repair: what a second opinion found is confirmed and repaired in its turn, and each round keeps its files.

The current round lies where the only one of most cases does: `triage.json`, `confirmation.json`, `repair/`,
`verification.json`, `again.json`. When the next is opened, the files of the one that ends go to `repair/round-N/`, and the
second opinion's triage becomes the triage of the new round; nothing is confirmed in it yet. A process that is killed meanwhile
leaves a round that is whole, or one that is finished before anybody writes the case again (`finish`).

A repair that is begun where one has left an adapter puts that aside (`set_aside`) until it leaves one of its own; aborted or
failed, it gives it back (`put_back`), and while it runs, or after it broke off, the one aside still counts (`adapter`).

Every round trains one and the same adapter further, on top of the model as reported, which stays the teacher and the "before"
of every comparison: rounds share one KL budget and cannot drift away step by step. Imports no torch.
"""

import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from core import confirmation, evidence
from core.casefile import Case, as_stored, hash_folder
from core.checkpoint_files import PLANTED, clear
from core.errors import EvidenceError, TriageError
from core.events import Line, RepairFinished
from core.files import hash_file, patiently
from core.intervals import difference_high
from core.repair_trace import RepairTrace, trace
from core.serial import to_json
from core.values import Metric, Rate, Result, SecondOpinion, TriageResult, TriggerConfirmation, Verdict, Verification
from core.verdict import OF_A_CANDIDATE
from core.weight_files import ADAPTER_WEIGHTS

AGAIN = "again.json"
FINISHED = "repair/finished.json"
VERIFIED = "verification.json"
BEST = "repair/best"
ASIDE = "repair/before"
FILES = ("triage.json", confirmation.FILE, VERIFIED, FINISHED, AGAIN)
"""Files of a round, in the case folder."""
_lock = threading.Lock()
"""Two tabs of one analyst may ask for the same round at once; other processes are kept away by the case's lease."""
MEMORY = "results/repair_memory.json"
"""`{"mb": ..., "unreached": ...}`: what a repair with the default settings takes at most, null where that could not be counted; the
share of the model that its adapter does not reach."""


def folders(case: Case) -> list[Path]:
    """Return the folders of the rounds that have ended, first round first; one of another name is none of ours."""
    found = [path for path in (case.path / "repair").glob("round-*") if re.fullmatch("round-[1-9][0-9]*", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name.removeprefix("round-")))


def _ended_with(case: Case, folder: Path) -> RepairFinished | None:
    """Return how the repair of a round that has ended did."""
    return case.read(f"repair/{folder.name}/finished.json", RepairFinished)


def number(case: Case) -> int:
    """Return the number of the current round, from 1."""
    return len(folders(case)) + 1


def earlier(case: Case) -> list[TriggerConfirmation]:
    """Return the confirmations of the rounds that have ended."""
    names = [f"repair/{folder.name}/{confirmation.FILE}" for folder in folders(case)]
    return [one for one in (case.read(name, TriggerConfirmation) for name in names) if one is not None]


@dataclass(frozen=True, kw_only=True)
class EndedRound:
    """A round whose files were put away: what was confirmed in it, the settings of its repair, and what verification of that said
    and measured, if it was asked."""

    number: int
    confirmation: TriggerConfirmation
    settings: dict[str, object]
    result: Result | None
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """One half of the second opinion, in short: with the report whole, or without the found text."""

    what: str
    verdict: Verdict | None
    decided_by: str
    failure: Rate | None
    found: str


def ended(case: Case) -> tuple[EndedRound, ...]:
    """Return the rounds that have ended, for a report."""
    found = []
    for at, (folder, confirmed) in enumerate(zip(folders(case), earlier(case), strict=False)):
        verified = case.read(f"repair/{folder.name}/{VERIFIED}", Verification)
        finished = _ended_with(case, folder)
        verified = verified if verified and finished and _measured(verified, finished) else None
        found.append(
            EndedRound(
                number=at + 1,
                confirmation=confirmed,
                settings=settings(case, finished) if finished else {},
                result=verified.result if verified else None,
                metrics=verified.metrics if verified else (),
            )
        )
    return tuple(found)


def settings(case: Case, finished: RepairFinished) -> dict[str, Any]:
    """Return the settings of the repair that left an adapter, from the log; none where it does not tell them."""
    told = _begun(case, finished).get("settings")
    return told if isinstance(told, dict) else {}


def _begun(case: Case, finished: RepairFinished) -> Mapping[str, Any]:
    """Return what the log tells of the start of the repair that left an adapter; others may have begun since and left nothing."""
    begun: Mapping[str, Any] = {}
    made: Mapping[str, Any] = {}
    for line in case.acts():
        if line.action == "repair started":
            begun = line.facts
        elif line.action == "repair ended" and line.facts.get("adapter") == finished.adapter_hash:
            made = begun
    return made


def told(case: Case) -> tuple[Opinion, ...]:
    """Return the second opinion on the adapter as it is now in short, for a report; nothing where there is none."""
    found = opinion(case)
    halves = [("the report", found.whole), ("the report without the confirmed text", found.rest)] if found else []
    return tuple(
        Opinion(
            what=what,
            verdict=one.verdict,
            decided_by=one.decided_by,
            failure=one.reproduction.failure if one.reproduction else None,
            found=one.about.text if one.about and one.verdict in OF_A_CANDIDATE else "",
        )
        for what, one in halves
        if one is not None
    )


def start(case: Case) -> Path | None:
    """Return the adapter that the current round starts from, None in the first.

    Raises: TriageError when it was changed since its round ended.
    """
    ended = folders(case)
    if not ended:
        return None
    finished = _ended_with(case, ended[-1])
    adapter = ended[-1] / "best"
    if finished is None or not as_it_ended(case, finished, adapter):
        raise TriageError(f"The adapter in repair/{ended[-1].name} changed since that round ended; start a new case.")
    return adapter


def adapter(case: Case, finished: RepairFinished) -> Path | None:
    """Return the folder with the adapter of the current round as its repair left it, None where it changed or is gone."""
    return next((one for one in (case.path / BEST, case.path / ASIDE) if as_it_ended(case, finished, one)), None)


def set_aside(case: Case) -> None:
    """Put the adapter of the repair that ended last aside for one that begins or goes on, unless it lies there already."""
    best, aside = case.path / BEST, case.path / ASIDE
    finished = case.read(FINISHED, RepairFinished)
    left = adapter(case, finished) if finished is not None and finished.adapter else None
    if left == aside:
        return
    shutil.rmtree(aside, ignore_errors=True)
    if left is not None:
        draft = aside.with_name(f".{aside.name}")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(best, draft, copy_function=_also_at)
        draft.rename(aside)


def put_back(case: Case) -> bool:
    """Put the adapter that lies aside in place of what a repair left that ended without one; return whether there was one."""
    best, aside = case.path / BEST, case.path / ASIDE
    if not aside.is_dir():
        return False
    shutil.rmtree(best, ignore_errors=True)
    aside.rename(best)
    return True


def under_way(case: Case) -> bool:
    """Return whether the log knows of a repair that began, and not of its end."""
    return _last_act(case) == "repair started"


def _last_act(case: Case) -> str:
    """Return the last act of a repair, "" without any."""
    acts = [line.action for line in case.acts() if line.action in ("repair started", "repair ended")]
    return acts[-1] if acts else ""


def discard(case: Case, step: int) -> None:
    """Leave nothing of a repair that reached `step` and whose process is gone; the adapter before it is given back. One act tells its end.

    An adapter that an earlier repair left stays where it has been given back already.
    """
    folder, weights = case.path / "repair", case.path / BEST / ADAPTER_WEIGHTS
    clear(folder, best=False)
    shutil.rmtree(folder / PLANTED, ignore_errors=True)
    known = {line.facts.get("adapter") for line in case.acts() if line.action == "repair ended"}
    if not put_back(case) and not (weights.is_file() and hash_file(weights) in known):
        shutil.rmtree(case.path / BEST, ignore_errors=True)
    events = evidence.events_so_far(case)
    case.audit(
        "repair ended", actor="engine", reason="discarded", step=step, adapter=None, adapter_files={}, events=events
    )


def as_it_ended(case: Case, finished: RepairFinished, adapter: Path) -> bool:
    """Return whether a folder holds the adapter that a repair left: its weights, and how they are scaled and placed.

    Acts of older versions hold the hash of the weights alone; then those count.
    """
    if not adapter.is_dir():
        return False
    acts = [line.facts for line in case.acts() if line.action == "repair ended"]
    left = [one.get("adapter_files") for one in acts if one.get("adapter") == finished.adapter_hash]
    found = hash_folder(adapter)
    known = bool(left) or case.schema == 1
    whole = not left or not left[-1] or found == left[-1]
    return known and whole and found.get(ADAPTER_WEIGHTS) == finished.adapter_hash


def changed_adapter(case: Case) -> str | None:
    """Return the name of an adapter's folder that is not as its repair left it, None where all are.

    A repair that has begun and not ended writes the current one; until then the one aside counts, which older versions did not keep.
    """
    for folder in folders(case):
        ended = _ended_with(case, folder)
        if ended and ended.adapter and not as_it_ended(case, ended, folder / "best"):
            return f"repair/{folder.name}/best"
    counts = {"repair ended": BEST, "repair started": ASIDE}.get(_last_act(case))
    finished = case.read(FINISHED, RepairFinished)
    if counts is None or (counts == ASIDE and not (case.path / ASIDE).is_dir()):
        return None
    return counts if finished and finished.adapter and adapter(case, finished) is None else None


def of_this_round(case: Case, lines: Sequence[Line], *, ended: bool = False) -> RepairTrace:
    """Return the last repair of the current round, from the events of the case: what came after the round before left its adapter.

    What was begun then and left nothing may still be of that round. Events of older versions tell no round and read as of the first.
    """
    kept = [_ended_with(case, folder) for folder in folders(case)]
    over = {one.adapter_hash for one in kept if one is not None}
    ends = [
        at
        for at, line in enumerate(lines)
        if isinstance(line.event, RepairFinished) and line.event.adapter_hash in over
    ]
    repair = trace(lines[max(ends, default=-1) + 1 :], ended=ended)
    before = repair.started is not None and repair.started.round < number(case) and not (case.path / FINISHED).is_file()
    return RepairTrace() if before else repair


def looks(case: Case) -> int:
    """Return how often the verification split has been looked at, by verification and its probes, over all rounds."""
    names = [VERIFIED, *(f"repair/{folder.name}/{VERIFIED}" for folder in folders(case))]
    return max((one.looks for one in (case.read(name, Verification) for name in names) if one is not None), default=0)


def identity(accepted: TriggerConfirmation) -> dict[str, Any]:
    """Return what makes a confirmation another one to repair for, as the act of a repair's start tells it."""
    names = "way", "spans", "units", "text_hash", "model_hash", "template_hash"
    return {name: to_json(getattr(accepted, name)) for name in names}


def repaired(case: Case) -> RepairFinished | None:
    """Return how the repair ended that left an adapter for the confirmation that holds; None where there is none, or it was made for
    another one. Acts of older versions tell less of it; then that counts, and any repair where no confirmation is stored.
    """
    finished, accepted = case.read(FINISHED, RepairFinished), confirmation.stored(case)
    if finished is None or finished.adapter is None:
        return None
    if accepted is None:
        return finished
    if accepted.decision == "rejected":
        return None
    made = _begun(case, finished)
    same = all(made.get(name, value) == value for name, value in identity(accepted).items())
    return finished if same else None


def outdated(case: Case) -> bool:
    """Return whether the last repair left an adapter for another confirmation than holds now."""
    finished = case.read(FINISHED, RepairFinished)
    return finished is not None and finished.adapter is not None and repaired(case) is None


def verification(case: Case) -> Verification | None:
    """Return what verification measured on the adapter as it is now, None where there is none, only that of an adapter before, or
    where another text was confirmed since.
    """
    found, finished = case.read(VERIFIED, Verification), repaired(case)
    return found if found and finished and _measured(found, finished) else None


def _measured(found: Verification, finished: RepairFinished) -> bool:
    """Return whether a verification measured the adapter that a repair left; those of older versions do not name it."""
    return found.adapter_hash in ("", finished.adapter_hash)


def opinion(case: Case) -> SecondOpinion | None:
    """Return the second opinion on the adapter as it is now, None where there is none or another text was confirmed since."""
    found, finished = case.read(AGAIN, SecondOpinion), repaired(case)
    return found if found and finished and found.adapter_hash == finished.adapter_hash else None


def can_open(case: Case) -> bool:
    """Return whether the second opinion finds something to repair and this round gained something, so that another one may too."""
    return found_again(case) is not None and not nothing_gained(case)


def nothing_gained(case: Case) -> str:
    """Return why another round would be like the current one, "" where it may gain something or has nothing to repair.

    So it is when all that the second opinion finds was confirmed already, in this round or before, and the report does not surely
    fail less often than when this round began. A wider or another text is new, and so is a first dummy trigger; a failure that
    surely became rarer is a gain.
    """
    found = found_again(case)
    return _stalled(case, found, case.read(FILES[0], TriageResult)) if found else ""


def _stalled(case: Case, found: TriageResult, begun: TriageResult | None) -> str:
    """Return why a round that begins with `found` would be like the current one, which began with `begun`; "" where it may gain something."""
    if begun is None or found.reproduction is None or begun.reproduction is None:
        return ""
    before, now = begun.reproduction.failure, found.reproduction.failure
    if not _known(case, found) or difference_high(now, before) < 0:
        return ""
    return (
        f"This round gained nothing: nothing is found that was not confirmed already, and the report does not surely fail less often "
        f"than before it ({now.k} of {now.n}, before {before.k} of {before.n}). Repair again with more steps or a higher learning rate, or "
        "confirm a wider span."
    )


def _known(case: Case, found: TriageResult) -> bool:
    """Return whether what was found was confirmed already, in this round or before: all of its text, or without any a dummy trigger."""
    current = confirmation.stored(case)
    confirmed = (*earlier(case), *([current] if current else []))
    if found.verdict != "BACKDOOR":
        return any(one.way == "dummy" for one in confirmed)
    known = [span for one in confirmed for span in one.spans]
    return all(any(span.within(other) for other in known) for span in found.candidates[found.candidate].spans)


def found_again(case: Case) -> TriageResult | None:
    """Return what another round would begin with, None where the second opinion finds nothing to repair."""
    found = opinion(case)
    return _next(case, found, case.read(FILES[0], TriageResult)) if found else None


def _next(case: Case, found: SecondOpinion, begun: TriageResult | None) -> TriageResult | None:
    """Return the half of a second opinion that says BACKDOOR and names text: of the report, or of what is left of it without the
    text that was confirmed, where a second trigger works by itself. Both may; then the latter, where only it is of any gain. Without
    one, that of a report which still fails and names no text, so that a dummy trigger may be planted."""
    halves = (found.whole, found.rest if found.placed else None)
    said = [one for one in halves if one and one.verdict == "BACKDOOR" and one.candidates]
    if said[1:] and _stalled(case, said[0], begun) and not _known(case, said[1]):
        return said[1]
    untold = confirmation.takes_dummy(found.whole) and found.whole.decided_by != "reproduction"
    return next(iter(said), found.whole if untold else None)


def open_next(case: Case, actor: str) -> int:
    """Put the files of the current round away, take the second opinion's findings, and return the new round's number.

    They are put in place first, and removed when all are there. Raises: TriageError when the second opinion finds nothing to repair, or
    this round gained nothing; EvidenceError when a file of the round is not what was written; OSError, with nothing changed, when they cannot be put there.
    """
    with _lock:
        evidence.unchanged(case, *FILES)
        found = found_again(case)
        if found is None:
            raise TriageError(
                "Another round needs a second opinion that finds a backdoor in the repaired model, or that it still fails for no text "
                "found; run `triage --repaired` first."
            )
        if stalled := nothing_gained(case):
            raise TriageError(stalled)
        _put_away(case, found, actor)
    finish(case, actor)
    return number(case)


def finish(case: Case, actor: str) -> None:
    """Finish an opening that was cut short by a kill, so that nobody acts on half of one; does nothing where there is none.

    Raises: EvidenceError when a file that was put away is not what was written.
    """
    with _lock:
        if not _cut_short(case):
            return
        folder = folders(case)[-1]
        kept = [f"repair/{folder.name}/{path.name}" for path in sorted(folder.glob("*.json"))]
        evidence.unchanged(case, *kept)
        found = case.read(f"repair/{folder.name}/{AGAIN}", SecondOpinion)
        begun = case.read(f"repair/{folder.name}/{FILES[0]}", TriageResult)  # the current one may be the next round's
        begins_with = _next(case, found, begun) if found else None
        assert begins_with is not None
        case.write(FILES[0], begins_with)
        for name in FILES[1:]:
            patiently(partial((case.path / name).unlink, missing_ok=True))
        for rest in (case.path / BEST, case.path / ASIDE, *(case.path / "repair").glob("checkpoint-*")):
            shutil.rmtree(rest, ignore_errors=True)  # the round has ended: there is nothing to go on from
        written = {name: hash_file(case.path / name) for name in (*kept, FILES[0])}
        case.audit("round opened", actor=actor, round=number(case), files=written | dict.fromkeys(FILES[1:], ""))


def _put_away(case: Case, found: TriageResult, actor: str) -> None:
    """Put the files of the current round in `repair/round-N` too, all or none, after an act of what will be there and what will not.

    `found` is the triage that the next round begins with.
    """
    folder = case.path / "repair" / f"round-{number(case)}"
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    there = [name for name in FILES if (case.path / name).is_file()]
    finished = case.read(FINISHED, RepairFinished)
    left = adapter(case, finished) if finished else None
    if left is None:
        raise EvidenceError(f"{BEST} does not hold the adapter that its repair left; repair again.")
    planned = False
    try:
        shutil.copytree(left, draft / "best", copy_function=_also_at)
        for name in there:
            _also_at(case.path / name, draft / Path(name).name)
        coming = {f"repair/{folder.name}/{path.name}": hash_file(path) for path in sorted(draft.glob("*.json"))}
        coming |= {FILES[0]: sha256(as_stored(found)).hexdigest()} | dict.fromkeys(FILES[1:], "")
        case.audit("writing", actor=actor, coming=coming)
        planned = True
        draft.rename(folder)
    except Exception:
        shutil.rmtree(draft, ignore_errors=True)
        if planned:  # or what was to go could go unnoticed
            case.audit("round not opened", actor=actor, files=there)
        raise


def _also_at(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, at once and without room on the disk; a copy where the file system has no such names.

    Files of a case are replaced, never written into, so that neither name changes the other's content.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _cut_short(case: Case) -> bool:
    """Return whether the last round's files were put away and no act says yet that the next was opened."""
    kept = folders(case)
    if not kept:
        return False
    name = f"repair/{kept[-1].name}/{AGAIN}"
    told = [line for line in case.acts() if name in line.hashes() or name in line.hashes("coming")]
    return bool(told) and name not in told[-1].hashes()
