"""The command that makes cases of reports and triages them, and the same again on a repaired model."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core import evidence, intake, rewrites, rounds
from core.casefile import Case, Manifest, Source, hash_folder, model_spec
from core.errors import CaseFileError, TriageError
from core.files import hash_file, now
from core.headless import Headless, Terminal, holding, typist
from core.prompts import FILES
from core.serial import to_json
from core.shipped import PROMPTS
from core.values import FailureReport, ModelSpec, TriageResult


def triage(options: argparse.Namespace, terminal: Terminal) -> object:
    """Triage one report, or many with the model loaded once; with --repaired, a case's report on its repaired model.

    Of many, one that cannot be triaged is told and the others go on. Raises: TriageError, then with what was found.
    """
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
        report = intake.read_report(source.data, source.name)
        pairs: list[tuple[FailureReport, Path, Source | None]] = [(report, options.case, source)]
    else:
        if options.cases is None:
            raise TriageError("--reports needs --cases, the folder the case folders are written to.")
        reports = intake.read_reports(options.reports)
        pairs = [(report, options.cases / case_name(report, i), None) for i, report in enumerate(reports)]
    args: dict[str, object] = {"mode": options.mode, **wordings(options)}
    if options.reference_template is not None:
        from core.serving import read_template

        args["reference_template"] = read_template(options.reference_template)
    folders = given_folders(options)
    headless = Headless(folders.device, terminal)

    def triaged(report: FailureReport, path: Path, given: Source | None) -> dict[str, object]:
        with made_case(options, report, path, given, folders, over=options.take_over) as case:
            headless.run(case, "triage", args)
        return {"case": str(path), **to_json(case.read("triage.json", TriageResult))}

    if options.report is not None:
        return triaged(*pairs[0])
    results: list[dict[str, object]] = []
    for pair in pairs:
        try:
            results.append(triaged(*pair))
        except TriageError as error:
            terminal.say(f"{pair[1]}: {error}")
            results.append({"case": str(pair[1]), "error": str(error)})
    n_failed = sum("error" in result for result in results)
    if n_failed:
        told = f"{n_failed} of {len(results)} reports could not be triaged; the output says why, correct them and ask again."
        raise TriageError(told, {"cases": results})
    return {"cases": results}


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The model folders of a command with their hashes, and the device they are to run on."""

    model: ModelSpec
    reference: ModelSpec | None
    judge_files: dict[str, str]
    device: str


def given_folders(options: argparse.Namespace) -> Folders:
    """Return what the options name, hashed once for all reports.

    Raises: ModelLoadError, also for a device that is not there, before any case is made with it.
    """
    from core.models import resolve_device  # imports torch, which most commands do without

    device = options.device or "auto"
    resolve_device(device)
    return Folders(
        model=model_spec(options.model, options.adapter),
        reference=model_spec(options.reference) if options.reference else None,
        judge_files=hash_folder(options.judge) if options.judge else {},
        device=device,
    )


@contextmanager
def made_case(
    options: argparse.Namespace,
    report: FailureReport,
    path: Path,
    source: Source | None = None,
    folders: Folders | None = None,
    *,
    over: bool = False,
) -> Iterator[Case]:
    """The case of one report as `make_case` makes or reopens it, held from its first moment on. Raises: BusyError, as `make_case`."""
    with holding(path, over=over):
        case = make_case(options, report, path, source, folders)
    with holding(path, over=over):  # now it is there
        yield case


def make_case(
    options: argparse.Namespace,
    report: FailureReport,
    path: Path,
    source: Source | None = None,
    folders: Folders | None = None,
) -> Case:
    """Create or reopen the case of one report, which came in `source`; `folders` are those of the options.

    Raises: CaseFileError, also when an option was given that an existing case was made without.
    """
    folders = folders or given_folders(options)
    manifest = Manifest(
        id=report.id or path.name,
        created=now(),
        model=folders.model,
        reference=folders.reference,
        judge=str(options.judge.resolve()) if options.judge else None,
        judge_files=folders.judge_files,
        report=report,
        seed=options.seed or 0,
        device=folders.device,
        reviewers=options.reviewers or 1,
    )
    case = Case.create(path, manifest, options.prompts or PROMPTS, source)
    other = [
        flag for flag, (given, known) in _settled(options, manifest, case.intake).items() if given not in (None, known)
    ]
    if other:
        raise CaseFileError(
            f"{path} was made with another {', '.join(other)}; leave it out or choose a new --case folder."
        )
    if case.intake.judge_files != manifest.judge_files or (case.intake.judge is None) != (manifest.judge is None):
        raise CaseFileError(f"{path} was judged by another judge; choose a new --case folder.")
    here, known = evidence.places(manifest), evidence.places(case.manifest)
    moved = {place: Path(here[place]) for place in known if here.get(place) not in (None, known[place])}
    if moved:
        evidence.relocate(case, moved, typist())
    return case


def _settled(options: argparse.Namespace, new: Manifest, known: Manifest) -> dict[str, tuple[object, object]]:
    """Return what a case settles for good, by option: as given now (None: not given), and as the case has it.

    Cases of the first versions know no hashes of their prompts; any folder of prompts is then taken for theirs.
    """
    prompts = None
    if options.prompts and known.prompt_files:
        prompts = {file.name: hash_file(file) for file in options.prompts.glob("*.jsonl") if file.stem in FILES}
    return {
        "--seed": (options.seed, known.seed),
        "--reviewers": (options.reviewers, known.reviewers),
        "--reference": (new.reference and new.reference.files, known.reference and known.reference.files),
        "--prompts": (prompts, known.prompt_files),
    }


def case_name(report: FailureReport, index: int) -> str:
    """Return a folder name for the report that cannot leave its root."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in report.id or "")[:60].strip("-")
    return f"{index:04d}-{safe}" if safe else f"{index:04d}"


def wordings(options: argparse.Namespace) -> dict[str, object]:
    """Return the analyst's own wordings of the request, which take the place of those made by rule."""
    if (options.paraphrases or options.rewrites) and options.report is None:
        raise TriageError("--paraphrase and --rewrite are wordings of one request; give them with --report.")
    return rewrites.given(options.paraphrases or (), options.rewrites or ())


def second_opinion(options: argparse.Namespace, terminal: Terminal) -> object:
    """Run the cascade on the repaired model of a case."""
    if options.case is None:
        raise TriageError("--repaired needs --case, the folder of a case with a repair.")
    case = Case(options.case)
    with holding(options.case, over=options.take_over):
        Headless(options.device or case.manifest.device, terminal).run(case, "again")
    return to_json(rounds.opinion(case))
