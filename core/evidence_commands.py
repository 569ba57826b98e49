"""The commands about evidence: check a case, hold a report against it, say where its model lies on this machine."""

import argparse
from pathlib import Path

from core import audit as chain
from core import evidence, report_check, rounds
from core.casefile import PLACES, Case
from core.errors import EvidenceError, TriageError
from core.headless import Terminal, typist
from core.serial import to_json
from core.versions import program

DISTRUST = "Do not rely on this case: take it from a copy that you trust, or start a new one."


def audit(options: argparse.Namespace, terminal: Terminal) -> object:
    """Check the log's chain and the evidence against its hashes, and list every act."""
    case = Case(options.case)
    if options.report is not None:
        return compare(case, options.report, terminal)
    log = chain.check(case.path, chained=case.schema != 1)
    if log.broken is not None:
        raise EvidenceError(
            f"Line {log.broken} of {chain.FILE} is broken: {log.why}. {DISTRUST}", {"log": to_json(log)}
        )
    if log.note:
        terminal.say(log.note)
    found = {"log": to_json(log), "changed": evidence.changed_files(case)}
    try:
        evidence.verify(case)
        evidence.unchanged(case, *evidence.results(case))
    except EvidenceError as error:
        raise EvidenceError(str(error), {**found, "evidence": str(error)}) from error
    if found["changed"]:
        raise EvidenceError(f"{found['changed'][0]} differs from what the log says was written. {DISTRUST}", found)
    adapter = rounds.changed_adapter(case)
    if adapter is not None:
        raise EvidenceError(f"{adapter} does not hold the adapter that its repair left; repair again.", found)
    unlogged = report_check.unlogged(case)
    if unlogged:
        raise EvidenceError(f"Acts are missing from {chain.FILE}: {unlogged}. {DISTRUST}", found)
    return {**found, "evidence": "unchanged", "acts": [to_json(line) for line in case.acts()]}


def compare(case: Case, page: Path, terminal: Terminal) -> object:
    """Hold a report page against the case; raise EvidenceError where they differ."""
    found = report_check.check_report(case, page)
    changed = [] if found.log else evidence.changed_files(case)
    since = report_check.changed_since(case)
    result = {**to_json(found), "changed": changed, "changed_since_manifest": since}
    if not found.same:
        other = (
            ""
            if found.stamp.program == program()
            else " Another version of this program wrote it, whose wording may differ."
        )
        raise EvidenceError(
            f"{page.name} does not say what the case holds: {_difference(found)}. The case may have gone on since.{other}",
            result,
        )
    if changed:
        raise EvidenceError(f"{changed[0]} differs from what the log says was written. {DISTRUST}", result)
    terminal.say(f"{page.name} says what the case holds.")
    return result


def _difference(found: report_check.ReportCheck) -> str:
    """Return the first thing in which a page and its case differ."""
    if found.log:
        return found.log
    if found.differences:
        return f"line {found.differences[0].line} of the page differs"
    return "no act of the log wrote this page" if found.data else "its data differ"


def relocate(options: argparse.Namespace, terminal: Terminal) -> object:
    """Record where the model of a copied case lies on this machine, if its files have the hashes of the case."""
    places = {name: getattr(options, name) for name in PLACES if getattr(options, name) is not None}
    if not places:
        raise TriageError("Nothing to relocate; give --model DIR, --adapter DIR, --reference DIR or --judge DIR.")
    manifest = evidence.relocate(Case(options.case), places, typist())
    return evidence.places(manifest)
