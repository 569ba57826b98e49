"""Everything a report of a case reads, gathered once: stored values, and how far the log had come. Computes nothing."""

import re
from dataclasses import dataclass

from core import audit, labels, links, rounds
from core.casefile import Case, Manifest
from core.confirmation import stored, validity
from core.containment import RuleFile, stored_rules
from core.files import now
from core.repair_trace import RepairTrace
from core.scanning import Scan, scans
from core.settings import ReportSettings
from core.values import (
    LocateResult,
    OpenResult,
    Reproduction,
    TestOutcome,
    TriageResult,
    TriggerConfirmation,
    TriggerProposal,
    Verification,
)
from core.versions import program


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """When a report was written, how it is marked, and how far the log had come: `acts` lines, the last with hash `head`.

    `content` is the SHA-256 of the report's data, empty until it is known; `program` the version that wrote the report, empty where an
    older one did.
    """

    written: str
    tlp: str
    acts: int
    head: str
    redacted: bool = False
    content: str = ""
    program: str = ""


def new_stamp(case: Case, tlp: str | None = None, redacted: bool = False) -> Stamp:
    """Return the stamp of a report written now. Raises: TriageError for a marking that TLP does not have."""
    settings = ReportSettings() if tlp is None else ReportSettings.marked(tlp)
    head = audit.stored_head(case.path)
    n, last = (head.n, head.hash) if head else (0, "")
    return Stamp(written=now(), tlp=settings.tlp, acts=n, head=last, redacted=redacted, program=program())


@dataclass(frozen=True, kw_only=True)
class OwnTest:
    """Tests the analyst ran on spans marked by hand (`results/test-*.json`)."""

    proposal: TriggerProposal
    tests: tuple[TestOutcome, ...]
    verdict: str | None
    decided_by: str


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseView:
    """Everything the report reads, None where the case has not come that far. `void`: why no repair may run now.

    `manifest` is that of intake, wherever the model lies now; `folder` is a plain name for the case in commands.
    """

    manifest: Manifest
    folder: str
    stamp: Stamp
    opened: OpenResult | None
    reproduction: Reproduction | None
    locates: tuple[LocateResult, ...]
    triage: TriageResult | None
    own_tests: tuple[OwnTest, ...]
    confirmation: TriggerConfirmation | None
    void: str | None
    rules: RuleFile | None
    scans: tuple[Scan, ...]
    repair: RepairTrace
    verification: Verification | None
    judged: labels.JudgedAnswers | None
    agreement: labels.Agreement | None
    linked: tuple[links.Link, ...]
    second_opinion: tuple[rounds.Opinion, ...] = ()
    earlier_rounds: tuple[rounds.EndedRound, ...] = ()


def gather(case: Case, stamp: Stamp | None = None) -> CaseView:
    """Return what the case holds. Raises: CaseFileError when a stored value is damaged."""
    triage = case.read("triage.json", TriageResult)
    results = sorted((case.path / "results").glob("*.json"))
    locates = [case.read(f"results/{p.name}", LocateResult) for p in results if p.name.startswith("locate-")]
    own = [case.read(f"results/{p.name}", OwnTest) for p in results if p.name.startswith("test-")]
    return CaseView(
        manifest=case.intake,
        folder=plain_name(case.intake.id),
        stamp=stamp or new_stamp(case),
        opened=case.read("results/open.json", OpenResult),
        reproduction=case.read("results/reproduce.json", Reproduction) or (triage.reproduction if triage else None),
        locates=tuple(locate for locate in locates if locate),
        triage=triage,
        own_tests=tuple(test for test in own if test),
        confirmation=stored(case),
        void=validity(case),
        rules=stored_rules(case),
        scans=tuple(scans(case)),
        repair=rounds.of_this_round(case, () if rounds.outdated(case) else case.current_events(), ended=True),
        verification=rounds.verification(case),
        judged=labels.answers(case),
        agreement=labels.agreement(case),
        linked=links.stored(case),
        second_opinion=rounds.told(case),
        earlier_rounds=rounds.ended(case),
    )


def plain_name(name: str) -> str:
    """Return a name that is safe to paste into a command: letters, digits, dots, dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "case"
