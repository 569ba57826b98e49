"""The commands about a case that is there: decide, repair, verify, report, export, contain, see and stop what runs."""

import argparse
import json
import sys
import time
from pathlib import Path

from core import confirmation, containment, jobs, lease, rounds, scanning
from core.casefile import Case
from core.errors import CaseFileError, ConfirmationError, TriageError
from core.events import RepairFinished
from core.headless import Headless, Terminal, typist
from core.serial import from_json, to_json
from core.settings import PAPER, ReportSettings
from core.values import Span, Verification

STOP_MARGIN_SECONDS = 5.0
"""How long `stop` waits beyond the grace time (`jobs.grace_seconds`). Source: unverified choice."""


def confirm(options: argparse.Namespace, terminal: Terminal) -> object:
    """Accept, edit or reject the proposal, or agree with a confirmation as the second analyst."""
    case = Case(options.case)
    spans = _given_spans(options.spans)
    if options.next_round:
        _check_next(case, options, spans)
        if jobs.status(case).state in jobs.AT_WORK:
            raise TriageError("Something still runs on this case; wait for it or stop it, then open the next round.")
        rounds.open_next(case, options.analyst)
    if options.second:
        return to_json(confirmation.agree(case, analyst=options.analyst, reason=options.reason))
    decision = next((name for name in ("accept", "reject", "dummy") if getattr(options, name)), "edit")
    return to_json(
        confirmation.confirm(
            case,
            decision=decision,
            analyst=options.analyst,
            reason=options.reason,
            spans=spans,
            candidate=options.candidate,
        )
    )


def _given_spans(given: str | None) -> list[Span]:
    """Return the spans of --spans, none where it was not given. Raises: ConfirmationError when it is no such JSON."""
    if given is None:
        return []
    try:
        text = Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
        return [from_json(Span, dict(item)) for item in json.loads(text)]
    except (ValueError, TypeError, RecursionError, CaseFileError) as error:
        raise ConfirmationError('--spans is not JSON like [{"message": 0, "start": 3, "end": 9}].') from error


def _check_next(case: Case, options: argparse.Namespace, spans: list[Span]) -> None:
    """Raise ConfirmationError for a decision that the next round would refuse, while the current one still stands."""
    found = rounds.found_again(case)
    if options.second or (options.dummy and not confirmation.takes_dummy(found)):
        raise ConfirmationError("--next-round begins with a text that was found; give --accept, --spans or --reject.")
    confirmation.check_typed(options.analyst, options.reason)
    if options.spans is not None:
        confirmation.marked_spans(case.report.messages, spans)
    n = len(found.candidates) if found else 0
    if options.accept and found and not 0 <= options.candidate < n:
        raise ConfirmationError(f"The next round has no candidate {options.candidate} to accept (there are {n}).")


def _device(options: argparse.Namespace, case: Case) -> str:
    """Return the device that was given, or else the case's."""
    return str(options.device or case.manifest.device)


def repair(options: argparse.Namespace, terminal: Terminal) -> object:
    """Repair the model of a confirmed case; under torchrun by several processes together."""
    from core import team as teams

    case = Case(options.case)
    given = {
        "max_steps": options.steps,
        "learning_rate": options.lr,
        "kl_budget": options.kl_budget,
        "epochs": options.epochs,
        "objective": options.objective,
        "seed": options.seed,
        "resume": options.resume or None,
    }
    last = jobs.repair_to_resume(case) if options.resume else None
    args = dict(last.args) if last else {}  # its checkpoint fits no other settings
    args |= (
        (PAPER if options.paper else {})
        | dict(map(_setting, options.set))
        | {name: value for name, value in given.items() if value is not None}
    )
    device = _device(options, case)
    with teams.start(device, sharded=options.sharded) as team:
        Headless(teams.device_of(device), terminal, team).run(case, "repair", args)
        if not team.leads:
            sys.exit(0)
    told = [line.event for line in case.current_events() if isinstance(line.event, RepairFinished)]
    return to_json(told[-1])  # the file may tell of the repair before


def _setting(text: str) -> tuple[str, object]:
    """Return name and value of NAME=VALUE; the value is JSON, or a plain word. Raises: TriageError."""
    name, sign, value = text.partition("=")
    if not sign:
        raise TriageError(f"--set {text!a} is not NAME=VALUE, such as micro_batch_size=2.")
    if name == "resume":
        raise TriageError("Use --resume to go on from a checkpoint; --set is for settings.")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def verify(options: argparse.Namespace, terminal: Terminal) -> object:
    """Measure before and after; with --probe, how much of it a wrong trigger earns and how soon it is learnt again."""
    case = Case(options.case)
    headless = Headless(_device(options, case), terminal)
    for stage in ("verify", *(options.probe or ())):
        headless.run(case, stage)
    return to_json(case.read("verification.json", Verification))


def report(options: argparse.Namespace, terminal: Terminal) -> object:
    """Write the case report."""
    case = Case(options.case)
    args = {"tlp": ReportSettings.marked(options.tlp).tlp} if options.tlp else {}
    finished = Headless(_device(options, case), terminal).run(
        case, "report", args | ({"redact": True} if options.redact else {})
    )
    return {"files": [str(case.path / name) for name in finished.files]}


def export(options: argparse.Namespace, terminal: Terminal) -> object:
    """Write the repaired model."""
    case = Case(options.case)
    args = {"merged": options.merged, "out": str(options.out.resolve())}
    finished = Headless(_device(options, case), terminal).run(case, "export", args)
    return {"out": str(options.out), "files": list(finished.files)}


def rules(options: argparse.Namespace, terminal: Terminal) -> object:
    """Write rules that find the confirmed trigger in logs: CASE/containment.json."""
    made = containment.write_rules(Case(options.case))
    if made.missed:
        terminal.say(f"No rule matches these variants: {', '.join(made.missed)}.")
    return {"file": str(options.case / containment.FILE), **to_json(made)}


def scan(options: argparse.Namespace, terminal: Terminal) -> object:
    """Look for the confirmed trigger in a log of requests or in tuning data."""
    source: scanning.Source = "logs" if options.logs else "corpus"
    found = scanning.scan(Case(options.case), options.logs or options.corpus, source, terminal.progress)
    terminal.say(found.headline)
    return to_json(found)


def status(options: argparse.Namespace, terminal: Terminal) -> object:
    """Tell what happens in a case now."""
    case = Case(options.case)
    files = ("triage.json", "confirmation.json", "repair/finished.json", "verification.json", "report.html")
    stored = confirmation.stored(case)
    return {
        **to_json(jobs.status(case)),
        "files": [name for name in files if (case.path / name).is_file()],
        "writes": to_json(lease.current(case)),
        "confirmation": {"decision": stored.decision, "void": confirmation.validity(case)} if stored else None,
    }


def stop(options: argparse.Namespace, terminal: Terminal) -> object:
    """Stop what runs; wait for it, and kill it when it does not react. Raises: TriageError when it runs on all the same."""
    case = Case(options.case)
    current = jobs.status(case)
    if current.state not in jobs.AT_WORK or current.request is None:
        raise TriageError("Nothing runs in this case; there is nothing to stop.")
    jobs.stop(case, current.request, "discard" if options.discard else "keep", typist())
    patience = jobs.grace_seconds(case, current.request) + STOP_MARGIN_SECONDS
    deadline = time.monotonic() + patience
    killed = False
    while not killed and (after := jobs.status(case)).request == current.request and after.state in jobs.AT_WORK:
        if time.monotonic() > deadline:
            raise TriageError(
                f"What runs ({jobs.doing_now(current.stage)}) was asked to stop and has not ended within "
                f"{patience:.0f} s; wait for it, or end its process where it was started."
            )
        killed = jobs.enforce_stop(case)
        time.sleep(0.2)
    return {"stopped": current.stage, "killed": killed}
