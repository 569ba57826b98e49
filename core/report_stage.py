"""The stage that writes the case report and the manifest of the case."""

from core import evidence, links, report, report_check, sarif
from core.case_view import new_stamp
from core.events import StageFinished
from core.files import write_atomic
from core.session import Run


def write_report(run: Run) -> StageFinished:
    """Write the case report as HTML, JSON and SARIF with a manifest of the case; with `redact` HTML and JSON without texts.

    Raises: EvidenceError when a file that the report tells of is not what its act wrote.
    """
    case, redacted = run.case, bool(run.args.get("redact", False))
    evidence.unchanged(case, *evidence.INPUTS, *evidence.results(case))
    evidence.verify_events(case)
    links.store(case)
    stamp = new_stamp(case, run.args.get("tlp"), redacted)
    stem = "report-redacted" if redacted else "report"
    write_atomic(case.path / f"{stem}.html", report.render_report(case, stamp))
    names = [f"{stem}.html", case.write(f"{stem}.json", report.report_json(case, stamp))]
    if not redacted:
        names.append(case.write("report.sarif", sarif.sarif(report.shown_view(case, stamp))))
        names.append(report_check.write_manifest(case))
    events = evidence.events_so_far(case)
    case.audit("report", actor="engine", tlp=stamp.tlp, redacted=redacted, events=events, files=names)
    return StageFinished(stage="report", headline="Report written", files=tuple(names))
