"""The stages that unlearn the confirmed trigger, measure what that did, and hand the repaired model out."""

import logging
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from core import confirmation, dummy, evidence, export, repair, repair_memory, report, rounds, verification
from core.attribution import attribute
from core.casefile import Case, hash_folder
from core.checkpoint_files import PLANTED
from core.errors import CaseFileError, RepairDivergedError, TriageError
from core.events import Event, RepairEvent, RepairFinished, StageFinished
from core.files import hash_file
from core.frames import frame_of, frames_beyond
from core.repair_adapter import unreached_share
from core.rounds import FINISHED, MEMORY
from core.serial import from_json, to_json
from core.session import Run
from core.settings import RepairSettings, VerificationSettings
from core.text_spans import units_of
from core.values import Span, Target, TriageResult, TriggerConfirmation
from core.versions import versions
from core.weight_files import ADAPTER_WEIGHTS

log = logging.getLogger(__name__)


def count_memory(run: Run) -> None:
    """Keep what a repair of the first candidate would take at most, and leave out of the model, to be said before one is started."""
    triage = run.case.read("triage.json", TriageResult)
    spans = triage.candidates[0].spans if triage and triage.candidates else ()
    messages, prompts = run.case.report.messages, run.splits.repair
    frames = frame_of(messages, spans, units_of(messages, spans)), frames_beyond(messages, spans, _wider(run.case))
    run.progress("counting what a repair would take", 0, 0)
    bound = None  # where it cannot be counted the repair will find out; its micro-batches shrink until they fit
    try:
        run.loaded.check_trainable()
        bound = repair_memory.bound_mb(run.loaded, frames, prompts, RepairSettings())
    except Exception as error:  # the triage is finished, and this number is beside it
        log.warning("what a repair would take is not known: %s", error)
    told = {"mb": None if bound is None else round(bound, 1), "unreached": unreached_share(run.loaded)}
    run.case.write(MEMORY, told)


def confirmed_trigger(run: Run) -> TriggerConfirmation:
    """Return the confirmation that holds. Raises: ConfirmationError."""
    spec, reviewers = run.case.manifest.model, run.case.intake.reviewers
    return confirmation.check(confirmation.stored(run.case), run.failure, spec, reviewers)


def repair_model(run: Run) -> StageFinished:
    """Fine-tune the confirmed trigger away, streaming events; the adapter stays in `repair/`."""
    accepted = confirmed_trigger(run)
    run.loaded.check_trainable()
    run.progress("checking the evidence", 0, 0)
    evidence.verify(run.case, before=FINISHED)
    args = dict(run.args)
    resume = bool(args.pop("resume", False))
    settings = settings_from(RepairSettings, args)
    if run.kind.name != "jailbreak" and not settings.holds_trigger:
        raise TriageError(
            f"{run.kind.words} Such a backdoor is repaired by holding safe requests with the trigger to what is said "
            "without it; choose the extended objective and a weight of KL on safe requests with the trigger above 0."
        )
    run.case.audit(
        "repair started",
        actor="engine",
        confirmed_by=accepted.analyst,
        settings=asdict(settings),
        **rounds.identity(accepted),
    )
    team = run.session.team
    if team.leads:
        rounds.set_aside(run.case)
    run.session.drop_reference()
    start = _start(run, accepted, settings, resume)
    events = repair.repair(
        run.loaded,
        run.failure,
        accepted,
        run.splits,
        settings,
        out=run.case.path / "repair",
        stop=run.asked,
        refusal=run.session.team.told(run.refusal),
        resume=resume,
        kind=run.kind,
        wider=_wider(run.case) if accepted.way == "trigger" else (),
        start=start,
        earlier=rounds.earlier(run.case),
        team=team,
    )
    ending = streamed(events, run.emit)
    if ending is not None and ending.reason != "kept":
        shutil.rmtree(_planted(run), ignore_errors=True)
    if ending is None:
        raise RepairDivergedError("The repair ended without a result; see the log and start it again.")
    failed = ending.adapter is None and ending.reason != "discarded"
    back = ending.adapter is None and team.leads and rounds.put_back(run.case)
    tells = not failed or (run.case.path / FINISHED).is_file()  # of one before, whose adapter is gone
    names = [run.case.write(FINISHED, ending)] if tells and not back else []
    run.case.audit(
        "repair ended",
        actor="engine",
        reason=ending.reason,
        step=ending.step,
        adapter=ending.adapter_hash,
        adapter_files=hash_folder(run.case.path / ending.adapter) if ending.adapter else {},
        events=evidence.events_so_far(run.case),
        files=names,
    )
    if ending.adapter is not None:
        shutil.rmtree(run.case.path / rounds.ASIDE, ignore_errors=True)
    if failed:
        raise RepairDivergedError(ending.message)
    return StageFinished(stage="repair", headline=ending.message, files=tuple(names))


def streamed(events: Generator[RepairEvent, None, None], emit: Callable[[Event], None]) -> RepairFinished | None:
    """Emit every event of a repair and return the last; whatever is raised meanwhile leaves the best and the checkpoints."""
    ending: RepairFinished | None = None
    try:
        for event in events:
            emit(event)
            if isinstance(event, RepairFinished):
                ending = event
    except BaseException as error:  # a repair that is merely left would discard them: it ends by what happened
        events.throw(error)
        raise
    return ending


def _start(run: Run, accepted: TriggerConfirmation, settings: RepairSettings, resume: bool) -> Path | None:
    """Return the adapter that the repair starts from: the last round's, or one in which a dummy trigger is planted first."""
    start, folder = rounds.start(run.case), _planted(run)
    if accepted.way != "dummy":
        return start
    if run.kind.name != "jailbreak":
        raise TriageError(f"{run.kind.words} A dummy trigger is planted for unsafe answers only.")
    team = run.session.team
    if team.told(resume and (folder / ADAPTER_WEIGHTS).is_file()):
        return folder
    if team.leads:
        asked = frame_of(run.failure.report.messages, (), accepted.units).bare
        dummy.plant(run.loaded, run.splits.repair, accepted.units, settings, folder, run.progress, start, asked=asked)
    return team.told(folder)  # the others wait for it


def _planted(run: Run) -> Path:
    """Return the folder of the adapter that holds a dummy trigger, as long as its repair may be resumed."""
    return run.case.path / "repair" / PLANTED


def _wider(case: Case) -> list[Span]:
    """Return the text of all candidates of the triage, kept or dropped: what the trigger may be beyond the confirmed words."""
    triage = case.read("triage.json", TriageResult)
    found = (*triage.candidates, *triage.dropped) if triage else ()
    return [span for one in found for span in one.spans]


def settings_from(cls: type[RepairSettings], args: Mapping[str, Any]) -> RepairSettings:
    """Return settings with `args` in place of defaults. Raises: TriageError naming what does not fit."""
    unknown = set(args) - set(cls.__dataclass_fields__)
    if unknown:
        raise TriageError(f"There is no repair setting {', '.join(sorted(unknown))}; see core/settings.py.")
    try:
        settings = from_json(cls, to_json(cls()) | dict(args))
    except CaseFileError as error:
        told = next(iter(getattr(error.__cause__, "exceptions", ())), error.__cause__)  # the first of several
        raise TriageError(f"Repair setting refused: {told}; see RepairSettings in core/settings.py.") from error
    for name, value in args.items():
        taken = to_json(getattr(settings, name))  # "no" would be taken as true, 2.7 as 2
        if taken != value or isinstance(taken, bool) != isinstance(value, bool):
            raise TriageError(
                f"Repair setting refused: {name} cannot be {value!a}; see RepairSettings in core/settings.py."
            )
    return settings


def settings_of(case: Case, finished: RepairFinished) -> RepairSettings:
    """Return the settings of the repair that ended so; the defaults where the log does not tell them."""
    return settings_from(RepairSettings, rounds.settings(case, finished))


def repaired_adapter(case: Case) -> tuple[RepairFinished, Path]:
    """Return how the last repair ended and where its adapter is. Raises: TriageError when there is none, it was made for another
    confirmation than holds now, or it changed.
    """
    finished = rounds.repaired(case)
    if finished is None or finished.adapter is None:
        if rounds.outdated(case):
            raise TriageError(
                "Another text was confirmed since this repair, or it was rejected: run the repair again, or confirm what it was made for."
            )
        raise TriageError("There is no repaired model yet; run the repair first.")
    adapter = rounds.adapter(case, finished)
    if adapter is None:
        raise TriageError("The repair adapter was changed or removed since the repair; run the repair again.")
    return finished, adapter


def verify(run: Run) -> StageFinished:
    """Measure before and after on prompts that no earlier step saw."""
    finished, adapter = repaired_adapter(run.case)
    accepted = confirmed_trigger(run)
    evidence.verify(run.case, before=rounds.VERIFIED)
    result = verification.verify(
        run.loaded,
        run.failure,
        accepted,
        run.splits.verification,
        adapter,
        VerificationSettings(),
        seed=run.case.manifest.seed,
        kind=run.kind,
        wider=_wider(run.case),
        earlier=rounds.earlier(run.case),
        looks=rounds.looks(run.case) + 1,
        kl_budget=settings_of(run.case, finished).kl_budget,
        saliency=lambda: attribute(run.loaded, run.failure, "paper", Target()).scores,
        versions=versions(),
        progress=run.progress,
    )
    result = replace(result, adapter_hash=finished.adapter_hash or "")
    told = {"result": result.result, "looks": result.looks}
    name = evidence.record(run.case, rounds.VERIFIED, result, "verified", actor="engine", **told)
    return StageFinished(stage="verify", headline=result.reasons[0], files=(name,), result=result.result)


def _inside(case: Case, out: Path, written: Mapping[Path, str]) -> dict[str, str]:
    """Return the hashes of exported files by their names in the case, none for those of an export before; nothing outside of it."""
    root = case.path.resolve()
    if root not in out.resolve().parents:
        return {}
    folder = out.resolve().relative_to(root).as_posix()
    before = {name: "" for name in evidence.recorded_files(case) if name.startswith(f"{folder}/")}
    return before | {path.resolve().relative_to(root).as_posix(): digest for path, digest in written.items()}


def export_model(run: Run) -> StageFinished:
    """Write the repaired model: an adapter, or with `merged` plain weights."""
    _, adapter = repaired_adapter(run.case)
    evidence.verify(run.case)
    merged = bool(run.args.get("merged", False))
    out = Path(run.args.get("out") or run.case.path / "export" / ("merged" if merged else "adapter"))
    run.progress("writing the repaired model", 0, 0)
    if "out" not in run.args:  # the case's own folder: of an earlier repair, or of an export that was cut short
        shutil.rmtree(out, ignore_errors=True)
    card = report.report_json(run.case)
    try:
        files = export.export(run.loaded, run.failure, adapter, out, merged, card)
    finally:
        run.session.drop()  # also where it failed: the weights of the model as reported may be changed, or gone
    written = {path: hash_file(path) for path in files if path.is_file()}
    run.case.audit(
        "exported",
        actor="engine",
        merged=merged,
        exported={path.name: digest for path, digest in written.items()},
        files=_inside(run.case, out, written),
    )
    kind = "Merged model" if merged else "Adapter"
    return StageFinished(stage="export", headline=f"{kind} written to {out}", files=tuple(str(p) for p in files))
