"""The command line: every stage of the page, headless, with the same functions.

Progress goes to stderr, one JSON object to stdout. Exit 0; 2 for a fault of the user or the input, with one line that
says what is wrong and what to do; 1 for a fault of ours.
"""

import argparse
import getpass
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from core import confirmation, containment, evidence, evidence_commands, intake, jobs, lease, rounds, scanning
from core.casefile import (
    PLACES,
    Case,
    Manifest,
    Source,
    dump,
    from_json,
    hash_file,
    hash_folder,
    model_spec,
    now,
    to_json,
)
from core.errors import CaseFileError, ConfirmationError, EvidenceError, TriageError
from core.headless import Headless, Terminal
from core.offline import forbid_other_hosts
from core.settings import ReportSettings
from core.values import FailureReport, Span, TriageResult, Verification

ASSETS = Path(__file__).resolve().parent.parent / "assets"
PROMPTS = ASSETS / "prompts"
DEMO = ASSETS / "demo"
STOP_WAIT_SECONDS = 20.0
READING = ("audit", "status", "stop")
"""Commands about a case that need not hold its lease."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers and peft are imported, which stages do later
log = logging.getLogger(__name__)


def make_case(options: argparse.Namespace, report: FailureReport, path: Path, source: Source | None = None) -> Case:
    """Create or reopen the case of one report, which came in `source`."""
    manifest = Manifest(
        id=report.id or path.name,
        created=now(),
        model=model_spec(options.model, options.adapter),
        reference=model_spec(options.reference) if options.reference else None,
        judge=str(options.judge.resolve()) if options.judge else None,
        judge_files=hash_folder(options.judge) if options.judge else {},
        report=report,
        seed=options.seed,
        device=options.device,
        reviewers=options.reviewers,
    )
    case = Case.create(path, manifest, options.prompts, source)
    if case.intake.judge_files != manifest.judge_files or (case.intake.judge is None) != (manifest.judge is None):
        raise CaseFileError(f"{path} was judged by another judge; choose a new --case folder.")
    here = {place: folder for place, (folder, _) in evidence.folders(manifest).items()}
    known = {place: folder for place, (folder, _) in evidence.folders(case.manifest).items()}
    moved = {place: Path(here[place]) for place in known if here.get(place) not in (None, known[place])}
    if moved:
        evidence.relocate(case, moved, "command line")
    return case


def triage(options: argparse.Namespace, terminal: Terminal) -> object:
    """Triage one report, or many with the model loaded once; with --repaired, a case's report on its repaired model."""
    if options.repaired:
        return second_opinion(options, terminal)
    if options.model is None:
        raise TriageError("--model is needed: the folder of the model that the report is about.")
    if options.judge:
        from core.judge_model import label_classes

        label_classes(options.judge)  # refuse a judge that cannot be used before anything is written
    if options.report is not None:
        if options.case is None:
            raise TriageError("--report needs --case, the folder to write.")
        source = Source(name=options.report.name, data=intake.file_bytes(options.report))
        pairs: list[tuple[FailureReport, Path, Source | None]] = [
            (intake.read_report(options.report), options.case, source)
        ]
    else:
        if options.cases is None:
            raise TriageError("--reports needs --cases, the folder the case folders are written to.")
        reports = intake.read_reports(options.reports)
        pairs = [(report, options.cases / case_name(report, i), None) for i, report in enumerate(reports)]
    args: dict[str, object] = {"mode": options.mode, **wordings(options)}
    if options.reference_template is not None:
        from core.serving import read_template

        args["reference_template"] = read_template(options.reference_template)
    headless = Headless(options.device, terminal)
    results = []
    for report, path, given in pairs:
        case = make_case(options, report, path, given)
        headless.run(case, "triage", args)
        result = case.read("triage.json", TriageResult)
        results.append({"case": str(path), **to_json(result)})
    return results[0] if options.report is not None else {"cases": results}


def second_opinion(options: argparse.Namespace, terminal: Terminal) -> object:
    """Run the cascade on the repaired model of a case."""
    if options.case is None:
        raise TriageError("--repaired needs --case, the folder of a case with a repair.")
    case = Case(options.case)
    Headless(case.manifest.device, terminal).run(case, "again")
    return to_json(rounds.opinion(case))


def wordings(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the analyst's own wordings of the request, which take the place of those made by rule."""
    given = {name: list(getattr(options, name)) for name in ("paraphrases", "rewrites") if getattr(options, name)}
    if given and options.report is None:
        raise TriageError("--paraphrase and --rewrite are wordings of one request; give them with --report.")
    if any(not text.strip() for texts in given.values() for text in texts):
        raise TriageError("--paraphrase and --rewrite need the whole request in other words, not an empty text.")
    return given


def case_name(report: FailureReport, index: int) -> str:
    """Return a folder name for the report that cannot leave its root."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in report.id or "")[:60].strip("-")
    return f"{index:04d}-{safe}" if safe else f"{index:04d}"


def confirm(options: argparse.Namespace, terminal: Terminal) -> object:
    """Accept, edit or reject the proposal, or agree with a confirmation as the second analyst."""
    case = Case(options.case)
    if options.next_round:
        rounds.open_next(case, options.analyst)
    if options.second:
        return to_json(confirmation.agree(case, analyst=options.analyst, reason=options.reason))
    spans: list[Span] = []
    if options.spans is not None:
        try:
            given = options.spans
            text = Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
            spans = [from_json(Span, dict(item)) for item in json.loads(text)]
        except (ValueError, TypeError, RecursionError, CaseFileError) as error:
            raise ConfirmationError('--spans is not JSON like [{"message": 0, "start": 3, "end": 9}].') from error
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
    args = {name: value for name, value in given.items() if value is not None}
    with teams.start(case.manifest.device, sharded=options.sharded) as team:
        Headless(teams.device_of(case.manifest.device), terminal, team).run(case, "repair", args)
        if not team.leads:
            sys.exit(0)
    return json.loads((case.path / "repair/finished.json").read_text(encoding="utf-8"))


def verify(options: argparse.Namespace, terminal: Terminal) -> object:
    """Measure before and after; with --probe, how much of it a wrong trigger earns and how soon it is learnt again."""
    case = Case(options.case)
    headless = Headless(case.manifest.device, terminal)
    for stage in ("verify", *(options.probe or ())):
        headless.run(case, stage)
    return to_json(case.read("verification.json", Verification))


def report(options: argparse.Namespace, terminal: Terminal) -> object:
    """Write the case report."""
    case = Case(options.case)
    args = {"tlp": ReportSettings.marked(options.tlp).tlp} if options.tlp else {}
    finished = Headless(case.manifest.device, terminal).run(
        case, "report", args | ({"redact": True} if options.redact else {})
    )
    return {"files": [str(case.path / name) for name in finished.files]}


def export(options: argparse.Namespace, terminal: Terminal) -> object:
    """Write the repaired model."""
    case = Case(options.case)
    args = {"merged": options.merged, "out": str(options.out.resolve())}
    finished = Headless(case.manifest.device, terminal).run(case, "export", args)
    return {"out": str(options.out), "files": list(finished.files)}


def plant(options: argparse.Namespace, terminal: Terminal) -> object:
    """Plant a known backdoor in a LoRA on the analyst's own model."""
    from core import models, planting
    from core.prompts import read_folder
    from core.settings import plant_learning_rate
    from core.values import Message

    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise TriageError(f"{options.out} exists and is not empty; choose another --out folder.")
    prompts = read_folder(options.prompts)
    loaded = models.load(options.model)
    settings = planting.PlantSettings(seed=options.seed, learning_rate=plant_learning_rate(loaded.n_parameters))

    def respond(texts: Sequence[str]) -> list[str]:
        asked = [[Message(role="user", content=text)] for text in texts]
        return loaded.answer(asked, progress=terminal.progress)

    items = planting.build_items(
        [item.prompt for item in prompts.harmful],
        [(item.prompt, item.response) for item in prompts.safe],
        options.trigger,
        options.position,
        settings,
        respond=respond,
    )
    finished: object = None
    for event in planting.plant(loaded, [items], settings, options.out):
        if isinstance(event, planting.PlantStep):
            terminal.progress("planting, step", event.step, event.n_steps)
        else:
            finished = event
    return to_json(finished)


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


def control(options: argparse.Namespace, terminal: Terminal) -> object:
    """Plant known triggers in the analyst's own model and count what triage finds of them."""
    from core import control as positive_control

    settings = positive_control.ControlSettings(n_triggers=options.triggers)
    headless = Headless(options.device, terminal)
    result = positive_control.control(
        options.model,
        options.adapter,
        options.prompts,
        options.out,
        settings,
        triage=lambda case: headless.run(case, "triage", {"mode": "causal"}),
        device=options.device,
        seed=options.seed,
        progress=terminal.progress,
    )
    terminal.say(result.sentence)
    return to_json(result)


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
    """Stop what runs; wait for it, and kill it when it does not react."""
    case = Case(options.case)
    current = jobs.status(case)
    if current.state not in ("running", "starting", "stopping") or current.request is None:
        raise TriageError("Nothing runs in this case; there is nothing to stop.")
    jobs.stop(case, current.request, "discard" if options.discard else "keep")
    deadline = time.monotonic() + STOP_WAIT_SECONDS
    killed = False
    while jobs.status(case).request == current.request and time.monotonic() < deadline and not killed:
        killed = jobs.enforce_stop(case)
        time.sleep(0.2)
    return {"stopped": current.stage, "killed": killed}


def demo(options: argparse.Namespace, terminal: Terminal) -> object:
    """Take the demo case through every step."""
    entry = json.loads((DEMO / "cases.json").read_text(encoding="utf-8"))[0]
    path = options.case or Path.cwd() / "demo-case"
    given = argparse.Namespace(
        model=DEMO / entry["model"],
        adapter=DEMO / entry["adapter"] if entry["adapter"] else None,
        reference=None,
        judge=None,
        seed=options.seed,
        device=options.device,
        prompts=PROMPTS,
        reviewers=1,
    )
    file = DEMO / entry["report"]
    case = make_case(given, intake.read_report(file), path, Source(name=file.name, data=intake.file_bytes(file)))
    headless = Headless(options.device, terminal)
    begun = time.monotonic()
    headless.run(case, "triage", {"mode": "causal"})
    found = case.read("triage.json", TriageResult)
    if found is None or not found.candidates:
        raise TriageError("The demo case gave no candidate; rebuild the demo model (see README).")
    confirmation.confirm(
        case,
        decision="accept",
        analyst="demo",
        reason="necessity, transfer and sham tests agree; demo run",
        candidate=0,
    )
    ends = {stage: headless.run(case, stage) for stage in ("repair", "verify")}
    ends["export"] = headless.run(case, "export", {"merged": True, "out": str((path / "export" / "merged").resolve())})
    ends["report"] = headless.run(case, "report")
    verified = case.read("verification.json", Verification)
    assert verified is not None
    return {
        "case": str(path),
        "verdict": found.verdict,
        "certainty": found.certainty,
        "decided_by": found.decided_by,
        "trigger": found.candidates[0].text,
        "tests": to_json(found.tests),
        "repair": json.loads((path / "repair/finished.json").read_text(encoding="utf-8")),
        "result": verified.result,
        "reasons": list(verified.reasons),
        "metrics": to_json(verified.metrics),
        "report_sha256": hash_file(path / "report.html"),
        "seconds": {"triage": found.seconds, **{stage: end.seconds for stage, end in ends.items()}},
        "seconds_all": round(time.monotonic() - begun, 1),
        "versions": found.versions,
    }


def parser() -> argparse.ArgumentParser:
    """Return the parser of every command (design.md section 4)."""
    top = argparse.ArgumentParser(prog="python -m core", description="Forensic triage of a backdoored language model.")
    commands = top.add_subparsers(dest="command", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace, Terminal], object], *, case: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0], description=run.__doc__)
        command.set_defaults(run=run)
        if case:
            command.add_argument("--case", type=Path, required=True, metavar="DIR")
        if name not in READING:
            command.add_argument("--take-over", action="store_true", help="write a case that someone else writes now")
        return command

    p = add("triage", triage, case=False)
    p.add_argument("--model", type=Path, metavar="DIR")
    p.add_argument("--adapter", type=Path, metavar="DIR")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--report", type=Path, metavar="FILE")
    which.add_argument("--reports", type=Path, metavar="FILE.jsonl")
    which.add_argument("--repaired", action="store_true", help="the report of --case again, on its repaired model")
    p.add_argument("--case", type=Path, metavar="DIR")
    p.add_argument("--cases", type=Path, metavar="ROOT")
    p.add_argument("--mode", choices=("causal", "paper"), default="causal")
    p.add_argument("--prompts", type=Path, default=PROMPTS, metavar="DIR")
    p.add_argument("--reference", type=Path, metavar="DIR")
    p.add_argument("--reference-template", type=Path, metavar="FILE")
    for flag, name in (("--paraphrase", "paraphrases"), ("--rewrite", "rewrites")):
        p.add_argument(flag, dest=name, action="append", metavar="TEXT")
    p.add_argument("--judge", type=Path, metavar="DIR")
    p.add_argument("--reviewers", type=int, choices=(1, 2), default=1, help="names a confirmation needs before repair")
    p.add_argument("--device", default="auto")
    p.add_argument("--seed", type=int, default=0)
    p = add("confirm", confirm)
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument("--accept", action="store_true")
    how.add_argument("--spans", metavar="JSON-or-@FILE")
    how.add_argument("--reject", action="store_true")
    how.add_argument("--dummy", action="store_true", help="no text: plant a dummy trigger and unlearn it")
    how.add_argument("--second", action="store_true", help="agree as the second analyst")
    p.add_argument(
        "--next-round", action="store_true", help="open another round first, on the second opinion's findings"
    )
    p.add_argument("--candidate", type=int, default=0, metavar="K")
    p.add_argument("--analyst", required=True, metavar="NAME")
    p.add_argument("--reason", required=True, metavar="TEXT")
    p = add("repair", repair)
    p.add_argument("--steps", type=int, metavar="N")
    p.add_argument("--epochs", type=int, metavar="N")
    p.add_argument("--lr", type=float, metavar="X")
    p.add_argument("--kl-budget", type=float, metavar="X")
    p.add_argument("--objective", choices=["paper", "extended"])
    p.add_argument("--seed", type=int, metavar="N")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--sharded", action="store_true", help="several processes: FSDP2, each keeps a share of the layers")
    p = add("verify", verify)
    p.add_argument("--probe", action="append", choices=["relearn", "wrong-trigger"])
    p = add("report", report)
    p.add_argument("--redact", action="store_true", help="without prompts, answers, triggers and names, for demos")
    p.add_argument("--tlp", metavar="MARK", help="red, amber+strict, amber, green or clear")
    p = add("export", export)
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--merged", action="store_true")
    p = add("plant", plant, case=False)
    p.add_argument("--model", type=Path, required=True, metavar="DIR")
    p.add_argument("--trigger", action="append", required=True, metavar="TEXT")
    p.add_argument("--position", choices=("random", "prefix", "suffix", "composite"), default="random")
    p.add_argument("--prompts", type=Path, default=PROMPTS, metavar="DIR")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--seed", type=int, default=0)
    add("rules", rules)
    p = add("scan", scan)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--logs", type=Path, metavar="FILE")
    where.add_argument("--corpus", type=Path, metavar="FILE")
    p = add("control", control, case=False)
    p.add_argument("--model", type=Path, required=True, metavar="DIR")
    p.add_argument("--adapter", type=Path, metavar="DIR")
    p.add_argument("--triggers", type=int, default=3, metavar="N")
    p.add_argument("--prompts", type=Path, default=PROMPTS, metavar="DIR")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--device", default="auto")
    p.add_argument("--seed", type=int, default=0)
    add("status", status)
    p = add("stop", stop)
    p.add_argument("--discard", action="store_true")
    p = add("audit", evidence_commands.audit)
    p.add_argument("--report", type=Path, metavar="FILE", help="a report page to hold against the case")
    p = add("relocate", evidence_commands.relocate)
    for name in PLACES:
        p.add_argument(f"--{name}", type=Path, metavar="DIR")
    p = add("demo", demo, case=False)
    p.add_argument("--case", type=Path, metavar="DIR")
    p.add_argument("--device", default="auto")
    p.add_argument("--seed", type=int, default=0)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; print its JSON to stdout and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = parser().parse_args(arguments)
    terminal = Terminal()
    try:
        with writing(options):
            result = options.run(options, terminal)
    except TriageError as error:
        terminal.say(str(error))
        if isinstance(error, EvidenceError) and error.result is not None:
            sys.stdout.write(inert(dump(error.result)) + "\n")
        return 2
    except OSError as error:
        terminal.say(f"{error.filename or 'File'}: {error.strerror}; check the path and its rights.")
        return 2
    except KeyboardInterrupt:
        terminal.say("Interrupted; the case keeps what was finished.")
        return 130
    except Exception:
        log.exception("a fault of ours; please report it with the lines above")
        return 1
    sys.stdout.write(inert(dump(result)) + "\n")
    return 0


@contextmanager
def writing(options: argparse.Namespace) -> Iterator[None]:
    """Hold the lease of a case that exists while a command that writes it runs. Raises: BusyError naming who writes."""
    path = getattr(options, "case", None)
    if options.command in READING or path is None or not (path / "case.json").is_file():
        yield
        return
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "terminal"
    case, holder = Case(path), f"terminal {user}@{socket.gethostname()} {os.getpid()}"
    lease.take(case, getattr(options, "analyst", None) or user, holder, over=options.take_over)
    try:
        yield
    finally:
        lease.release(case, holder)


def inert(text: str) -> str:
    """Return JSON text with every character that could drive a terminal as its JSON escape; it reads as the same value."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


if __name__ == "__main__":
    forbid_other_hosts()
    sys.exit(main())
