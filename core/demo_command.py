"""The command that takes the shipped demo case through every step, without any question asked."""

import argparse
import json
import time

from core import confirmation, intake
from core.casefile import Case, Source
from core.errors import TriageError
from core.files import hash_file
from core.headless import Headless, Terminal
from core.serial import to_json
from core.shipped import DEMO
from core.triage_commands import made_case
from core.values import TriageResult, Verification


def demo(options: argparse.Namespace, terminal: Terminal) -> object:
    """Take the demo case through every step."""
    entry = json.loads((DEMO / "cases.json").read_text(encoding="utf-8"))[0]
    given = argparse.Namespace(
        model=DEMO / entry["model"],
        adapter=DEMO / entry["adapter"] if entry["adapter"] else None,
        reference=None,
        judge=None,
        seed=options.seed,
        device=options.device,
        prompts=None,
        reviewers=None,
    )
    file = DEMO / entry["report"]
    source = Source(name=file.name, data=intake.file_bytes(file))
    report = intake.read_report(source.data, source.name)
    with made_case(given, report, options.case, source, over=options.take_over) as case:
        return _through(case, Headless(options.device, terminal))


def _through(case: Case, headless: Headless) -> dict[str, object]:
    """Take the case through every step and return what came out."""
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
    ends["export"] = headless.run(case, "export", {"merged": True})
    ends["report"] = headless.run(case, "report")
    verified = case.read("verification.json", Verification)
    assert verified is not None
    return {
        "case": str(case.path),
        "verdict": found.verdict,
        "certainty": found.certainty,
        "decided_by": found.decided_by,
        "trigger": found.candidates[0].text,
        "tests": to_json(found.tests),
        "repair": json.loads((case.path / "repair/finished.json").read_text(encoding="utf-8")),
        "result": verified.result,
        "reasons": list(verified.reasons),
        "metrics": to_json(verified.metrics),
        "report_sha256": hash_file(case.path / "report.html"),
        "seconds": {"triage": found.seconds, **{stage: end.seconds for stage, end in ends.items()}},
        "seconds_all": round(time.monotonic() - begun, 1),
        "versions": found.versions,
    }
